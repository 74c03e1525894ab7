"""The fields of a recipe as keyword arguments, so that editors and type checkers know them.

`generate` spells out the fields of CommonRecipeFields as parameters of its own. A test compares both with Recipe.
"""

from typing import Literal, TypedDict

from velatura.prompts.emphasis import EmphasisMode
from velatura.sampling.recipe.fields import MaskedContent, OverlayHash, OverlayResource, RandnSource, ResizeMode


class CommonRecipeFields(TypedDict, total=False):
    """Fields that most people use; their meanings are those of Recipe."""

    negative: str
    steps: int
    sampler: str
    scheduler: str | None
    guidance: float
    seed: int | None
    width: int | None
    height: int | None
    clip_skip: int
    denoising: float | None
    hires_scale: float | None
    tiling: bool


class FurtherRecipeFields(TypedDict, total=False):
    """All other fields; their meanings are those of Recipe."""

    prompt: str
    emphasis: EmphasisMode
    old_editing: bool
    skip_negative_below: float
    keep_layout: str
    keep_layout_until: float
    combine: Literal["sequence", "sum", "average"]

    noise: RandnSource
    variation_seed: int | None
    variation_strength: float
    seed_size: tuple[int, int] | str | None
    ensd: int

    fit: ResizeMode
    mask_blur: float
    unrounded_mask: bool
    masked_content: MaskedContent
    mask_padding: int | None
    inpainting_mask_weight: float | None
    image_guidance: float | None
    noise_multiplier: float
    extra_noise: float

    hires_size: tuple[int, int] | str | None
    hires_steps: int
    hires_upscaler: str
    hires_sampler: str | None
    hires_prompt: str
    hires_negative: str

    restore_faces: bool
    face_restorer: str | None
    codeformer_weight: float

    eta: float | None
    churn: float
    churn_from: float
    churn_to: float
    churn_noise: float
    sigma_min: float
    sigma_max: float
    rho: float
    discards_penultimate: bool
    sgm_noise: bool
    quantised: bool
    unipc_variant: Literal["bh1", "bh2"]
    unipc_spacing: Literal["time_uniform", "time_quadratic", "logSNR"]
    unipc_order: int
    unipc_lower_order_final: bool

    base_hash: str | None
    vae: str | None
    vae_hash: str | None
    text: str | None
    text_hash: str | None
    prediction: str | None
    zero_snr: bool | None
    weights: Literal["ema"] | None
    image_hash: str | None
    mask_hash: str | None
    overlay_hashes: tuple[OverlayHash, ...]
    resources: tuple[OverlayResource, ...]
    template: str | None
    negative_template: str | None
    version: str | None


class RecipeFields(CommonRecipeFields, FurtherRecipeFields, total=False):
    """Every field of Recipe but `base`, the name that a recipe records of its base."""
