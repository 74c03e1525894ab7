"""The two values that define a merge: how the weights are mixed, and how the result is saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from velatura.errors import BadRecipe, UnknownName, explain_validation_error
from velatura.merging.checkpoints.modes import MODES, MergeMode

ConfigSource = Literal["any", "A", "B", "C", "none"]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]

MODEL_COUNT_NAMES = {1: "one model", 2: "two models", 3: "three models"}
DEFAULT_MODES = {1: "none", 2: "weighted-sum", 3: "add-difference"}  # by the count of models


class MergeOptions(BaseModel):
    """Mode, strengths and other numbers by which the weights of models are mixed.

    Attributes:
        mode: A row of MODES.
        strength: The strength of model B, or of the difference that is added.
        blocks: Block weights, as `UNetBlocks.strengths` reads them.
        share: The share of a difference that is kept: the largest values by TIES, random ones by DARE.
        seed: Seed of DARE's random choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str
    strength: FiniteFloat
    blocks: str | dict[str, FiniteFloat] | tuple[FiniteFloat, ...] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0

    @classmethod
    def with_defaults(
        cls,
        model_count: int,
        *,
        mode: str | None = None,
        strength: float | None = None,
        blocks: object = None,
        share: float | None = None,
        seed: int = 0,
    ) -> Self:
        """Build options, with the defaults of the mode for what is None; the default mode depends on `model_count`.

        Raises:
            UnknownName: The mode does not exist.
            BadRecipe: The mode cannot take that many models or such a value, or has no use for an option.
        """
        mode_name = mode or DEFAULT_MODES[model_count]
        if mode_name not in MODES:
            raise UnknownName.with_suggestions("merge mode", mode_name, MODES)
        merge_mode = MODES[mode_name]
        _check_options(mode_name, merge_mode, model_count, strength=strength, blocks=blocks, share=share)
        values = {
            "mode": mode_name,
            "strength": merge_mode.strength if strength is None else strength,
            "blocks": blocks,
            "share": (merge_mode.share or 1.0) if share is None else share,
            "seed": seed,
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise BadRecipe(explain_validation_error(error, "merge", dict.fromkeys(cls.model_fields))) from None

    @property
    def merge_mode(self) -> MergeMode:
        """Row of the mode in MODES."""
        return MODES[self.mode]

    def title(self, names: tuple[str, ...]) -> str:
        """Return A1111's title for the result: 0.7(A) + 0.3(B), A + 0.3(B - C), A."""
        strength = round(self.strength, 2)
        if self.mode == "none":
            return names[0]
        if self.mode == "weighted-sum":
            return f"{round(1 - self.strength, 2)}({names[0]}) + {strength}({names[1]})"
        if self.mode == "add-difference":
            return f"{names[0]} + {strength}({names[1]} - {names[2]})"
        return f"{self.merge_mode.title} {strength}({', '.join(names)})"


class Saving(BaseModel):
    """Choices for saving a merge: precision, VAE, header.

    Attributes:
        dtype: The precision of all weights; None keeps the models' own.
        vae: The file or folder of a VAE, which replaces the merged one.
        discard: A regular expression; tensors whose keys it matches anywhere are left out.
        config: The model whose .yaml file is copied beside the result; "any" is the first model that has one.
        metadata: Fields for the header, which override those copied from the models and the merge recipe.
        copies_metadata: Copy the models' metadata to the header.
        keeps_recipe: Write A1111's merge recipe to the header.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    vae: Path | None = None
    discard: str = ""
    config: ConfigSource = "any"
    metadata: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    copies_metadata: bool = True
    keeps_recipe: bool = True

    @field_validator("discard")
    @classmethod
    def _check_regex(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise BadRecipe(
                f"discard {text[:40]!r} is not a regular expression ({error}): see the documentation of Python's re"
            ) from None
        return text


def _check_options(mode_name: str, merge_mode: MergeMode, model_count: int, **options: object) -> None:
    """Refuse a count of models that a mode cannot take, and options that it has no use for."""
    if model_count not in merge_mode.model_counts:
        allowed = " or ".join(MODEL_COUNT_NAMES[count] for count in merge_mode.model_counts)
        raise BadRecipe(
            f"{mode_name} takes {allowed}, and {model_count} are given: give as many, or choose another mode"
        )
    if options["share"] is not None and merge_mode.share is None:
        share_modes = " and ".join(mode for mode, other in MODES.items() if other.share)
        raise BadRecipe(f"{mode_name} keeps whole differences: leave the share out, which is for {share_modes}")
    if model_count == 1 and (options["strength"] is not None or options["blocks"] is not None):
        raise BadRecipe("a single model is not mixed with anything: leave strengths out, or give a second one")
    strength = options["strength"]
    if merge_mode.is_interpolation and isinstance(strength, int | float) and not 0 <= strength <= 1:
        raise BadRecipe(
            f"{mode_name} takes strengths from 0 to 1, not {strength:g}: choose one of those, or another mode"
        )
