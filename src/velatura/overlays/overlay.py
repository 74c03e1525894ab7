"""What is laid over a base: the overlay, and the card that describes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from torch import nn

from velatura.overlays.seams import Undo
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

Part = Literal["unet", "text"]


def printable(text: str) -> str:
    """Text that is safe to show in a terminal: breaks of lines become spaces, other control characters go away."""
    return "".join(each if each.isprintable() else " " for each in text if each.isprintable() or each.isspace())


Line = Annotated[str, AfterValidator(lambda text: printable(text)[:128])]
Paragraph = Annotated[str, AfterValidator(lambda text: printable(text)[:1000])]


class Card(BaseModel):
    """What an overlay is: kept in its file, shown to people, copied into recipes.

    structure holds what its kind needs to build it, outline the same in a few words; base_hash is short, as A1111's.
    Texts come from strangers' files: they are made printable, and cut where they are too long to show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Line
    name: Line = ""
    structure: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    outline: Paragraph = ""
    family: Line = ""
    base: Line = ""
    base_hash: Line = ""
    steps: Annotated[int, Field(ge=0, lt=2**53)] = 0
    trigger_words: Annotated[tuple[Line, ...], Field(max_length=100)] = ()
    note: Paragraph = ""

    def but(self, **changes: object) -> Self:
        """The same card with some fields changed."""
        return self.model_validate({**self.model_dump(), **changes})

    def __str__(self) -> str:
        trained = f"{self.steps:,} steps" if self.steps else ""
        head = f"{self.kind} {self.outline}".rstrip()
        return " · ".join(filter(None, (head, self.family, trained, " ".join(self.trigger_words))))


class Overlay(nn.Module):
    """A small network laid over a frozen base: it changes what flows through the base, never the base.

    A new overlay is in eval mode; whoever trains it calls train(), in which some kinds ignore their strength.
    """

    kind: ClassVar[str]
    touches: ClassVar[frozenset[Part]]
    card: Card
    source: Path | None = None  # the file it was read from

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build an overlay of the structure that a card describes, on the meta device: its weights come after."""
        raise NotImplementedError

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang on the target and yield an undo for each thing done; strength is read whenever a hook runs."""
        raise NotImplementedError
