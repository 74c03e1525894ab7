"""Attach the overlays and embeddings of a batch, and set their strengths at every call of the model."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.overlays.attach import Attachment, AttachSpec, attach, attach_all
from velatura.overlays.effect import Effect
from velatura.overlays.hooks.context_hooks import CombineMode
from velatura.overlays.strength import Strength
from velatura.prompts.strengths import PromptSide
from velatura.sampling.resolve.embeddings import NamedEmbedding
from velatura.sampling.resolve.overlays import OverlayCall

RowStrengths = tuple[float, ...]  # one strength for all rows of a batch, or one for each row


@dataclass(frozen=True)
class AttachedEmbedding:
    """An embedding whose name is a word of the base for now."""

    name: str
    attachment: Attachment

    @property
    def effect(self) -> Effect:
        """Return the measured effect, under the embedding's name."""
        return self.attachment.effect.model_copy(update={"overlay": self.name})


class AttachedOverlay:
    """One overlay that all pictures of a batch call, each at its own strength."""

    def __init__(self, attachment: Attachment, calls: Sequence[OverlayCall]) -> None:
        self._attachment = attachment
        self._calls = calls
        self._unet_strengths: RowStrengths = ()
        self._text_strengths: RowStrengths = ()

    @property
    def changes_text(self) -> bool:
        """True if the overlay changes the output of text encoders."""
        return "text" in self._calls[0].overlay.target_parts

    @property
    def text_strengths(self) -> RowStrengths:
        """Its strengths in the text encoders, which follow those in the UNet unless tags give others."""
        return self._text_strengths or self._unet_strengths

    @property
    def effect(self) -> Effect:
        """Return the measured effect, under the tag that calls the overlay, or under its name if the tags differ."""
        tags = {str(call.tag) for call in self._calls}
        first = self._calls[0]
        name = str(first.tag) if len(tags) == 1 else f"<{first.overlay.kind}:{first.tag.name}>"
        return self._attachment.effect.model_copy(update={"overlay": name})

    def set_strengths(self, fraction: float, row_pictures: Sequence[int], negative_count: int) -> None:
        """Set the strength of every row; see AttachedOverlays.set_strengths."""
        sides: list[PromptSide] = [call.strengths.on for call in self._calls]
        strengths = [call.strengths.at(fraction) for call in self._calls]
        unet_strengths = _row_strengths(strengths, sides, row_pictures, negative_count)
        text_values = [call.text_strength for call in self._calls if call.text_strength is not None]
        text_strengths = _row_strengths(text_values, sides, row_pictures, negative_count) if text_values else ()
        if (unet_strengths, text_strengths) == (self._unet_strengths, self._text_strengths):
            return
        self._unet_strengths, self._text_strengths = unet_strengths, text_strengths
        if text_values:
            self._attachment.strength = Strength(_to_strength(text_strengths), _to_strength(unet_strengths))
        else:
            self._attachment.strength = _to_strength(unet_strengths)


class AttachedOverlays:
    """All overlays and embeddings that are attached for a batch, at the strengths of the current step."""

    def __init__(self, embeddings: Sequence[AttachedEmbedding], overlays: Sequence[AttachedOverlay]) -> None:
        self._embeddings = embeddings
        self._overlays = overlays
        self._fraction = 0.0

    @property
    def effects(self) -> list[Effect]:
        """Return the effect of each, embeddings first, then overlays in the order in which they act."""
        return [attached.effect for attached in (*self._embeddings, *self._overlays)]

    def start_step(self, fraction: float) -> None:
        """Use the strengths of the step that starts when this fraction of the steps has been taken."""
        self._fraction = fraction

    def set_strengths(self, row_pictures: Sequence[int], negative_count: int) -> list[RowStrengths]:
        """Set the strengths for the next call of the model.

        Args:
            row_pictures: For each row of the model's batch, the index of its picture.
            negative_count: How many of the rows are negative prompts; they come first.

        Returns:
            The strengths in the text encoders of those overlays that change what texts are encoded to.
        """
        for overlay in self._overlays:
            overlay.set_strengths(self._fraction, row_pictures, negative_count)
        return [overlay.text_strengths for overlay in self._overlays if overlay.changes_text]


@contextmanager
def attached_overlays(
    base: Base,
    calls_by_picture: Sequence[Sequence[OverlayCall]],
    embeddings: Iterable[NamedEmbedding] = (),
    *,
    combine: CombineMode,
) -> Generator[AttachedOverlays]:
    """Attach to a base what the pictures of a batch call and name, until the context ends.

    Args:
        base: The base; it is as before at the end, also after an error.
        calls_by_picture: The calls of each picture: the same overlays in the same order, at any strengths.
        embeddings: The embeddings that the prompts name.
        combine: How overlays act together; see attach_all.

    Raises:
        VelaturaError: An overlay cannot be attached to this base.
    """
    calls_by_overlay = list(zip(*calls_by_picture, strict=True))
    with attached_embeddings(base, embeddings) as embedding_attachments, ExitStack() as stack:
        attachments = attach_all(base, [_attach_spec(calls[0]) for calls in calls_by_overlay], combine=combine)
        for attachment in attachments:
            stack.enter_context(attachment)
        overlays = [
            AttachedOverlay(attachment, calls) for attachment, calls in zip(attachments, calls_by_overlay, strict=True)
        ]
        yield AttachedOverlays(embedding_attachments, overlays)


@contextmanager
def attached_embeddings(base: Base, embeddings: Iterable[NamedEmbedding]) -> Generator[list[AttachedEmbedding]]:
    """Make the names of embeddings words of a base until the context ends, each embedding once."""
    unique_embeddings = {(named.embedding.name, named.file or id(named)): named.embedding for named in embeddings}
    with ExitStack() as stack:
        yield [
            AttachedEmbedding(embedding.name, stack.enter_context(attach(base, embedding)))
            for embedding in unique_embeddings.values()
        ]


def _attach_spec(call: OverlayCall) -> AttachSpec:
    """Return how an overlay is attached before the first step."""
    unet = call.strengths.at(0.0)
    strength = unet if call.text_strength is None else Strength(call.text_strength, unet)
    return AttachSpec(call.overlay, strength, call.strengths.blocks)


def _row_strengths(
    strengths: Sequence[float], sides: Sequence[PromptSide], row_pictures: Sequence[int], negative_count: int
) -> RowStrengths:
    """Return one strength if all rows of a batch share it, which is fastest, else one for each row.

    Args:
        strengths, sides: For each picture, its strength and the prompts for which the overlay acts.
        row_pictures: For each row, the index of its picture.
        negative_count: How many rows are negative prompts; they come first.
    """
    row_strengths = [
        0.0 if sides[picture] == ("prompt" if row < negative_count else "negative") else strengths[picture]
        for row, picture in enumerate(row_pictures)
    ]
    return (row_strengths[0],) if len(set(row_strengths)) == 1 else tuple(row_strengths)


def _to_strength(strengths: RowStrengths) -> float | Tensor:
    return strengths[0] if len(strengths) == 1 else torch.tensor(strengths)
