"""The overlays that prompts call: where their tags find them, and how they lie over a base while it paints."""

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import UnknownName, VelaturaWarning
from velatura.library import Library
from velatura.overlays import KINDS
from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.attach import Attachment, Laid, attach_all
from velatura.overlays.contexts import Combine
from velatura.overlays.difference import Difference
from velatura.overlays.effect import Effect
from velatura.overlays.lora import Lora
from velatura.overlays.lora_blocks import block_strengths
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength
from velatura.prompts.grammar import Tag
from velatura.prompts.lookup import look_up
from velatura.prompts.passage import misread
from velatura.prompts.prompt import Prompt
from velatura.prompts.strengths import DrawnStrengths, Side, Strengths, TwoStrengths
from velatura.sampling.fields import OverlayHash
from velatura.sampling.file_hashes import hashes_of
from velatura.sampling.naming import Dictionary

ALIASES = {"lyco": Lora.kind}  # what the webui has tags of, by what it is
TWO_FOLD = frozenset({Lora.kind, Difference.kind})  # kinds whose tags tell a strength for the text encoders too

Values = tuple[float, ...]  # of strengths: one that all rows share, or one for each
Lead = Callable[[float, Sequence[int], int], list[Values]]
Effects = Callable[[], list[Effect]]


@dataclass(frozen=True)
class Called:
    """An overlay that a tag calls; file is where it was read from, None for one that never was.

    strengths: in the UNet, and, where text is None, in the text encoders too. recorded: the hash that a recipe has for
    the file.
    """

    tag: Tag
    overlay: Overlay
    strengths: Strengths
    file: Path | None
    text: float | None = None
    recorded: str | None = None

    @property
    def how(self) -> object:
        """What it has in common with another call that may be made at once: all but how strong it is, and when."""
        return self.overlay.kind, self.tag.name.lower(), id(self.overlay), self.strengths.blocks, self.text is None

    @cached_property
    def hash(self) -> OverlayHash | None:
        """What a recipe records of the file it came from: what is recorded of it already, where that is true."""
        found = hashes_of(self.overlay.kind, self.file) if self.file else ()
        chosen = self.recorded if self.recorded in found else next(iter(found), None)
        return None if chosen is None else OverlayHash.of(self.overlay.kind, self.tag.name, chosen)

    def warn_if_idle(self, steps: int, *, guided: bool) -> None:
        """Warn of a tag whose overlay never acts, though its strength is not simply 0."""
        if self.strengths.constant is None and not any(self.strengths.over(steps)) and not self.text:
            said = f"{self.tag} acts at none of {steps} steps: take more steps, or give it more of them"
            warnings.warn(said, VelaturaWarning, 2)
        if self.strengths.on == "negative" and not guided:
            said = f"{self.tag} acts for the negative prompt only, which has no say at a guidance of 1"
            warnings.warn(said, VelaturaWarning, 2)


class Shelf:
    """Where tags find overlays: among those given by hand first, then in a library; each is looked for once."""

    def __init__(
        self, library: Library | None, overlays: Mapping[str, Overlay] | None, *, lenient: bool = False
    ) -> None:
        """Lenient: tags that name nothing are warned of and left out."""
        self._library = library
        self.lenient = lenient
        self.dictionary = Dictionary(library, overlays, lenient=lenient)
        self._at_hand = {name.lower(): overlay for name, overlay in (overlays or {}).items()}
        self._found: dict[tuple[str, str], tuple[Overlay, Path | None]] = {}
        self._parts: dict[object, Overlay] = {}

    def calls(self, prompt: Prompt, recorded: Sequence[OverlayHash] = ()) -> tuple[Called, ...]:
        """The overlays that a prompt's tags call.

        recorded: the files that a picture was made with: where names have changed, they are found by their hashes.
        """
        hashes = {(each.kind, each.name.lower()): each.hash for each in recorded}
        return tuple(look_up(prompt.tags, lambda tag: self._called(tag, hashes), lenient=self.lenient))

    def _called(self, tag: Tag, hashes: Mapping[tuple[str, str], str]) -> Called:
        """Read a tag and find the overlay that it names."""
        kind = ALIASES.get(tag.kind, tag.kind)
        if kind not in KINDS:
            raise UnknownName.among("kind of overlay", tag.kind, KINDS)
        drawn = tag.drawn if kind == Aesthetic.kind else None
        plain = None if kind in TWO_FOLD else TwoStrengths(unet=drawn.strengths if drawn else tag.strengths)
        called = kind, tag.name.lower()
        recorded = hashes.get((kind, OverlayHash.of(kind, tag.name, "").name.lower()))
        if called not in self._found:
            self._found[called] = self._find(tag, kind, recorded)
        overlay, file = self._found[called]
        if overlay.kind != kind:
            right = tag._replace(kind=overlay.kind)
            raise misread(tag.prompt, tag.start, f"{tag.name} is no {kind} but a {overlay.kind}; write {right}")
        said = plain or tag.two_strengths(reads_text="text" in overlay.touches)
        wanted = self._drawn(overlay, drawn) if drawn else self._part(tag, overlay, said)
        return Called(tag, wanted, said.unet, file, None if plain else said.text, recorded)

    def _drawn(self, overlay: Overlay, said: DrawnStrengths) -> Overlay:
        """An aesthetic that takes the steps that a tag asks for."""
        told = {"steps": said.steps, "rate": said.rate}
        changed = {name: each for name, each in told.items() if each is not None}
        if not isinstance(overlay, Aesthetic) or not changed:
            return overlay
        return self._parts.setdefault((overlay, *changed.items()), overlay.but(**changed))

    def _part(self, tag: Tag, overlay: Overlay, said: TwoStrengths) -> Overlay:
        """What a tag asks of an overlay: all of it, or of a LoRA so many ranks, with factors for its blocks."""
        if said.rank is None and not said.factors:
            return overlay
        assert isinstance(overlay, Lora)
        if said.rank is not None and not any(each.rank for each in overlay.layers.values()):
            raise misread(tag.prompt, tag.start, f"{tag.name} has no ranks to choose among; leave dyn out")
        wanted = overlay, said.rank, said.factors
        if wanted not in self._parts:
            part = overlay if said.rank is None else overlay.with_ranks(said.rank)
            self._parts[wanted] = part.scaled(block_strengths(said.factors)) if said.factors else part
        return self._parts[wanted]

    def _find(self, tag: Tag, kind: str, recorded: str | None) -> tuple[Overlay, Path | None]:
        if at_hand := self._at_hand.get(tag.name.lower()):
            return at_hand, at_hand.source
        if self._library is None:
            if self._at_hand:
                raise UnknownName.among("overlay", tag.name, self._at_hand)
            raise UnknownName(f"nobody knows the overlay {tag.name!r}: pass library= or overlays= to find it in")
        overlay = self._by_hash(tag, kind, recorded) or self._library.overlay(tag.name, kind)
        return overlay, overlay.source

    def _by_hash(self, tag: Tag, kind: str, recorded: str | None) -> Overlay | None:
        """The file that a picture was made with, where another one, or none, has its name now."""
        assert self._library
        if recorded is None:
            return None
        try:
            named = self._library.overlay(tag.name, kind)
        except UnknownName:
            named = None
        if named is not None and (named.source is None or recorded in hashes_of(kind, named.source)):
            return named
        try:
            found = self._library.overlay(recorded, kind)
        except UnknownName:
            return None
        warnings.warn(f"{tag} is {found.source} by its hash ({recorded})", VelaturaWarning, 2)
        return found


