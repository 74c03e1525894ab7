"""Every choice of a training run as one immutable value, `Plan`, which is printed before the run and saved with it."""

import math
import os
import re
import tomllib
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

from velatura.arguments import check_arguments
from velatura.datasets.templates import TEMPLATES, CaptionLines, CaptionTemplate
from velatura.errors import BadFile, BadPlan, UnknownName, explain_validation_error, quantity, warn
from velatura.files import open_for_reading, parse_json
from velatura.sampling.recipe.fields import read_percent
from velatura.training.rates import MAX_RATE, LearningRates, RateSchedule, check_rates, find_unreached, schedule_factor

OptimizerName = Literal["adamw", "lion", "adafactor", "prodigy", "adamw8bit", "schedule_free"]
LossType = Literal["squared", "huber", "smooth_l1"]
HuberSchedule = Literal["snr", "exponential", "constant"]
LatentSamplingMode = Literal["mean", "once", "draw"]
PictureShape = Literal["square", "buckets"]
Precision = Literal["auto", "float32", "bfloat16"]
Share = Annotated[float, BeforeValidator(read_percent), Field(ge=0, lt=1)]

KIND_ALIASES = {"difference": "dreambooth"}  # a difference is trained with the presets of DreamBooth

HIGH_RATE = 0.05  # A1111 suggests 0.005 for embeddings and 5e-5 for hypernetworks


def _as_text(rate: object) -> object:
    return repr(rate) if isinstance(rate, float | int) else rate


