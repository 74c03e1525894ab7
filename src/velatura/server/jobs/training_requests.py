"""What trainings and studies ask for: the overlay, its dataset and its plan; what is compared, and what is tuned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidatorFunctionWrapHandler, field_validator

from velatura.errors import VelaturaError
from velatura.server.jobs.requests import JobRequest, Name, OverlayWithStrength
from velatura.studies.overlay_arguments import (
    DifferenceArguments,
    EmbeddingArguments,
    HypernetArguments,
    InitialText,
    LoraArguments,
)
from velatura.training.plan import Share

StudyKind = Literal["embedding", "hypernet", "lora", "dreambooth", "aesthetic"]
MAX_MINUTES = 10080  # a week
DEFAULT_MINUTES = 12.0  # of a study


class OverlayOptions(BaseModel):
    """Options of the overlay that is trained: the arguments of `velatura train`, and what else a request may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _name_field(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """Let an error of ours, as of an unknown name, be one of its field, which the answer then names."""
    try:
        return validate(value)
    except VelaturaError as error:
        raise ValueError(str(error)) from None


class HypernetOptions(OverlayOptions, HypernetArguments):
    """A new hypernetwork, or one of the library that is trained further."""

    kind: Literal["hypernet"]
    dropout: Share | Annotated[tuple[Share, ...], Field(max_length=32)] = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]
    start: Name | None = Field(default=None, description="a hypernetwork of the library that is trained further")

    _names = field_validator("activation", "init", mode="wrap")(_name_field)


class EmbeddingOptions(OverlayOptions, EmbeddingArguments):
    """A new embedding."""

    kind: Literal["embedding"]
    start: Name | None = Field(default=None, description="an embedding of the library that is trained further")


class LoraOptions(OverlayOptions, LoraArguments):
    """A new LoRA or one of its kin, perhaps with a word that it learns too."""

    kind: Literal["lora"]
    word: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    vectors: int = Field(default=4, ge=1, le=75, description="vectors that the word stands for")
    initial: InitialText = Field(default="*", description="what the word begins with")

    _names = field_validator("algorithm", mode="wrap")(_name_field)


class DreamboothOptions(OverlayOptions, DifferenceArguments):
    """Difference of a whole base; with a class prompt the base paints pictures of what it keeps."""

    kind: Literal["dreambooth"]
    class_prompt: Annotated[str, Field(max_length=1000)] | None = None
    class_pictures: int = Field(default=100, ge=1, le=10000)
    form: Literal["difference", "checkpoint", "folder"] = "difference"


class AestheticOptions(OverlayOptions):
    """An aesthetic gradient: the mean of what CLIP sees in the pictures, without a training."""

    kind: Literal["aesthetic"]
    steps: int = Field(default=5, ge=1, le=1000)
    rate: Annotated[float, Field(gt=0, le=1)] | None = None


AnyOverlayOptions = Annotated[
    HypernetOptions | EmbeddingOptions | LoraOptions | DreamboothOptions | AestheticOptions,
    Field(discriminator="kind"),
]


class TrainingFields(JobRequest):
    """What a training and its estimate ask for alike."""

    overlay: AnyOverlayOptions
    dataset: Name = Field(description="a dataset of the server, or a bundled one: neon, blueprint, robot")
    name: Annotated[str, Field(max_length=100)] | None = Field(default=None, description="none: the dataset's")
    purpose: Literal["style", "subject"] | None = Field(default=None, description="which preset; none: the kind's own")
    plan: dict[str, JsonValue] = Field(
        default_factory=dict[str, JsonValue], description="fields of the plan that differ from the preset"
    )
    base: Name | None = Field(default=None, description="name of a base; none: the server's")


class TrainRequest(TrainingFields):
    """Train an overlay on a dataset."""

    kind: Literal["train"] = "train"
    run: Name | None = Field(default=None, description="name of the run; none: the overlay's")
    keep_as: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None,
        description="name under which the result is in the folder of models too, over a file that is there",
    )


class EstimateRequest(TrainingFields):
    """Look at a training before it is begun: whether it would be refused, and the time and memory that it takes."""

    kind: Literal["estimate"] = "estimate"


class ResumeRequest(JobRequest):
    """Continue an interrupted or cancelled training."""

    kind: Literal["resume"] = "resume"
    run: Name
    base: Name | None = Field(default=None, description="name of a base; none: the one that it began on")
    data_changed: bool = Field(default=False, description="continue although pictures or captions changed")


class CompareRequest(JobRequest):
    """Train every kind of overlay on a dataset under one budget, judge them alike, and write a report."""

    kind: Literal["compare"] = "compare"
    dataset: Name = Field(description="a dataset of the server, or a bundled one: four pictures or more")
    study: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="name of the study, one that is not finished goes on; none: the dataset's"
    )
    kinds: tuple[StudyKind, ...] = Field(
        default=("embedding", "hypernet", "lora", "dreambooth", "aesthetic"), min_length=1, max_length=5
    )
    seeds: int = Field(default=3, ge=1, le=100, description="trainings of each kind")
    steps: int | None = Field(default=None, ge=1, le=10**6, description="steps of each training, instead of minutes")
    minutes: float | None = Field(
        default=None, gt=0, le=MAX_MINUTES, description=f"minutes of the whole study; none: {DEFAULT_MINUTES:g}"
    )
    purpose: Literal["style", "subject"] = Field(default="style", description="which presets")
    together: OverlayWithStrength | None = Field(
        default=None, description="another overlay of the library: every kind is measured with it attached too"
    )
    base: Name | None = Field(default=None, description="name of a base; none: the server's")


class TuneRequest(JobRequest):
    """Find the strength of an overlay that serves best, and write it beside the file."""

    kind: Literal["tune"] = "tune"
    overlay: Name = Field(description="an overlay of the library")
    dataset: Name | None = Field(
        default=None, description="the pictures that it was trained on; none: those of its run, if it has one"
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] | None = Field(
        default=None, min_length=2, max_length=100, description="what is painted; none: fixed prompts"
    )
    seeds: int = Field(default=1, ge=1, le=64, description="pictures of each prompt")
    steps: int | None = Field(default=None, ge=1, le=1000, description="sampling steps; none: 12 on tiny, else 20")
    write: bool = Field(default=True, description="write it beside the file, as the weight that A1111 reads")
    base: Name | None = Field(default=None, description="name of a base; none: the server's")
