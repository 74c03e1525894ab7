"""How models are to be merged, and how the result is written: two values that say all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from velatura.errors import BadRecipe, UnknownName
from velatura.merging.checkpoints.modes import MODES, MergeMode

ConfigSource = Literal["any", "A", "B", "C", "none"]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]

MODEL_COUNT_NAMES = {1: "one model", 2: "two models", 3: "three models"}


class MergeOptions(BaseModel):
    """How the weights are mixed.

    strength: of the second model, or of its difference; blocks: strengths of blocks of the UNet, as Blocks reads them.
    share: what is kept of a difference, the largest of it by TIES and any of it by DARE; seed: of DARE's chance.
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
        """Fill in what is usual for a mode, which itself follows from the count of models; raises BadRecipe."""
        mode_name = mode or {1: "none", 2: "weighted-sum"}.get(model_count, "add-difference")
        if mode_name not in MODES:
            raise UnknownName.with_suggestions("way to merge", mode_name, MODES)
        merge_mode = MODES[mode_name]
        _check_options(mode_name, merge_mode, model_count, strength=strength, blocks=blocks, share=share)
        values = {
            "strength": merge_mode.strength if strength is None else strength,
            "share": (merge_mode.share or 1.0) if share is None else share,
        }
        try:
            return cls(mode=mode_name, blocks=blocks, seed=seed, **values)  # pyright: ignore[reportArgumentType]
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"][:1]))
            raise BadRecipe(f"{field} {str(problem['input'])[:40]!r}: {problem['msg'].lower()}") from None

    @property
    def merge_mode(self) -> MergeMode:
        """The way it is mixed."""
        return MODES[self.mode]

    def title(self, names: tuple[str, ...]) -> str:
        """What A1111 would call the result: 0.7(A) + 0.3(B), A + 0.3(B - C), A."""
        strength = round(self.strength, 2)
        if self.mode == "none":
            return names[0]
        if self.mode == "weighted-sum":
            return f"{round(1 - self.strength, 2)}({names[0]}) + {strength}({names[1]})"
        if self.mode == "add-difference":
            return f"{names[0]} + {strength}({names[1]} - {names[2]})"
        return f"{self.merge_mode.title} {strength}({', '.join(names)})"


class Saving(BaseModel):
    """What is done to a merge on its way into a file.

    dtype: the precision of all its weights, if not their own. vae: an autoencoder's file, which replaces what was
    merged of it. discard: a regular expression; tensors in whose names it is found are left out. config: whose .yaml is
    put beside the file, "any" being the first that has one. metadata: fields of your own, over those that are copied
    from the models and the recipe.
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
            raise BadRecipe(f"discard {text[:40]!r} is no regular expression ({error}): see Python's re") from None
        return text


def _check_options(mode_name: str, merge_mode: MergeMode, model_count: int, **options: object) -> None:
    """Refuse what a mode has no use for, and a number of models that it cannot take."""
    if model_count not in merge_mode.model_counts:
        allowed = " or ".join(MODEL_COUNT_NAMES[count] for count in merge_mode.model_counts)
        raise BadRecipe(f"{mode_name} takes {allowed}, and {model_count} are given: name them, or choose another mode")
    if options["share"] is not None and merge_mode.share is None:
        share_modes = " and ".join(mode for mode, other in MODES.items() if other.share)
        raise BadRecipe(f"{mode_name} keeps whole differences: leave the share out, which is for {share_modes}")
    if model_count == 1 and (options["strength"] is not None or options["blocks"] is not None):
        raise BadRecipe("one model alone is mixed with nothing: leave strengths out, or give a second one")
    strength = options["strength"]
    if merge_mode.is_interpolation and isinstance(strength, int | float) and not 0 <= strength <= 1:
        raise BadRecipe(
            f"{mode_name} goes from 0 to 1, and {strength:g} is beyond: choose another mode, or a strength between"
        )
