"""Fields of a plan as keyword arguments of `velatura.train`, for editors and type checkers."""

from __future__ import annotations

from typing import TypedDict

from velatura.datasets.templates import CaptionLines
from velatura.training.plan import HuberSchedule, LatentSamplingMode, LossType, PictureShape, Precision
from velatura.training.rates import RateSchedule


class PlanFields(TypedDict, total=False):
    """Fields of `velatura.Plan` that `velatura.train` does not spell out; the plan describes them."""

    # Learning rates and optimizer
    text_rate: str | float | None
    word_rate: str | float | None
    schedule: RateSchedule
    warmup: int
    cycles: int
    accumulation: int
    weight_decay: float
    gradient_norm: float | None
    ema: float | None

    # Loss
    min_snr: float | None
    debiased: bool
    inverse_snr: float
    timestep_bias: float
    velocity_as_noise: bool
    noise_as_velocity: float
    zero_terminal_snr: bool
    loss: LossType
    huber_threshold: float
    huber_schedule: HuberSchedule
    noise_offset: float
    pyramid_noise: float
    input_perturbation: float
    class_weight: float

    # Pictures and captions
    shape: PictureShape
    masks: bool
    flip: bool
    latents: LatentSamplingMode
    cache: bool
    shuffle_tags: bool
    tag_dropout: float
    keep_tags: int
    caption_lines: CaptionLines
    caption_dropout: float
    image_dropout: float

    # Memory and speed
    precision: Precision
    checkpointing: bool

    # What the run keeps and checks
    keep_last: int
    keep_every: int
    validation_pictures: int
    validation_folder: str | None
    patience: int
    rescues: int
    rescue_factor: float
    loss_limit: float | None
    a1111: bool
    tensorboard: bool
    preview_seeds: int
    end_sheet: bool | None
    tune: bool | None
