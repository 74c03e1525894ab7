"""Find the overlays that tags in prompts call, such as `<lora:ink:0.8>` and `<hypernet:inca:0.6>`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from velatura.base.base import Base
from velatura.errors import UnknownName, VelaturaError, quantity, warn
from velatura.library import Library
from velatura.overlays import KINDS
from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.attach import attach
from velatura.overlays.difference import Difference
from velatura.overlays.lora.block_weights import expand_block_weights
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.prompts.passage import prompt_error
from velatura.prompts.prompt import Prompt
from velatura.prompts.strengths import StrengthSchedule, TextUnetStrengths
from velatura.prompts.tags import Tag, look_up
from velatura.sampling.recipe.fields import OverlayHash
from velatura.sampling.resolve.embeddings import EmbeddingResolver
from velatura.sampling.resolve.file_hashes import overlay_file_hashes

# What looks like a tag whose angle brackets are forgotten: "lora:ink:0.8"
UNBRACKETED_TAG_PATTERN = re.compile(r"(?<![\w<])(hypernet|lora|lyco|aesthetic):([^\s:<>,()\[\]]+):(-?\d*\.?\d+)", re.I)
KIND_ALIASES = {"lyco": Lora.kind}  # other words for kinds that A1111 understands in tags
TEXT_STRENGTH_KINDS = frozenset({Lora.kind, Difference.kind})  # kinds whose tags have a strength for text encoders


@dataclass(frozen=True)
class OverlayCall:
    """A tag and the overlay that it calls.

    Attributes:
        tag: The tag as it is written.
        overlay: The overlay, or the variant of it that the tag asks for.
        strengths: The strengths in the UNet over the steps.
        file: The file that the overlay was read from, or None if it was never read from a file.
        text_strength: The strength in the text encoders. None: `strengths` count there too.
        recipe_hash: The hash that a recipe records for the file.
    """

    tag: Tag
    overlay: Overlay
    strengths: StrengthSchedule
    file: Path | None
    text_strength: float | None = None
    recipe_hash: str | None = None

    @property
    def batch_key(self) -> object:
        """Return the key that calls must share to be in one batch: everything but the strengths."""
        has_text_strength = self.text_strength is not None
        return self.overlay.kind, self.tag.name.lower(), id(self.overlay), self.strengths.blocks, has_text_strength

    @cached_property
    def file_hash(self) -> OverlayHash | None:
        """Return the entry that a recipe records of the file: the one that it records already, if that is correct."""
        known_hashes = overlay_file_hashes(self.overlay.kind, self.file) if self.file else ()
        if not known_hashes:
            return None
        file_hash = self.recipe_hash if self.recipe_hash in known_hashes else known_hashes[0]
        return OverlayHash.of(self.overlay.kind, self.tag.name, file_hash)

    def warn_if_inactive(self, steps: int, *, is_guided: bool) -> None:
        """Warn if the overlay acts at no step although its strength is not simply 0.

        Args:
            steps: The number of steps of the pass.
            is_guided: False if negative prompts are not used.
        """
        if self.strengths.constant is None and not any(self.strengths.per_step(steps)) and not self.text_strength:
            warn(f"{self.tag} acts at none of {quantity(steps, 'step')}: use more steps, or widen the range in the tag")
        if self.strengths.on == "negative" and not is_guided:
            warn(f"{self.tag} acts for the negative prompt only, which is not used at a guidance of 1")


class OverlayResolver:
    """Finds the overlays that tags call, first among those passed by hand, then in a library; each only once.

    Attributes:
        library: The library, None for none.
        lenient: Warn of what is unknown or does not fit, instead of raising an error.
    """

    def __init__(
        self, library: Library | None, overlays: Mapping[str, Overlay] | None, *, lenient: bool = False
    ) -> None:
        """Remember where to look.

        Args:
            library: A library to search.
            overlays: Overlays by name, in any case.
            lenient: Warn of tags whose overlay is unknown or does not fit the base, and leave them out, instead of
                raising an error.
        """
        self.library = library
        self.lenient = lenient
        self.embeddings = EmbeddingResolver(library, overlays, lenient=lenient)
        self._overlays = {name.lower(): overlay for name, overlay in (overlays or {}).items()}
        self._found_overlays: dict[tuple[str, str], Overlay] = {}
        self._variants: dict[object, Overlay] = {}
        self._misfits: dict[tuple[Overlay, Base], str] = {}  # why an overlay cannot be attached, "" if it can

    def resolve(
        self, prompt: Prompt, recipe_hashes: Sequence[OverlayHash] = (), *, base: Base | None = None
    ) -> tuple[OverlayCall, ...]:
        """Return the overlays that the tags of a prompt call, in the tags' order.

        Args:
            prompt: The prompt with its tags.
            recipe_hashes: The files that a recipe records. An overlay whose name belongs to another file now is found
                by its hash.
            base: The base of the picture. If the resolver is lenient, overlays that cannot be attached to it are left
                out with a warning.

        Raises:
            UnknownName: A tag names an unknown kind or overlay.
            BadPrompt: A tag cannot be read, or does not fit its overlay; the message points at it.
        """
        hashes = {(entry.kind, entry.name.lower()): entry.hash for entry in recipe_hashes}
        _warn_of_missing_brackets(prompt)
        calls = look_up(prompt.tags, lambda tag: self._resolve_tag(tag, hashes), lenient=self.lenient)
        if not self.lenient or base is None:
            return tuple(calls)
        return tuple(call for call in calls if self._fits(call, base))

    def _fits(self, call: OverlayCall, base: Base) -> bool:
        """Return True if the overlay can be attached to a base; warn if it cannot."""
        key = call.overlay, base
        if key not in self._misfits:
            self._misfits[key] = _find_misfit(call, base)
        if self._misfits[key]:
            warn(f"{self._misfits[key]}; {call.tag} is left out")
        return not self._misfits[key]

    def _resolve_tag(self, tag: Tag, hashes: Mapping[tuple[str, str], str]) -> OverlayCall:
        kind = KIND_ALIASES.get(tag.kind, tag.kind)
        if kind not in KINDS:
            raise UnknownName.with_suggestions("kind of overlay", tag.kind, KINDS)
        recipe_hash = hashes.get((kind, OverlayHash.of(kind, tag.name, "").name.lower()))
        if kind == Aesthetic.kind:
            return self._resolve_aesthetic(tag, recipe_hash)
        if kind in TEXT_STRENGTH_KINDS:
            return self._resolve_with_text_strength(tag, kind, recipe_hash)
        strengths = tag.strengths
        overlay = self._find(tag, kind, recipe_hash)
        return OverlayCall(tag, overlay, strengths, overlay.source, recipe_hash=recipe_hash)

    def _resolve_aesthetic(self, tag: Tag, recipe_hash: str | None) -> OverlayCall:
        """Resolve the tag of an aesthetic gradient, whose steps and rate the tag may change."""
        strengths = tag.aesthetic_strengths
        overlay = self._find(tag, Aesthetic.kind, recipe_hash)
        options = {"steps": strengths.steps, "rate": strengths.rate}
        changes = {name: value for name, value in options.items() if value is not None}
        variant = overlay
        if isinstance(overlay, Aesthetic) and changes:
            variant = self._variants.setdefault((overlay, *changes.items()), overlay.replace(**changes))
        return OverlayCall(tag, variant, strengths.strengths, overlay.source, recipe_hash=recipe_hash)

    def _resolve_with_text_strength(self, tag: Tag, kind: str, recipe_hash: str | None) -> OverlayCall:
        """Resolve the tag of a LoRA or of a difference, which act in the text encoders too."""
        overlay = self._find(tag, kind, recipe_hash)
        strengths = tag.text_unet_strengths(reads_text="text" in overlay.target_parts)
        variant = self._lora_variant(tag, overlay, strengths)
        return OverlayCall(tag, variant, strengths.unet, overlay.source, strengths.text, recipe_hash)

    def _lora_variant(self, tag: Tag, overlay: Overlay, strengths: TextUnetStrengths) -> Overlay:
        """Return the overlay, or a LoRA with as many ranks (dyn=) and the block weights (lbw=) as the tag asks for."""
        if strengths.rank is None and not strengths.block_weights:
            return overlay
        assert isinstance(overlay, Lora)
        if strengths.rank is not None and not any(layer.rank for layer in overlay.layers.values()):
            raise prompt_error(tag.prompt, tag.start, f"{tag.name} has no ranks to choose from; remove dyn")
        key = overlay, strengths.rank, strengths.block_weights
        if key not in self._variants:
            lora = overlay if strengths.rank is None else overlay.with_ranks(strengths.rank)
            if strengths.block_weights:
                lora = lora.with_block_weights(expand_block_weights(strengths.block_weights))
            self._variants[key] = lora
        return self._variants[key]

    def _find(self, tag: Tag, kind: str, recipe_hash: str | None) -> Overlay:
        """Find the overlay that a tag names.

        Raises:
            UnknownName: No such overlay exists.
            BadPrompt: The overlay is of another kind than the tag says.
        """
        key = kind, tag.name.lower()
        if key not in self._found_overlays:
            self._found_overlays[key] = self._look_for(tag, kind, recipe_hash)
        overlay = self._found_overlays[key]
        if overlay.kind != kind:
            correct_tag = tag._replace(kind=overlay.kind)
            message = f"{tag.name} is not a {kind} but a {overlay.kind}; write {correct_tag}"
            raise prompt_error(tag.prompt, tag.start, message)
        return overlay

    def _look_for(self, tag: Tag, kind: str, recipe_hash: str | None) -> Overlay:
        if given_overlay := self._overlays.get(tag.name.lower()):
            return given_overlay
        if self.library is None:
            if self._overlays:
                raise UnknownName.with_suggestions("overlay", tag.name, self._overlays)
            raise UnknownName(f"the overlay {tag.name!r} is unknown: pass library= or overlays= to find it in")
        return self._find_by_hash(tag, kind, recipe_hash) or self.library.overlay(tag.name, kind)

    def _find_by_hash(self, tag: Tag, kind: str, recipe_hash: str | None) -> Overlay | None:
        """Find the file that a recipe records, where its name now belongs to another file or to none."""
        assert self.library
        if recipe_hash is None:
            return None
        try:
            by_name = self.library.overlay(tag.name, kind)
        except UnknownName:
            by_name = None
        if by_name is not None and (by_name.source is None or recipe_hash in overlay_file_hashes(kind, by_name.source)):
            return by_name
        try:
            by_hash = self.library.overlay(recipe_hash, kind)
        except UnknownName:
            return None
        warn(f"{tag} is {by_hash.source}, found by its hash ({recipe_hash})")
        return by_hash


def _find_misfit(call: OverlayCall, base: Base) -> str:
    """Return why an overlay cannot be attached to a base, "" if it can."""
    try:
        attach(base, call.overlay, 0.0, blocks=call.strengths.blocks).detach()
    except VelaturaError as error:
        return str(error)
    return ""


def _warn_of_missing_brackets(prompt: Prompt) -> None:
    """Warn of what would be a tag within angle brackets, and is read as words without them."""
    for match in UNBRACKETED_TAG_PATTERN.finditer(prompt.text):
        warn(f"{match[0]!r} in the prompt has no angle brackets, so it is read as words: write <{match[0]}>")
