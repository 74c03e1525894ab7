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
from velatura.overlays.embedding import ALONE, Embedding
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay, Part
from velatura.overlays.seams import Undo
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

WORDS = "words"
ONE = "*"  # what the one tensor of an embedding in a LoRA's file is called


class WordedLora(Lora):
    """A LoRA whose bundled embeddings lie over the base with it, and learn as it does."""

    def __init__(self, card: Card, deltas: Mapping[str, Delta], words: Sequence[Embedding]) -> None:
        super().__init__(card, deltas)
        self.words = nn.ModuleList(words)
        self.bundled = {
            word.name: {_file_name(name): word.get_parameter(name) for name in word.names} for word in words
        }
        self.eval()

    @classmethod
    def of(cls, lora: Lora, *words: Embedding) -> Self:
        """A LoRA with more words than those that it has; layers and vectors are shared with what it is made of."""
        kept = [
            Embedding.of_tensors(vectors, Card(kind=Embedding.kind, name=name, family=lora.card.family))
            for name, vectors in lora.bundled.items()
            if name not in {each.name for each in words}
        ]
        called = tuple(dict.fromkeys([*(each.name for each in words), *lora.card.trigger_words]))
        made = cls(lora.card.but(trigger_words=called), lora.layers, [*kept, *words])
        made.source, made.blocks = lora.source, lora.blocks
        lora.bundled = made.bundled
        return made

    @property
    def touches(self) -> frozenset[Part]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which parts of a base it has layers of, and the text."""
        return super().touches | frozenset[Part]({"text"})

    def part_of(self, parameter: str) -> Part | Literal["words"]:
        """The part of a base that one of its parameters acts in; words are their own."""
        return WORDS if parameter.startswith(f"{WORDS}.") else super().part_of(parameter)

    def after_step(self) -> None:
        """Keep the words in their bounds."""
        for word in self._words:
            word.after_step()

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang the layers, and make the words words."""
        yield from super().hooks(target, strength)
        for word in self._words:
            yield from word.hooks(target, strength)

    @property
    def _words(self) -> list[Embedding]:
        return cast("list[Embedding]", [*self.words])


def learner(overlay: Overlay) -> Overlay:
    """The overlay as it learns: a LoRA with words in its file learns these too.

    What that file said of its training, its steps for one, holds no longer.
    """
    if not isinstance(overlay, Lora):
        return overlay
    made = WordedLora.of(overlay) if overlay.bundled and not isinstance(overlay, WordedLora) else overlay
    made.metadata = {}
    return made


def _file_name(name: str) -> str:
    return ONE if name in ALONE else name
