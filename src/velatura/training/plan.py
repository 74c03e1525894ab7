"""How an overlay is to be trained: every choice of a run as one value that is printed before it and kept beside it."""

import math
import tomllib
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from velatura.errors import BadPlan, UnknownName, VelaturaWarning
from velatura.training.rates import Rates

Precision = Literal["auto", "float32", "bfloat16"]


def _as_text(rate: object) -> object:
    return repr(rate) if isinstance(rate, float | int) else rate


class Plan(BaseModel):
    """A training run: what is learned is the overlay's to say, how it is learned is said here.

    One step takes batch_size pictures and moves the overlay once. What is drawn at a step (pictures, noise,
    timesteps) depends on the seed and the step alone, so a plan has one outcome on one machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    learning_rate: Annotated[str, BeforeValidator(_as_text)] = Field(
        default="1e-4", description='rates and the steps they hold until, "5e-5:100, 5e-6:1500, 5e-7"'
    )
    batch_size: int = Field(default=1, ge=1, description="pictures a step")
    seed: int = Field(default=0, ge=0, lt=2**63, description="what all chance is drawn from")
    pixels: int | None = Field(
        default=None, ge=16, description="width and height of the pictures; None: the base's own"
    )
    precision: Precision = Field(
        default="auto", description="of the frozen base and of products; weights learn in float32"
    )
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False, description="AdamW's")
    gradient_norm: float | None = Field(default=1.0, gt=0, description="longer gradients are shortened to this")
    min_snr: float | None = Field(default=None, gt=0, description="weigh losses by min(snr, this) / snr; 5 is usual")
    caption_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of captions left out, so that the style needs no words"
    )
    snapshot_every: int = Field(default=500, ge=0, description="steps between two snapshots; 0: only when stopped")
    keep_last: int = Field(default=0, ge=0, description="snapshots that are kept; 0: all")
    keep_every: int = Field(default=0, ge=0, description="steps between snapshots that are kept for good; 0: none")
    validation_pictures: int = Field(
        default=8, ge=0, description="tries of the fixed pictures, timesteps and noise at each snapshot; 0: none"
    )
    rescues: int = Field(
        default=4, ge=0, description="times that a run gone wrong goes back and on at a lower rate; 0: it stops"
    )
    rescue_factor: float = Field(default=0.2, gt=0, lt=1, description="what each rescue multiplies the rate by")
    loss_limit: float | None = Field(
        default=0.3, gt=0, description="mean loss of 50 steps that is too high, if the base had less; None: no limit"
    )
    preview_every: int = Field(default=0, ge=0, description="steps between two previews; 0: none")
    preview_prompt: str | None = Field(default=None, description="what previews show; None: the first caption")

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wrong(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            plan = validate(values)
        except ValidationError as error:
            raise BadPlan("; ".join(map(_complaint, error.errors()))) from None
        rates = plan.rates()
        if not all(math.isfinite(each.rate) and each.rate >= 0 for each in rates.segments):
            raise BadPlan(f'the rate "{plan.learning_rate}" is not a positive number throughout; 1e-4 is a usual one')
        if not any(each.rate for each in rates.segments):
            raise BadPlan(f'the rate "{plan.learning_rate}" is zero: nothing would be learned; 1e-4 is a usual one')
        for oddity in rates.oddities:
            warnings.warn(oddity, VelaturaWarning, stacklevel=3)
        return plan

    @classmethod
    def preset(cls, kind: str, family: str) -> Self:
        """What serves a kind of overlay on a family of bases, from presets/KIND.toml; raises UnknownName."""
        presets = {Path(each.name).stem: each for each in (files("velatura.training") / "presets").iterdir()}
        if kind not in presets:
            raise UnknownName.among("kind of overlay to train", kind, presets)
        table = tomllib.loads(presets[kind].read_text("utf-8"))
        return cls.model_validate(table["any"] | table.get(family, {}))

    def but(self, **changes: object) -> Self:
        """This plan with some fields changed, and checked again."""
        return self.model_validate(self.model_dump() | changes)

    def rates(self, *, start_step: int = 0) -> Rates:
        """The learning rate of every step."""
        return Rates.read(self.learning_rate, self.steps, start_step=start_step)


def _complaint(error: ErrorDetails) -> str:
    """One entry of pydantic's list of errors, in our words."""
    name = ".".join(map(str, error["loc"]))
    if name not in Plan.model_fields:
        return f"a plan has no {name or repr(error['input'])}; it has {', '.join(Plan.model_fields)}"
    meaning = Plan.model_fields[name].description
    return f"the plan's {name} is {error['input']!r}: {error['msg'].lower()} ({meaning})"