class Plan(BaseModel):
    """Options of a training run: the overlay defines what is trained, the plan how.

    One step trains on `batch_size` times `accumulation` pictures and updates the weights once. The pictures, noise and
    timesteps of a step depend only on the seed and the step, so a plan has one result on one machine.

    Raises:
        BadPlan: A field is unknown or out of range, two fields contradict each other, or a field would have no effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1, le=10**6, description="optimizer steps")
    learning_rate: Annotated[str, BeforeValidator(_as_text)] = Field(
        default="1e-4", description='rates, and the step at which each ends: "5e-5:100, 5e-6:1500, 5e-7"'
    )
    text_rate: Annotated[str | None, BeforeValidator(_as_text)] = Field(
        default=None, description="learning rate in the text encoders; None: that of learning_rate"
    )
    word_rate: Annotated[str | None, BeforeValidator(_as_text)] = Field(
        default=None, description="learning rate of words that a LoRA learns with its layers; None: learning_rate"
    )
    schedule: RateSchedule = Field(default="constant", description="shape that the rates are multiplied by, at most 1")
    warmup: int = Field(default=0, ge=0, description="steps over which the rate rises from 0")
    cycles: int = Field(default=1, ge=1, description='number of cosine cycles of the schedule "restarts"')
    optimizer: OptimizerName = Field(
        default="adamw", description="Lion needs about a third of AdamW's rate, Prodigy a rate of 1"
    )
    batch_size: int = Field(default=1, ge=1, le=4096, description="pictures per batch")
    accumulation: int = Field(default=1, ge=1, le=4096, description="batches per step, whose gradients are added up")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of all random numbers")
    pixels: int | None = Field(
        default=None, ge=16, le=4096, description="width and height of the pictures; None: the base's default size"
    )
    shape: PictureShape = Field(
        default="square", description="crop the middle square, or crop to the nearest of several sizes (buckets)"
    )
    precision: Precision = Field(
        default="auto", description="precision of the frozen base; the overlay trains in float32"
    )
    checkpointing: bool = Field(default=False, description="gradient checkpointing in the UNet: less memory, more time")
    weight_decay: float = Field(
        default=0.01, ge=0, allow_inf_nan=False, description="decoupled weight decay, multiplied by the rate"
    )
    gradient_norm: float | None = Field(
        default=1.0, gt=0, description="largest norm of the gradients; None: no clipping"
    )
    min_snr: float | None = Field(
        default=None, gt=0, description="weight the loss by min(snr, this) / snr; 5 is usual; None: off"
    )
    debiased: bool = Field(default=False, description="weight the loss by 1 / sqrt(snr), which favours noisy timesteps")
    inverse_snr: float = Field(
        default=0.0, ge=0, le=2, description="weight the loss by (1 / snr) to this power, at most by 10; 0.75 is usual"
    )
    timestep_bias: float = Field(
        default=1.0, ge=1, le=10, description="draw noisy timesteps more often: 1 is uniform, 3 is cubic"
    )
    velocity_as_noise: bool = Field(
        default=False, description="weight the loss by snr / (snr + 1), for bases that predict velocity"
    )
    noise_as_velocity: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="add this times (snr + 1) / snr times the loss, for bases that predict noise",
    )
    zero_terminal_snr: bool = Field(
        default=False, description="rescale the noise schedule to zero terminal SNR, for bases that predict velocity"
    )
    loss: LossType = Field(default="squared", description="the Huber losses count outliers less")
    huber_threshold: float = Field(default=0.1, gt=0, le=1, description="error above which a Huber loss grows linearly")
    huber_schedule: HuberSchedule = Field(default="snr", description="how that threshold falls as the noise grows")
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="offset noise, for very dark and very bright pictures; 0.05 is usual"
    )
    pyramid_noise: float = Field(
        default=0.0, ge=0, lt=1, description="multi-resolution noise, each level weaker by this factor; 0.3 is usual"
    )
    input_perturbation: float = Field(
        default=0.0, ge=0, le=1, description="extra noise in the input but not in the target; 0.1 is usual"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="save a moving average of the weights, of this decay; 0.999 is usual"
    )
    masks: bool = Field(default=True, description="weight the loss by masks and alpha channels")
    flip: bool = Field(
        default=False,
        description="also learn the mirror image of every picture whose caption does not say left or right",
    )
    latents: LatentSamplingMode = Field(
        default="mean",
        description="mean of the VAE's distribution, one sample per picture (once), or one per step (draw)",
    )
    cache: bool = Field(default=True, description="keep encoded pictures and captions on disk for later runs")
    class_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the loss on class pictures (reg/)"
    )
    template: str = Field(
        default="captions",
        description='how a text is built from a caption: captions, style, subject, ..., or "[name], [filewords]"',
    )
    shuffle_tags: bool = Field(default=False, description="shuffle the comma-separated tags of captions at each step")
    tag_dropout: Share = Field(default=0.0, description="share of tags left out at each step")
    keep_tags: int = Field(default=0, ge=0, description="first tags that are neither shuffled nor left out")
    caption_lines: CaptionLines = Field(
        default="all",
        description="of captions with several lines: all as one text, the first, or a random one per step",
    )
    caption_dropout: Share = Field(
        default=0.0, description="share of captions left out, so that a style works without words"
    )
    image_dropout: Share = Field(
        default=0.05, description="share of pictures before an edit left out, for pix2pix models"
    )
    snapshot_every: int = Field(default=500, ge=0, description="steps between two snapshots; 0: only when stopped")
    keep_last: int = Field(default=0, ge=0, description="number of newest snapshots to keep; 0: all")
    keep_every: int = Field(default=0, ge=0, description="steps between snapshots that are never removed; 0: none")
    validation_pictures: int = Field(
        default=8, ge=0, le=4096, description="pictures in the validation loss at each snapshot; 0: no validation"
    )
    validation_folder: str | None = Field(
        default=None, description="validation pictures that are not trained on; None: the training pictures"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="snapshots without a lower validation loss after which the training ends, with the best one as the "
        "result; 0: never",
    )
    rescues: int = Field(
        default=4, ge=0, le=100, description="times that a diverging run goes back and continues at a lower rate"
    )
    rescue_factor: float = Field(default=0.2, gt=0, lt=1, description="factor on the learning rate at each rescue")
    loss_limit: float | None = Field(
        default=0.3, gt=0, description="mean loss over 50 steps that counts as diverged; None: no limit"
    )
    a1111: bool = Field(
        default=False, description="also write files that A1111 can continue from: .pt, .pt.optim, a table of losses"
    )
    tensorboard: bool = Field(default=False, description="also log the losses for TensorBoard, if it is installed")
    preview_every: int = Field(default=0, ge=0, description="steps between two previews; 0: none")
    preview_prompt: str | None = Field(
        default=None, description="prompts of the previews, one per line; None: the first caption"
    )
    preview_seeds: int = Field(default=1, ge=1, le=64, description="pictures per preview prompt, with seeds in a row")
    end_sheet: bool | None = Field(
        default=None,
        description="paint a sheet of several strengths at the end; None: where it is cheap, on the tiny base or a GPU",
    )
    tune: bool | None = Field(
        default=None,
        description="find the strength that serves best at the end; None: where it is cheap, on the tiny base or a GPU",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _validate_plan(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            plan = validate(values)
        except ValidationError as error:
            descriptions = {name: field.description for name, field in cls.model_fields.items()}
            raise BadPlan(explain_validation_error(error, "plan", descriptions)) from None
        _check_rates(plan)
        _check_requirements(plan)
        plan.caption_template("")  # raises for an unknown template
        for message in plan.rate_warnings():
            warn(message)
        return plan

    @classmethod
    @check_arguments()
    def preset(cls, kind: str, family: str, purpose: str = "style") -> Self:
        """Read the preset for a kind of overlay from presets/KIND-PURPOSE.toml.

        Args:
            kind: "hypernet", "embedding", "lora", "dreambooth" or "difference".
            family: The base's family, such as "SD1"; a family without a section of its own gets the general values.
            purpose: What is to be learned, "style" or "subject".

        Raises:
            UnknownName: No preset exists for this kind or purpose.
        """
        presets = {Path(file.name).stem: file for file in (files("velatura.training") / "presets").iterdir()}
        kinds = {name.partition("-")[0] for name in presets}
        kind = KIND_ALIASES.get(kind, kind)
        if kind not in kinds:
            raise UnknownName.with_suggestions("kind of overlay to train", kind, kinds)
        if f"{kind}-{purpose}" not in presets:
            purposes = [name.partition("-")[2] for name in presets if name.startswith(f"{kind}-")]
            raise UnknownName.with_suggestions(f"purpose of a {kind}", purpose, purposes)
        table = tomllib.loads(presets[f"{kind}-{purpose}"].read_text("utf-8"))
        plan = cls.model_validate(table["any"] | table.get(family, {}))
        plan.model_fields_set.clear()  # nobody chose these values: see range_warnings
        return plan

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a plan that a run wrote, runs/inca/plan.json, or one of the same form.

        Args:
            path: The file, or the run folder that has it.

        Raises:
            BadFile: The file is missing, or is not JSON.
            BadPlan: It holds other fields or values than a plan has.
        """
        path = Path(path).expanduser()
        path = path / "plan.json" if path.is_dir() else path
        with open_for_reading(path) as file:
            try:
                fields = parse_json(file.read())
            except (ValueError, RecursionError) as error:
                raise BadFile(f"{path} is not JSON ({error}): name the plan.json of a run") from None
        if not isinstance(fields, dict):
            raise BadPlan(f"{path} is not a plan: name the plan.json of a run, which holds fields such as steps")
        plan = cls.model_validate(fields)
        if fields.keys() >= cls.model_fields.keys():  # as a run wrote it, which warned of it then
            plan.model_fields_set.clear()
        return plan

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed; the copy is validated again."""
        plan = self.model_validate(self.model_dump() | changes)
        plan.model_fields_set.intersection_update(self.model_fields_set | changes.keys())
        return plan

    def rates(self) -> LearningRates:
        """Return the learning rate of every step, before the schedule is applied."""
        return LearningRates.parse(self.learning_rate, self.steps)

    def rate_warnings(self) -> list[str]:
        """Return what the rates say that is probably not meant; only `learning_rate` can end the training."""
        messages = list(self.rates().warnings)
        for text in (self.text_rate, self.word_rate):
            if text is not None:
                messages += LearningRates.parse(text, self.steps, ends_training=False).warnings
        highest = max((segment.rate for segment in self.rates().segments), default=0.0)
        if highest >= HIGH_RATE and self.optimizer != "prodigy":  # which multiplies the rate that it finds by this one
            messages.append(
                f'the rate "{self.learning_rate}" goes up to {highest:g}, far above what trainings usually take: '
                "it will probably diverge, so lower it"
            )
        return messages

    def range_warnings(self) -> list[str]:
        """Return what a person chose that lies beyond the last step, and so never happens.

        Values of a preset are not warned of: a run of fewer steps leaves out the end of them.
        """
        end, chosen = self.rates().end, self.model_fields_set
        messages = [
            f"{field} = {getattr(self, field)} is more than the {quantity(end, 'step')} of the run, so {result}: "
            f"choose {end} or less, or train longer"
            for field, result in RESULTS_BEYOND_THE_END.items()
            if field in chosen and getattr(self, field) > end
        ]
        for field in ("learning_rate", "text_rate", "word_rate"):
            text = getattr(self, field)
            unreached = find_unreached(text, end) if field in chosen and text is not None else []
            if unreached:
                messages.append(
                    f'"{", ".join(unreached)}" in the rate "{text}" is never reached in {quantity(end, "step")}: '
                    'train longer, or give shares of the steps, "5e-5:10%, 5e-6"'
                )
        return messages

    def step_rates(self) -> list[float]:
        """Return the learning rate of every step, multiplied by the schedule."""
        return self._apply_schedule(self.rates())

    def part_rates(self) -> dict[str, list[float]]:
        """Return the rates of `text` and `words` where they have their own, multiplied by the schedule.

        A rate that ends before the training does is 0 from there on.
        """
        step_count = self.rates().end
        rates_by_part: dict[str, list[float]] = {}
        for part, text in (("text", self.text_rate), ("words", self.word_rate)):
            if text is not None:
                rates = list(LearningRates.parse(text, self.steps))[:step_count]
                rates += [0.0] * (step_count - len(rates))
                rates_by_part[part] = self._apply_schedule(rates)
        return rates_by_part

    def caption_template(self, name: str) -> CaptionTemplate:
        """Return the template that turns a caption into the text of a training step.

        Args:
            name: The text that replaces [name].

        Raises:
            UnknownName: `template` is neither the name of a template nor a text with spaces or placeholders.
        """
        if self.template not in TEMPLATES and not re.search(r"\s|\[name\]|\[filewords\]", self.template):
            raise UnknownName.with_suggestions("template", self.template, TEMPLATES)
        lines = TEMPLATES.get(self.template) or tuple(self.template.splitlines())
        return CaptionTemplate(
            lines,
            name,
            shuffles_tags=self.shuffle_tags,
            tag_dropout=self.tag_dropout,
            keep_tags=self.keep_tags,
            caption_lines=self.caption_lines,
        )

    def _apply_schedule(self, rates: Iterable[float]) -> list[float]:
        def factor(step: int) -> float:
            return schedule_factor(self.schedule, step, end, warmup=self.warmup, cycles=self.cycles)

        end = self.rates().end
        return [rate * factor(step) for step, rate in enumerate(rates)]


# Intervals longer than the run, and what they mean for it
RESULTS_BEYOND_THE_END = {
    "preview_every": "only the untrained overlay is previewed",
    "snapshot_every": "no snapshot is written before the end",
    "keep_every": "no snapshot is kept by it",
}

# Fields that have no effect unless another field is set: that field in words, and a test of it
FIELD_REQUIREMENTS: dict[str, tuple[str, Callable[[Plan], bool]]] = {
    "cycles": ("the schedule restarts", lambda plan: plan.schedule == "restarts"),
    "huber_threshold": ("the loss huber or smooth_l1", lambda plan: plan.loss != "squared"),
    "huber_schedule": ("the loss huber or smooth_l1", lambda plan: plan.loss != "squared"),
    "keep_tags": ("shuffle_tags or tag_dropout", lambda plan: plan.shuffle_tags or plan.tag_dropout > 0),
    "validation_folder": ("validation_pictures", lambda plan: plan.validation_pictures > 0),
    "patience": (
        "validation_pictures and snapshot_every",
        lambda plan: plan.validation_pictures > 0 and plan.snapshot_every > 0,
    ),
    "preview_prompt": ("preview_every", lambda plan: plan.preview_every > 0),
    "preview_seeds": ("preview_every", lambda plan: plan.preview_every > 0),
}


def _check_requirements(plan: Plan) -> None:
    for field, (requirement, is_met) in FIELD_REQUIREMENTS.items():
        value = getattr(plan, field)
        if value != Plan.model_fields[field].default and not is_met(plan):
            raise BadPlan(f"{field} = {value!r} has no effect without {requirement}: set both, or neither")


def _check_rates(plan: Plan) -> None:
    """Refuse rates that nobody can have meant, and rates that contradict other fields."""
    max_rate = math.inf if plan.optimizer == "prodigy" else MAX_RATE  # Prodigy multiplies the rate that it finds
    for text in (plan.learning_rate, plan.text_rate, plan.word_rate):
        if text is not None:
            check_rates(text, plan.steps, max_rate=max_rate)
    if plan.optimizer == "prodigy" and (plan.text_rate is not None or plan.word_rate is not None):
        raise BadPlan("Prodigy finds one rate for all weights: leave out text_rate and word_rate, or choose adamw")
    end = plan.rates().end
    if plan.warmup and plan.warmup >= end:
        raise BadPlan(f"the warm-up of {plan.warmup} steps is as long as the training of {end} steps: shorten it")
