"""How an overlay is to be trained: every choice of a run as one value that is printed before it and kept beside it."""

import math
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable
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

from velatura.datasets.templates import TEMPLATES, CaptionTemplate
from velatura.errors import BadPlan, UnknownName, VelaturaWarning
from velatura.training.rates import LearningRates, RateSchedule, schedule_factor

OptimizerName = Literal["adamw", "lion", "adafactor", "prodigy", "adamw8bit", "schedule_free"]
LossType = Literal["squared", "huber", "smooth_l1"]
HuberSchedule = Literal["snr", "exponential", "constant"]
LatentSamplingMode = Literal["mean", "once", "draw"]
PictureShape = Literal["square", "buckets"]
Precision = Literal["auto", "float32", "bfloat16"]

KIND_ALIASES = {"difference": "dreambooth"}  # how a difference is trained


def _as_text(rate: object) -> object:
    return repr(rate) if isinstance(rate, float | int) else rate


class Plan(BaseModel):
    """A training run: what is learned is the overlay's to say, how it is learned is said here.

    One step takes batch_size pictures and moves the overlay once. What is drawn at a step (pictures, noise,
    timesteps) depends on the seed and the step alone, so a plan has one outcome on one machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1, le=10**6, description="optimizer steps")
    learning_rate: Annotated[str, BeforeValidator(_as_text)] = Field(
        default="1e-4", description='rates and the steps they hold until, "5e-5:100, 5e-6:1500, 5e-7"'
    )
    text_rate: Annotated[str | None, BeforeValidator(_as_text)] = Field(
        default=None, description="the same for what acts in the text encoders; None: the learning rate"
    )
    word_rate: Annotated[str | None, BeforeValidator(_as_text)] = Field(
        default=None, description="the same for words that a LoRA learns along with its layers"
    )
    schedule: RateSchedule = Field(
        default="constant", description="shape that the rates are multiplied by, 1 at its top"
    )
    warmup: int = Field(default=0, ge=0, description="steps in which the rate rises from 0")
    cycles: int = Field(default=1, ge=1, description='times that the schedule "restarts" begins')
    optimizer: OptimizerName = Field(
        default="adamw", description="what moves the weights; Lion wants a third of AdamW's rate, Prodigy a rate of 1"
    )
    batch_size: int = Field(default=1, ge=1, le=4096, description="pictures a step")
    accumulation: int = Field(default=1, ge=1, le=4096, description="batches whose gradients make one step")
    seed: int = Field(default=0, ge=0, lt=2**63, description="what all chance is drawn from")
    pixels: int | None = Field(
        default=None, ge=16, le=4096, description="width and height of the pictures; None: the base's own"
    )
    shape: PictureShape = Field(
        default="square", description="the middle square of each picture, or buckets: of several sizes the nearest"
    )
    precision: Precision = Field(
        default="auto", description="of the frozen base and of products; weights learn in float32"
    )
    checkpointing: bool = Field(
        default=False, description="compute inside the UNet's blocks again on the way back: less memory, more time"
    )
    weight_decay: float = Field(
        default=0.01, ge=0, allow_inf_nan=False, description="share by which weights shrink, times the rate"
    )
    gradient_norm: float | None = Field(default=1.0, gt=0, description="longer gradients are shortened to this")
    min_snr: float | None = Field(default=None, gt=0, description="weigh losses by min(snr, this) / snr; 5 is usual")
    debiased: bool = Field(default=False, description="weigh losses by 1 / sqrt(snr), so that noisy timesteps rule")
    velocity_as_noise: bool = Field(
        default=False, description="weigh losses by snr / (snr + 1), where the base predicts velocity"
    )
    noise_as_velocity: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="add losses times this times (snr + 1) / snr, if it does not",
    )
    zero_terminal_snr: bool = Field(
        default=False, description="stretch the schedule until it ends in noise alone, for bases that predict velocity"
    )
    loss: LossType = Field(default="squared", description="error that is made small; Huber's counts outliers less")
    huber_threshold: float = Field(default=0.1, gt=0, le=1, description="error above which Huber's grows evenly")
    huber_schedule: HuberSchedule = Field(default="snr", description="how that threshold comes down with the noise")
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="noise that is the same all over a picture, for dark and bright; 0.05"
    )
    pyramid_noise: float = Field(
        default=0.0, ge=0, lt=1, description="add coarser noises, each weaker by this, for large shapes; 0.3"
    )
    input_perturbation: float = Field(
        default=0.0, ge=0, le=1, description="more noise in pictures than is to be told, as when sampling errs; 0.1"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="keep an average of the weights, this much of it at each step; 0.999"
    )
    masks: bool = Field(default=True, description="let masks and alpha channels say which places count")
    latents: LatentSamplingMode = Field(
        default="mean", description="of the autoencoder's distribution: its mean, one draw kept, or a draw at each step"
    )
    cache: bool = Field(default=True, description="keep encoded pictures and captions on disk for the next run")
    class_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="how much class pictures (reg/) count beside the others"
    )
    template: str = Field(
        default="captions",
        description='sentences around captions: captions, style, subject, ..., or sentences, "[name], [filewords]"',
    )
    shuffle_tags: bool = Field(
        default=False, description="bring the parts of a caption between commas into another order each time"
    )
    tag_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of those parts left out each time")
    keep_tags: int = Field(default=0, ge=0, description="the first of them that stay in their place, always")
    caption_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of captions left out, so that the style needs no words"
    )
    snapshot_every: int = Field(default=500, ge=0, description="steps between two snapshots; 0: only when stopped")
    keep_last: int = Field(default=0, ge=0, description="snapshots that are kept; 0: all")
    keep_every: int = Field(default=0, ge=0, description="steps between snapshots that are kept for good; 0: none")
    validation_pictures: int = Field(
        default=8,
        ge=0,
        le=4096,
        description="tries of the fixed pictures, timesteps and noise at each snapshot; 0: none",
    )
    validation_folder: str | None = Field(
        default=None, description="pictures for those tries that are never learned from; None: those that are"
    )
    rescues: int = Field(
        default=4, ge=0, le=100, description="times that a run gone wrong goes back and on at a lower rate; 0: it stops"
    )
    rescue_factor: float = Field(default=0.2, gt=0, lt=1, description="what each rescue multiplies the rate by")
    loss_limit: float | None = Field(
        default=0.3, gt=0, description="mean loss of 50 steps that is too high, if the base had less; None: no limit"
    )
    a1111: bool = Field(
        default=False, description="also write what A1111's web UI goes on from: .pt, .pt.optim, its table of losses"
    )
    tensorboard: bool = Field(default=False, description="also draw the losses for TensorBoard, if it is installed")
    preview_every: int = Field(default=0, ge=0, description="steps between two previews; 0: none")
    preview_prompt: str | None = Field(
        default=None, description="what previews show, one prompt a line; None: the first caption"
    )
    preview_seeds: int = Field(default=1, ge=1, le=64, description="pictures of each of them, from the seed on")

    @model_validator(mode="wrap")
    @classmethod
    def _validate_plan(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            plan = validate(values)
        except ValidationError as error:
            raise BadPlan("; ".join(map(_describe_error, error.errors()))) from None
        rates = plan.rates()
        _check_rates(plan.learning_rate, rates)
        for rate_text in filter(None, (plan.text_rate, plan.word_rate)):
            _check_rates(rate_text, LearningRates.read(rate_text, plan.steps))
        if plan.optimizer == "prodigy" and (plan.text_rate or plan.word_rate):
            raise BadPlan("Prodigy finds one rate for all: leave out text_rate and word_rate, or plan adamw")
        plan.caption_template("")
        _check_requirements(plan)
        if plan.warmup >= rates.end and plan.warmup:
            raise BadPlan(f"the warm-up of {plan.warmup} steps is as long as the training of {rates.end}: shorten it")
        for oddity in rates.oddities:
            warnings.warn(oddity, VelaturaWarning, stacklevel=3)
        return plan

    @classmethod
    def preset(cls, kind: str, family: str, purpose: str = "style") -> Self:
        """What serves a kind of overlay on a family of bases, from presets/KIND-PURPOSE.toml; raises UnknownName."""
        presets = {Path(file.name).stem: file for file in (files("velatura.training") / "presets").iterdir()}
        kinds = {name.partition("-")[0] for name in presets}
        kind = KIND_ALIASES.get(kind, kind)
        if kind not in kinds:
            raise UnknownName.with_suggestions("kind of overlay to train", kind, kinds)
        if f"{kind}-{purpose}" not in presets:
            purposes = [name.partition("-")[2] for name in presets if name.startswith(f"{kind}-")]
            raise UnknownName.with_suggestions(f"purpose of a {kind}", purpose, purposes)
        table = tomllib.loads(presets[f"{kind}-{purpose}"].read_text("utf-8"))
        return cls.model_validate(table["any"] | table.get(family, {}))

    def replace(self, **changes: object) -> Self:
        """This plan with some fields changed, and checked again."""
        return self.model_validate(self.model_dump() | changes)

    def rates(self, *, start_step: int = 0) -> LearningRates:
        """The learning rate of every step."""
        return LearningRates.read(self.learning_rate, self.steps, start_step=start_step)

    def step_rates(self) -> list[float]:
        """The learning rate of every step, as the schedule shapes it."""
        return self._apply_schedule(self.rates())

    def part_rates(self) -> dict[str, list[float]]:
        """The same of parts with rates of their own; they stand still where those end before the learning rate."""
        rate_texts = {"text": self.text_rate, "words": self.word_rate}
        count = self.rates().end
        rates_by_part = {
            part: [*LearningRates.read(rate, self.steps)][:count]
            for part, rate in rate_texts.items()
            if rate is not None
        }
        return {
            part: self._apply_schedule([*rates, *[0.0] * (count - len(rates))]) for part, rates in rates_by_part.items()
        }

    def caption_template(self, name: str) -> CaptionTemplate:
        """How what is said of a picture is made of its caption; name: what [name] stands for."""
        if self.template not in TEMPLATES and not re.search(r"\s|\[name\]|\[filewords\]", self.template):
            raise UnknownName.with_suggestions("template", self.template, TEMPLATES)
        lines = TEMPLATES.get(self.template) or tuple(self.template.splitlines())
        return CaptionTemplate(
            lines,
            name,
            shuffles_tags=self.shuffle_tags,
            tag_dropout=self.tag_dropout,
            keep_tags=self.keep_tags,
        )

    def _apply_schedule(self, rates: Iterable[float]) -> list[float]:
        end, options = self.rates().end, {"warmup": self.warmup, "cycles": self.cycles}
        return [rate * schedule_factor(self.schedule, step, end, **options) for step, rate in enumerate(rates)]


# Fields that do nothing unless another one is as it must be: what that is, and whether it is
FIELD_REQUIREMENTS: dict[str, tuple[str, Callable[[Plan], bool]]] = {
    "cycles": ("the schedule restarts", lambda plan: plan.schedule == "restarts"),
    "huber_threshold": ("the loss huber or smooth_l1", lambda plan: plan.loss != "squared"),
    "huber_schedule": ("the loss huber or smooth_l1", lambda plan: plan.loss != "squared"),
    "keep_tags": ("shuffle_tags or tag_dropout", lambda plan: plan.shuffle_tags or plan.tag_dropout > 0),
    "validation_folder": ("validation_pictures", lambda plan: plan.validation_pictures > 0),
    "preview_prompt": ("preview_every", lambda plan: plan.preview_every > 0),
    "preview_seeds": ("preview_every", lambda plan: plan.preview_every > 0),
}


def _check_requirements(plan: Plan) -> None:
    for field, (requirement, is_used) in FIELD_REQUIREMENTS.items():
        value = getattr(plan, field)
        if value != Plan.model_fields[field].default and not is_used(plan):
            raise BadPlan(
                f"the plan's {field} is {value!r}, and does nothing without {requirement}: plan both, or neither"
            )


def _check_rates(text: str, rates: LearningRates) -> None:
    """Refuse rates that cannot be learned at."""
    if not all(math.isfinite(segment.rate) and segment.rate >= 0 for segment in rates.segments):
        raise BadPlan(f'the rate "{text}" is not a positive number throughout; 1e-4 is a usual one')
    if not any(segment.rate for segment in rates.segments):
        raise BadPlan(f'the rate "{text}" is zero: nothing would be learned; 1e-4 is a usual one')


def _describe_error(error: ErrorDetails) -> str:
    """One entry of pydantic's list of errors, in our words."""
    name = ".".join(map(str, error["loc"]))
    if name not in Plan.model_fields:
        return f"a plan has no {name or repr(error['input'])}; it has {', '.join(Plan.model_fields)}"
    meaning = Plan.model_fields[name].description
    return f"the plan's {name} is {error['input']!r}: {error['msg'].lower()} ({meaning})"
