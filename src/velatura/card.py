"""Metadata of weights: an overlay's card, and the facts that a file shows without its weights being read."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from velatura.errors import quantity

MAX_STEPS = 2**53  # larger numbers are not exact in JSON
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
UNKNOWN_KIND = "unknown"  # of a file whose format velatura does not know


def printable_text(text: str) -> str:
    """Make a text safe to show in a terminal: replace line breaks by spaces, and remove control characters."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else " "
        for character in text
        if character.isprintable() or character.isspace()
    )


def has_control_characters(text: str) -> bool:
    """Return True for characters that steer terminals, such as NUL and escape; tabs and line breaks are harmless."""
    return CONTROL_CHARACTER.search(text) is not None


ShortText = Annotated[str, AfterValidator(lambda text: printable_text(text)[:128])]
LongText = Annotated[str, AfterValidator(lambda text: printable_text(text)[:1000])]


class Card(BaseModel):
    """An overlay's metadata: stored in its file, shown to users, copied into recipes.

    Texts come from files of unknown origin: they are made printable and cut to a length that can be shown.

    Attributes:
        kind: Kind of overlay, such as "hypernet" or "lora"; for other files "checkpoint", "vae", "upscaler",
            "face-restorer", "face-detector" or "unknown".
        name: Name of the overlay, as prompts call it.
        structure: Settings from which the overlay is built; which ones depends on the kind.
        outline: The structure in a few words, for people.
        family: Family of bases, such as "SD1".
        base: Name of the base it was trained on.
        base_hash: First ten hex digits of the base's SHA-256, as A1111 shows it.
        prediction: What its base predicts, "epsilon" or "v_prediction", where that is not what bases of the family
            usually predict; otherwise "", and then it is not stored.
        steps: Training steps.
        trigger_words: Words that call the trained subject or style in a prompt.
        note: Free text of the author.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ShortText
    name: ShortText = ""
    structure: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    outline: LongText = ""
    family: ShortText = ""
    base: ShortText = ""
    base_hash: ShortText = ""
    prediction: Literal["", "epsilon", "v_prediction"] = ""
    steps: Annotated[int, Field(ge=0, lt=MAX_STEPS)] = 0
    trigger_words: Annotated[tuple[ShortText, ...], Field(max_length=100)] = ()
    note: LongText = ""

    @model_serializer(mode="wrap")
    def _leave_out_usual_prediction(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = serialize(self)
        if not self.prediction:
            values.pop("prediction", None)
        return values

    def replace(self, **changes: object) -> Self:
        """Return a copy of the card with some fields changed, and validate them."""
        return self.model_validate({**self.model_dump(), **changes})

    def __str__(self) -> str:
        steps = quantity(self.steps, "step") if self.steps else ""
        head = f"{self.kind} {self.outline}".rstrip()
        return " · ".join(filter(None, (head, self.family, steps, " ".join(self.trigger_words))))


class FileInfo(BaseModel):
    """Facts about a file of weights, from its tensor names, shapes and metadata. No weight is read for it.

    Attributes:
        card: Metadata of the overlay; for other files its kind is "checkpoint", "vae", "upscaler", "face-restorer",
            "face-detector" or "unknown".
        dialect: Program whose tensor names the file uses, such as "kohya" or "peft".
        container: File format: "safetensors", "zip", "legacy" or "picture".
        tensors: Number of tensors.
        parameters: Number of values in all tensors.
        precisions: Precisions of the tensors, such as "float16".
        aliases: Other names of the file, from its metadata.
        claimed_hashes: Hashes that the metadata states. They are not checked.
        details: Further metadata worth showing, as names and values.
        problem: Why the file cannot be opened, "" if it can or if it was not tried.
        warnings: The warnings of opening it.
        report: What opening an overlay's whole file found, see `velatura.formats.inspect.overlay.OverlayInfo`; empty if
            its values were not read yet.
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
    problem: LongText = ""
    warnings: tuple[LongText, ...] = ()
    report: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
