"""Pivotal tuning: a LoRA that learns words along with its layers, and takes them with it in its file.

Roich et al. 2021, Pivotal Tuning for Latent-based Editing of Real Images, as cloneofsimo brought it to LoRAs: first
one finds the word that says most of what is to be learned, then what no word can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self, cast

from torch import nn

from velatura.card import Card
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.embedding import SINGLE_KEYS, Embedding
from velatura.overlays.hooks.seams import Undo
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay, TargetPart
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

WORDS_PART = "words"
SINGLE_VECTOR_KEY = "*"  # what the one tensor of an embedding in a LoRA's file is called


class PivotalLora(Lora):
    """A LoRA whose bundled embeddings lie over the base with it, and learn as it does."""

    def __init__(self, card: Card, deltas: Mapping[str, Delta], embeddings: Sequence[Embedding]) -> None:
        super().__init__(card, deltas)
        self.words = nn.ModuleList(embeddings)
        self.bundled_embeddings = {
            embedding.name: {_file_key(name): embedding.get_parameter(name) for name in embedding.tensor_names}
            for embedding in embeddings
        }
        self.eval()

    @classmethod
    def from_lora(cls, lora: Lora, *embeddings: Embedding) -> Self:
        """A LoRA with more words than those that it has; layers and vectors are shared with what it is made of."""
        bundled_embeddings = [
            Embedding.from_tensors(vectors, Card(kind=Embedding.kind, name=name, family=lora.card.family))
            for name, vectors in lora.bundled_embeddings.items()
            if name not in {embedding.name for embedding in embeddings}
        ]
        trigger_words = tuple(dict.fromkeys([*(embedding.name for embedding in embeddings), *lora.card.trigger_words]))
        pivotal = cls(lora.card.replace(trigger_words=trigger_words), lora.layers, [*bundled_embeddings, *embeddings])
        pivotal.source, pivotal.block_weights = lora.source, lora.block_weights
        lora.bundled_embeddings = pivotal.bundled_embeddings
        return pivotal

    @property
    def target_parts(self) -> frozenset[TargetPart]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which parts of a base it has layers of, and the text."""
        return super().target_parts | frozenset[TargetPart]({"text"})

    def part_of(self, parameter: str) -> TargetPart | Literal["words"]:
        """The part of a base that one of its parameters acts in; words are their own."""
        return WORDS_PART if parameter.startswith(f"{WORDS_PART}.") else super().part_of(parameter)

    def after_step(self) -> None:
        """Keep the words in their bounds."""
        for embedding in self._embeddings:
            embedding.after_step()

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang the layers, and make the words words."""
        yield from super().install_hooks(target, strength)
        for embedding in self._embeddings:
            yield from embedding.install_hooks(target, strength)

    @property
    def _embeddings(self) -> list[Embedding]:
        return cast("list[Embedding]", [*self.words])


def activate_bundled_embeddings(overlay: Overlay) -> Overlay:
    """The overlay as it learns: a LoRA with words in its file learns these too.

    What that file said of its training, its steps for one, holds no longer.
    """
    if not isinstance(overlay, Lora):
        return overlay
    trainable = (
        PivotalLora.from_lora(overlay)
        if overlay.bundled_embeddings and not isinstance(overlay, PivotalLora)
        else overlay
    )
    trainable.metadata = {}
    return trainable


def _file_key(name: str) -> str:
    return SINGLE_VECTOR_KEY if name in SINGLE_KEYS else name
