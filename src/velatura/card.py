"""What weights are and what they were made for: an overlay's card, and what a file of weights tells of itself."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

UNKNOWN_KIND = "unknown"  # the kind of what nobody here knows


def printable_text(text: str) -> str:
    """Text that is safe to show in a terminal: breaks of lines become spaces, other control characters go away."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else " "
        for character in text
        if character.isprintable() or character.isspace()
    )


ShortText = Annotated[str, AfterValidator(lambda text: printable_text(text)[:128])]
LongText = Annotated[str, AfterValidator(lambda text: printable_text(text)[:1000])]


class Card(BaseModel):
    """What an overlay is: kept in its file, shown to people, copied into recipes.

    structure holds what its kind needs to build it, outline the same in a few words; base_hash is short, as A1111's.
    Texts come from strangers' files: they are made printable, and cut where they are too long to show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ShortText
    name: ShortText = ""
    structure: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    outline: LongText = ""
    family: ShortText = ""
    base: ShortText = ""
    base_hash: ShortText = ""
    steps: Annotated[int, Field(ge=0, lt=2**53)] = 0
    trigger_words: Annotated[tuple[ShortText, ...], Field(max_length=100)] = ()
    note: LongText = ""

    def replace(self, **changes: object) -> Self:
        """The same card with some fields changed."""
        return self.model_validate({**self.model_dump(), **changes})

    def __str__(self) -> str:
        steps = f"{self.steps:,} steps" if self.steps else ""
        head = f"{self.kind} {self.outline}".rstrip()
        return " · ".join(filter(None, (head, self.family, steps, " ".join(self.trigger_words))))


class FileInfo(BaseModel):
    """What the names and shapes in a file of weights tell of it, and what it says of itself; no weight is read for it.

    The card's kind is that of an overlay, or checkpoint, vae or unknown. dialect is who names tensors so; aliases are
    what else the file is called, claimed_hashes what it says its own are; details is what matters of its metadata.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: Card
    dialect: ShortText = ""
    container: ShortText = ""
    tensors: int = 0
    parameters: int = 0
    precisions: tuple[ShortText, ...] = ()
    aliases: tuple[ShortText, ...] = ()
    claimed_hashes: tuple[ShortText, ...] = ()
    details: dict[ShortText, LongText] = Field(default_factory=dict[str, str])
