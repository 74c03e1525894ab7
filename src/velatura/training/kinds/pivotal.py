"""Pivotal tuning: a LoRA that learns embeddings along with its layers and keeps them in its file.

Roich et al. 2021, Pivotal Tuning for Latent-based Editing of Real Images, which cloneofsimo brought to LoRAs: the
embeddings learn what words can express, the layers learn the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, cast

from torch import nn

from velatura.card import Card
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.embedding import SINGLE_KEYS, Embedding
from velatura.overlays.hooks.seams import Undo
from velatura.overlays.lora.lora import BundledEmbeddings, Lora
from velatura.overlays.overlay import Overlay, TargetPart
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

WORDS_PART = "words"
SINGLE_VECTOR_KEY = "*"  # key of a bundled embedding's tensor if it has only one


class PivotalLora(Lora):
    """A LoRA whose bundled embeddings are attached and trained together with its layers.

    Args:
        card: Card of the LoRA.
        deltas: Layers by kohya's names.
        embeddings: Embeddings to bundle; their vectors become parameters of the LoRA.
        block_weights: Factors on the strength, by block.
        source: File that the layers were read from.
    """

    def __init__(
        self,
        card: Card,
        deltas: Mapping[str, Delta],
        embeddings: Sequence[Embedding],
        *,
        block_weights: Mapping[str, float] | None = None,
        source: Path | None = None,
    ) -> None:
        bundled_embeddings: BundledEmbeddings = {
            embedding.name: {_file_key(name): embedding.get_parameter(name) for name in embedding.tensor_names}
            for embedding in embeddings
        }
        super().__init__(card, deltas, block_weights=block_weights, bundled_embeddings=bundled_embeddings)
        self.words = nn.ModuleList(embeddings)
        self.source = source
        self.eval()

    @classmethod
    def from_lora(cls, lora: Lora, *embeddings: Embedding) -> Self:
        """Add embeddings to those that a LoRA bundles.

        Args:
            lora: Shares its layers with the result. Its metadata, about an earlier training, is left out.
            embeddings: Replace bundled embeddings of the same name; their names become trigger words.
        """
        names = [embedding.name for embedding in embeddings]
        bundled_embeddings = [
            Embedding.from_tensors(vectors, Card(kind=Embedding.kind, name=name, family=lora.card.family))
            for name, vectors in lora.bundled_embeddings.items()
            if name not in names
        ]
        trigger_words = tuple(dict.fromkeys([*names, *lora.card.trigger_words]))
        return cls(
            lora.card.replace(trigger_words=trigger_words),
            lora.layers,
            [*bundled_embeddings, *embeddings],
            block_weights=lora.block_weights,
            source=lora.source,
        )

    @property
    def target_parts(self) -> frozenset[TargetPart]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the parts of a base that it acts in: those of its layers, and the text encoders."""
        return super().target_parts | frozenset[TargetPart]({"text"})

    def part_of(self, parameter: str) -> TargetPart | Literal["words"]:
        """Return "words" for a vector of an embedding, else the part of the base that a parameter acts in."""
        return WORDS_PART if parameter.startswith(f"{WORDS_PART}.") else super().part_of(parameter)

    def after_step(self) -> None:
        """Keep the embeddings in their bounds."""
        for embedding in self._embeddings:
            embedding.after_step()

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hook the layers, and register the embeddings' words."""
        yield from super().install_hooks(target, strength)
        for embedding in self._embeddings:
            yield from embedding.install_hooks(target, strength)

    @property
    def _embeddings(self) -> list[Embedding]:
        return cast("list[Embedding]", [*self.words])


def prepare_for_training(overlay: Overlay) -> Overlay:
    """Return the overlay to train: a `PivotalLora` for a LoRA with bundled embeddings, else the overlay itself.

    A LoRA loses its file's metadata, such as the number of steps, because it describes an earlier training. The layers
    and vectors of a `PivotalLora` are shared with the given LoRA, which is therefore trained too.
    """
    if not isinstance(overlay, Lora):
        return overlay
    if isinstance(overlay, PivotalLora) or not overlay.bundled_embeddings:
        overlay.metadata = {}
        return overlay
    pivotal = PivotalLora.from_lora(overlay)
    overlay.bundled_embeddings = pivotal.bundled_embeddings
    return pivotal


def _file_key(name: str) -> str:
    return SINGLE_VECTOR_KEY if name in SINGLE_KEYS else name