@contextmanager
def laid_over(base: Base, pictures: Sequence[Sequence[Called]], *, combine: Combine) -> Generator[tuple[Lead, Effects]]:
    """Lay the overlays that the pictures of a batch call over a base for a while.

    pictures: what each calls, the same overlays in the same order, though not as strongly. Gives what leads the
    strengths on: to a fraction of the steps, for the picture of each row of a batch, of which so many are negative
    prompts and come first; it tells the strengths of those that change what words say. And what tells the effect of
    each, by its tag and in the order in which they act.
    """
    together = list(zip(*pictures, strict=True))  # one entry for each overlay
    wanted = [_laid(calls[0]) for calls in together]
    attachments = attach_all(base, wanted, combine=combine)
    state: list[tuple[Values, Values]] = [((), ())] * len(together)

    def reach(fraction: float, rows: Sequence[int], negatives: int) -> list[Values]:
        for place, (attachment, calls) in enumerate(zip(attachments, together, strict=True)):
            sides = [call.strengths.on for call in calls]
            unet = _rows([call.strengths.at(fraction) for call in calls], sides, rows, negatives)
            two = [call.text for call in calls if call.text is not None]
            text = _rows(two, sides, rows, negatives) if two else ()
            if (unet, text) != state[place]:
                state[place] = unet, text
                attachment.strength = Strength(_value(text), _value(unet)) if two else _value(unet)
        touching = zip(state, together, strict=True)
        return [text or unet for (unet, text), calls in touching if "text" in calls[0].overlay.touches]

    with ExitStack() as laid:
        for attachment in attachments:
            laid.enter_context(attachment)
        yield reach, lambda: [_effect(*each) for each in zip(attachments, together, strict=True)]


def _effect(attachment: Attachment, calls: Sequence[Called]) -> Effect:
    """What an overlay does, by the tag that calls it, or by its name alone where pictures call it differently."""
    tags = {str(call.tag) for call in calls}
    name = tags.pop() if len(tags) == 1 else f"<{calls[0].overlay.kind}:{calls[0].tag.name}>"
    return attachment.effect.model_copy(update={"overlay": name})


def _laid(call: Called) -> Laid:
    """How an overlay lies over the base to begin with."""
    unet = call.strengths.at(0.0)
    return Laid(call.overlay, unet if call.text is None else Strength(call.text, unet), call.strengths.blocks)


def _rows(each: Sequence[float], sides: Sequence[Side], rows: Sequence[int], negatives: int) -> Values:
    """One number where all rows of a batch share it, which is fastest, else one for each row."""
    found = [
        0.0 if sides[picture] == ("prompt" if place < negatives else "negative") else each[picture]
        for place, picture in enumerate(rows)
    ]
    return (found[0],) if len(set(found)) == 1 else tuple(found)


def _value(strengths: Values) -> float | Tensor:
    return strengths[0] if len(strengths) == 1 else torch.tensor(strengths)
