"""The overlays that prompts call: where their tags find them, and how they lie over a base while it paints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import UnknownName, VelaturaWarning
from velatura.files import short_hash
from velatura.formats.metadata import claimed_hashes
from velatura.library import Library
from velatura.library.hashes import Hashes
from velatura.overlays import KINDS
from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.attach import Attachment, AttachSpec, attach_all
from velatura.overlays.difference import Difference
from velatura.overlays.effect import Effect
from velatura.overlays.hooks.context_hooks import CombineMode
from velatura.overlays.lora.block_weights import expand_block_weights
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength
from velatura.prompts.passage import prompt_error
from velatura.prompts.prompt import Prompt
from velatura.prompts.strengths import AestheticStrengths, PromptSide, StrengthSchedule, TextUnetStrengths
from velatura.prompts.tags import Tag, look_up
from velatura.sampling.recipe.fields import OverlayHash
from velatura.sampling.resolve_embeddings import EmbeddingResolver
from velatura.tensors import open_meta

KIND_ALIASES = {"lyco": Lora.kind}  # what the webui has tags of, by what it is
TEXT_STRENGTH_KINDS = frozenset(
    {Lora.kind, Difference.kind}
)  # kinds whose tags tell a strength for the text encoders too

RowStrengths = tuple[float, ...]  # of strengths: one that all rows share, or one for each
StrengthSetter = Callable[[float, Sequence[int], int], list[RowStrengths]]
MeasureEffects = Callable[[], list[Effect]]


@dataclass(frozen=True)
class OverlayCall:
    """An overlay that a tag calls; file is where it was read from, None for one that never was.

    strengths: in the UNet, and, where text is None, in the text encoders too. recorded: the hash that a recipe has for
    the file.
    """

    tag: Tag
    overlay: Overlay
    strengths: StrengthSchedule
    file: Path | None
    text_strength: float | None = None
    recipe_hash: str | None = None

    @property
    def batch_key(self) -> object:
        """What it has in common with another call that may be made at once: all but how strong it is, and when."""
        return (
            self.overlay.kind,
            self.tag.name.lower(),
            id(self.overlay),
            self.strengths.blocks,
            self.text_strength is None,
        )

    @cached_property
    def file_hash(self) -> OverlayHash | None:
        """What a recipe records of the file it came from: what is recorded of it already, where that is true."""
        known_hashes = overlay_file_hashes(self.overlay.kind, self.file) if self.file else ()
        chosen = self.recipe_hash if self.recipe_hash in known_hashes else next(iter(known_hashes), None)
        return None if chosen is None else OverlayHash.of(self.overlay.kind, self.tag.name, chosen)

    def warn_if_inactive(self, steps: int, *, is_guided: bool) -> None:
        """Warn of a tag whose overlay never acts, though its strength is not simply 0."""
        if self.strengths.constant is None and not any(self.strengths.per_step(steps)) and not self.text_strength:
            message = f"{self.tag} acts at none of {steps} steps: take more steps, or give it more of them"
            warnings.warn(message, VelaturaWarning, 2)
        if self.strengths.on == "negative" and not is_guided:
            message = f"{self.tag} acts for the negative prompt only, which has no say at a guidance of 1"
            warnings.warn(message, VelaturaWarning, 2)


class OverlayResolver:
    """Where tags find overlays: among those given by hand first, then in a library; each is looked for once."""

    def __init__(
        self, library: Library | None, overlays: Mapping[str, Overlay] | None, *, lenient: bool = False
    ) -> None:
        """Lenient: tags that name nothing are warned of and left out."""
        self._library = library
        self.lenient = lenient
        self.embeddings = EmbeddingResolver(library, overlays, lenient=lenient)
        self._overlays = {name.lower(): overlay for name, overlay in (overlays or {}).items()}
        self._found_overlays: dict[tuple[str, str], tuple[Overlay, Path | None]] = {}
        self._variants: dict[object, Overlay] = {}

    def resolve(self, prompt: Prompt, recipe_hashes: Sequence[OverlayHash] = ()) -> tuple[OverlayCall, ...]:
        """The overlays that a prompt's tags call.

        recorded: the files that a picture was made with: where names have changed, they are found by their hashes.
        """
        hashes = {(overlay_hash.kind, overlay_hash.name.lower()): overlay_hash.hash for overlay_hash in recipe_hashes}
        return tuple(look_up(prompt.tags, lambda tag: self._resolve_tag(tag, hashes), lenient=self.lenient))

    def _resolve_tag(self, tag: Tag, hashes: Mapping[tuple[str, str], str]) -> OverlayCall:
        """Read a tag and find the overlay that it names."""
        kind = KIND_ALIASES.get(tag.kind, tag.kind)
        if kind not in KINDS:
            raise UnknownName.with_suggestions("kind of overlay", tag.kind, KINDS)
        aesthetic_strengths = tag.aesthetic_strengths if kind == Aesthetic.kind else None
        unet_only = (
            None
            if kind in TEXT_STRENGTH_KINDS
            else TextUnetStrengths(unet=aesthetic_strengths.strengths if aesthetic_strengths else tag.strengths)
        )
        key = kind, tag.name.lower()
        recipe_hash = hashes.get((kind, OverlayHash.of(kind, tag.name, "").name.lower()))
        if key not in self._found_overlays:
            self._found_overlays[key] = self._find(tag, kind, recipe_hash)
        overlay, file = self._found_overlays[key]
        if overlay.kind != kind:
            correct_tag = tag._replace(kind=overlay.kind)
            raise prompt_error(
                tag.prompt, tag.start, f"{tag.name} is no {kind} but a {overlay.kind}; write {correct_tag}"
            )
        strengths = unet_only or tag.text_unet_strengths(reads_text="text" in overlay.target_parts)
        variant = (
            self._aesthetic_variant(overlay, aesthetic_strengths)
            if aesthetic_strengths
            else self._lora_variant(tag, overlay, strengths)
        )
        return OverlayCall(tag, variant, strengths.unet, file, None if unet_only else strengths.text, recipe_hash)

    def _aesthetic_variant(self, overlay: Overlay, strengths: AestheticStrengths) -> Overlay:
        """An aesthetic that takes the steps that a tag asks for."""
        options = {"steps": strengths.steps, "rate": strengths.rate}
        changes = {name: value for name, value in options.items() if value is not None}
        if not isinstance(overlay, Aesthetic) or not changes:
            return overlay
        return self._variants.setdefault((overlay, *changes.items()), overlay.replace(**changes))

    def _lora_variant(self, tag: Tag, overlay: Overlay, strengths: TextUnetStrengths) -> Overlay:
        """What a tag asks of an overlay: all of it, or of a LoRA so many ranks, with factors for its blocks."""
        if strengths.rank is None and not strengths.block_weights:
            return overlay
        assert isinstance(overlay, Lora)
        if strengths.rank is not None and not any(layer.rank for layer in overlay.layers.values()):
            raise prompt_error(tag.prompt, tag.start, f"{tag.name} has no ranks to choose among; leave dyn out")
        key = overlay, strengths.rank, strengths.block_weights
        if key not in self._variants:
            lora = overlay if strengths.rank is None else overlay.with_ranks(strengths.rank)
            self._variants[key] = (
                lora.with_block_weights(expand_block_weights(strengths.block_weights))
                if strengths.block_weights
                else lora
            )
        return self._variants[key]

    def _find(self, tag: Tag, kind: str, recipe_hash: str | None) -> tuple[Overlay, Path | None]:
        if given_overlay := self._overlays.get(tag.name.lower()):
            return given_overlay, given_overlay.source
        if self._library is None:
            if self._overlays:
                raise UnknownName.with_suggestions("overlay", tag.name, self._overlays)
            raise UnknownName(f"nobody knows the overlay {tag.name!r}: pass library= or overlays= to find it in")
        overlay = self._find_by_hash(tag, kind, recipe_hash) or self._library.overlay(tag.name, kind)
        return overlay, overlay.source

    def _find_by_hash(self, tag: Tag, kind: str, recipe_hash: str | None) -> Overlay | None:
        """The file that a picture was made with, where another one, or none, has its name now."""
        assert self._library
        if recipe_hash is None:
            return None
        try:
            by_name = self._library.overlay(tag.name, kind)
        except UnknownName:
            by_name = None
        if by_name is not None and (by_name.source is None or recipe_hash in overlay_file_hashes(kind, by_name.source)):
            return by_name
        try:
            by_hash = self._library.overlay(recipe_hash, kind)
        except UnknownName:
            return None
        warnings.warn(f"{tag} is {by_hash.source} by its hash ({recipe_hash})", VelaturaWarning, 2)
        return by_hash


@contextmanager
def attached_overlays(
    base: Base, calls_by_picture: Sequence[Sequence[OverlayCall]], *, combine: CombineMode
) -> Generator[tuple[StrengthSetter, MeasureEffects]]:
    """Lay the overlays that the pictures of a batch call over a base for a while.

    pictures: what each calls, the same overlays in the same order, though not as strongly. Gives what leads the
    strengths on: to a fraction of the steps, for the picture of each row of a batch, of which so many are negative
    prompts and come first; it tells the strengths of those that change what words say. And what tells the effect of
    each, by its tag and in the order in which they act.
    """
    calls_by_overlay = list(zip(*calls_by_picture, strict=True))  # one entry for each overlay
    requests = [_attach_request(calls[0]) for calls in calls_by_overlay]
    attachments = attach_all(base, requests, combine=combine)
    current_strengths: list[tuple[RowStrengths, RowStrengths]] = [((), ())] * len(calls_by_overlay)

    def set_strengths(fraction: float, row_pictures: Sequence[int], negative_count: int) -> list[RowStrengths]:
        for index, (attachment, calls) in enumerate(zip(attachments, calls_by_overlay, strict=True)):
            sides = [call.strengths.on for call in calls]
            unet_strengths = _row_strengths(
                [call.strengths.at(fraction) for call in calls], sides, row_pictures, negative_count
            )
            text_values = [call.text_strength for call in calls if call.text_strength is not None]
            text_strengths = _row_strengths(text_values, sides, row_pictures, negative_count) if text_values else ()
            if (unet_strengths, text_strengths) != current_strengths[index]:
                current_strengths[index] = unet_strengths, text_strengths
                attachment.strength = (
                    Strength(_to_strength(text_strengths), _to_strength(unet_strengths))
                    if text_values
                    else _to_strength(unet_strengths)
                )
        overlay_strengths = zip(current_strengths, calls_by_overlay, strict=True)
        return [
            text_strengths or unet_strengths
            for (unet_strengths, text_strengths), calls in overlay_strengths
            if "text" in calls[0].overlay.target_parts
        ]

    with ExitStack() as stack:
        for attachment in attachments:
            stack.enter_context(attachment)
        yield (
            set_strengths,
            lambda: [
                _effect(*attachment_calls) for attachment_calls in zip(attachments, calls_by_overlay, strict=True)
            ],
        )


def _effect(attachment: Attachment, calls: Sequence[OverlayCall]) -> Effect:
    """What an overlay does, by the tag that calls it, or by its name alone where pictures call it differently."""
    tags = {str(call.tag) for call in calls}
    name = tags.pop() if len(tags) == 1 else f"<{calls[0].overlay.kind}:{calls[0].tag.name}>"
    return attachment.effect.model_copy(update={"overlay": name})


def _attach_request(call: OverlayCall) -> AttachSpec:
    """How an overlay lies over the base to begin with."""
    unet = call.strengths.at(0.0)
    return AttachSpec(
        call.overlay, unet if call.text_strength is None else Strength(call.text_strength, unet), call.strengths.blocks
    )


def _row_strengths(
    strengths: Sequence[float], sides: Sequence[PromptSide], row_pictures: Sequence[int], negative_count: int
) -> RowStrengths:
    """One number where all rows of a batch share it, which is fastest, else one for each row."""
    row_strengths = [
        0.0 if sides[picture] == ("prompt" if row < negative_count else "negative") else strengths[picture]
        for row, picture in enumerate(row_pictures)
    ]
    return (row_strengths[0],) if len(set(row_strengths)) == 1 else tuple(row_strengths)


def _to_strength(strengths: RowStrengths) -> float | Tensor:
    return strengths[0] if len(strengths) == 1 else torch.tensor(strengths)


LORA_HASH_DIGITS = 12  # of a LoRA's, as in Lora hashes
LORA_HASH_KEY = "sshs_model_hash"


def overlay_file_hashes(kind: str, file: Path) -> tuple[str, ...]:
    """What an overlay's file may be recorded by, the first being what is written; none of a folder.

    A LoRA's is the hash of its tensors, the one that its header claims first of all, as the webui has it; what LyCORIS
    writes there is no such hash, and yet the webui records it.
    """
    if not file.is_file():
        return ()
    file_stat = file.stat()
    return _cached_hashes(kind, file, file_stat.st_mtime_ns, file_stat.st_size)


@lru_cache(maxsize=1024)
def _cached_hashes(kind: str, file: Path, _modified_ns: int, _size: int) -> tuple[str, ...]:
    """The same, reckoned afresh when the file has changed."""
    if kind != Lora.kind:
        return (short_hash(file),)
    file_hashes = Hashes.from_file(file)
    metadata = open_meta(file).metadata
    claims = (*claimed_hashes(metadata), file_hashes.body or file_hashes.sha256, metadata.get(LORA_HASH_KEY, ""))
    return tuple(dict.fromkeys(claim[:LORA_HASH_DIGITS] for claim in claims if claim))
