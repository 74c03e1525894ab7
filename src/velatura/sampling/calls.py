"""The overlays that prompts call: where their tags find them, and how they lie over a base while it paints."""

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from velatura.base.base import Base
from velatura.errors import UnknownName, VelaturaWarning
from velatura.formats.optim import short_hash
from velatura.library import Library
from velatura.overlays import KINDS
from velatura.overlays.attach import Laid, attach_all
from velatura.overlays.contexts import Combine
from velatura.overlays.overlay import Overlay
from velatura.prompts.grammar import Tag
from velatura.prompts.lookup import look_up
from velatura.prompts.passage import misread
from velatura.prompts.prompt import Prompt
from velatura.prompts.strengths import Strengths
from velatura.sampling.fields import OverlayHash
from velatura.sampling.naming import Dictionary

Lead = Callable[[float, Sequence[int], int], list[tuple[float, ...]]]


@dataclass(frozen=True)
class Called:
    """An overlay that a tag calls; file is where it was read from, None for one that never was."""

    tag: Tag
    overlay: Overlay
    strengths: Strengths
    file: Path | None

    @property
    def how(self) -> object:
        """What it has in common with another call that may be made at once: all but how strong it is, and when."""
        return self.tag.kind, self.tag.name.lower(), self.strengths.blocks

    @cached_property
    def hash(self) -> OverlayHash | None:
        """What a recipe records of the file it came from."""
        if self.file is None:
            return None
        state = self.file.stat()
        return OverlayHash.of(self.tag.kind, self.tag.name, _hash(self.file, state.st_mtime_ns, state.st_size))

    def warn_if_idle(self, steps: int, *, guided: bool) -> None:
        """Warn of a tag whose overlay never acts, though its strength is not simply 0."""
        if self.strengths.constant is None and not any(self.strengths.over(steps)):
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

    def calls(self, prompt: Prompt, recorded: Sequence[OverlayHash] = ()) -> tuple[Called, ...]:
        """The overlays that a prompt's tags call.

        recorded: the files that a picture was made with: where names have changed, they are found by their hashes.
        """
        hashes = {(each.kind, each.name.lower()): each.hash for each in recorded}
        return tuple(look_up(prompt.tags, lambda tag: self._called(tag, hashes), lenient=self.lenient))

    def _called(self, tag: Tag, hashes: Mapping[tuple[str, str], str]) -> Called:
        """Read a tag and find the overlay that it names."""
        if tag.kind not in KINDS:
            raise UnknownName.among("kind of overlay", tag.kind, KINDS)
        strengths = tag.strengths
        called = tag.kind, tag.name.lower()
        if called not in self._found:
            self._found[called] = self._find(tag, hashes.get(called))
        overlay, file = self._found[called]
        if overlay.kind != tag.kind:
            right = tag._replace(kind=overlay.kind)
            raise misread(tag.prompt, tag.start, f"{tag.name} is no {tag.kind} but a {overlay.kind}; write {right}")
        return Called(tag, overlay, strengths, file)

    def _find(self, tag: Tag, recorded: str | None) -> tuple[Overlay, Path | None]:
        if at_hand := self._at_hand.get(tag.name.lower()):
            return at_hand, at_hand.source
        if self._library is None:
            if self._at_hand:
                raise UnknownName.among("overlay", tag.name, self._at_hand)
            raise UnknownName(f"nobody knows the overlay {tag.name!r}: pass library= or overlays= to find it in")
        overlay = self._by_hash(tag, recorded) or self._library.overlay(tag.name, tag.kind)
        return overlay, overlay.source

    def _by_hash(self, tag: Tag, recorded: str | None) -> Overlay | None:
        """The file that a picture was made with, where another one, or none, has its name now."""
        assert self._library
        if recorded is None:
            return None
        try:
            named = self._library.overlay(tag.name, tag.kind)
        except UnknownName:
            named = None
        if named is not None and (named.source is None or short_hash(named.source) == recorded):
            return named
        try:
            found = self._library.overlay(recorded, tag.kind)
        except UnknownName:
            return None
        warnings.warn(f"{tag} is {found.source} by its hash ({recorded})", VelaturaWarning, 2)
        return found


@contextmanager
def laid_over(base: Base, pictures: Sequence[Sequence[Called]], *, combine: Combine) -> Generator[Lead]:
    """Lay the overlays that the pictures of a batch call over a base for a while.

    pictures: what each calls, the same overlays in the same order, though not as strongly. Gives what leads the
    strengths on: to a fraction of the steps, for the picture of each row of a batch, of which so many are negative
    prompts and come first; it tells the strengths of those that change what words say.
    """
    together = list(zip(*pictures, strict=True))  # one entry for each overlay
    wanted = [Laid(calls[0].overlay, calls[0].strengths.at(0.0), calls[0].strengths.blocks) for calls in together]
    attachments = attach_all(base, wanted, combine=combine)
    state: list[tuple[float, ...]] = [()] * len(together)

    def reach(fraction: float, rows: Sequence[int], negatives: int) -> list[tuple[float, ...]]:
        for place, (attachment, calls) in enumerate(zip(attachments, together, strict=True)):
            strengths = _strengths([call.strengths for call in calls], fraction, rows, negatives)
            if strengths != state[place]:
                state[place] = strengths
                attachment.strength = strengths[0] if len(strengths) == 1 else torch.tensor(strengths)
        return [each for each, calls in zip(state, together, strict=True) if "text" in calls[0].overlay.touches]

    with ExitStack() as laid:
        for attachment in attachments:
            laid.enter_context(attachment)
        yield reach


def _strengths(said: Sequence[Strengths], fraction: float, rows: Sequence[int], negatives: int) -> tuple[float, ...]:
    """One number where all rows of a batch share it, which is fastest, else one for each row."""
    now = [each.at(fraction) for each in said]
    sides = [each.on for each in said]
    each = [
        0.0 if sides[picture] == ("prompt" if place < negatives else "negative") else now[picture]
        for place, picture in enumerate(rows)
    ]
    return (each[0],) if len(set(each)) == 1 else tuple(each)


@lru_cache(maxsize=1024)
def _hash(file: Path, _changed: int, _size: int) -> str:
    """A1111's short hash of a hypernetwork's file, reckoned afresh when the file has changed."""
    return short_hash(file)
