"""What weights are and what they were made for: an overlay's card, and what a file of weights tells of itself."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

UNKNOWN = "unknown"  # the kind of what nobody here knows


def printable(text: str) -> str:
    """Text that is safe to show in a terminal: breaks of lines become spaces, other control characters go away."""
    if text.isprintable():
        return text
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


class Nature(BaseModel):
    """What the names and shapes in a file of weights tell of it, and what it says of itself; no weight is read for it.

    The card's kind is that of an overlay, or checkpoint, vae or unknown. dialect is who names tensors so; aliases are
    what else the file is called, claimed_hashes what it says its own are; details is what matters of its metadata.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: Card
    dialect: Line = ""
    container: Line = ""
    tensors: int = 0
    parameters: int = 0
    precisions: tuple[Line, ...] = ()
    aliases: tuple[Line, ...] = ()
    claimed_hashes: tuple[Line, ...] = ()
    details: dict[Line, Paragraph] = Field(default_factory=dict[str, str])
