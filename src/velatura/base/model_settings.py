"""Read the settings of a model in diffusers' words: its family, its noise schedule, and what is not supported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from velatura.base.families import Family, Prediction, find_family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadFile, UnsupportedBase

ModelConfig = dict[str, Any]

MAX_CONFIG_NUMBER = 8192  # the largest that is used is a side of pictures in pixels
EXTRA_CONDITION_FIELDS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")


def determine_family(unet: Mapping[str, Any], vae: Mapping[str, Any], prediction: Prediction) -> Family:
    """Return the family that a base belongs to by its context widths, with this base's own settings.

    Args:
        unet: Fields of UNet2DConditionModel.
        vae: Fields of AutoencoderKL.
        prediction: What the UNet predicts.

    Returns:
        The known family of these widths, or one named "unknown", with the scaling factors, picture size and prediction
        of this base.

    Raises:
        BadFile: The size of pictures is out of range.
    """
    block_widths: list[int] = unet["block_out_channels"]
    block_types: list[str] = unet["down_block_types"]
    attention_widths = [
        width for width, block_type in zip(block_widths, block_types, strict=True) if "Attn" in block_type
    ]
    widths = dict.fromkeys([*attention_widths, block_widths[-1]])
    vae_scale_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = int(unet.get("sample_size") or 64) * vae_scale_factor
    if not 0 < pixels <= MAX_CONFIG_NUMBER:
        raise BadFile(f"a base for pictures of {pixels} pixels is not a Stable Diffusion: download it again")
    cross_width: int = unet["cross_attention_dim"]
    new_family = Family("unknown", cross_width, tuple(widths), vae_scale_factor, 1.0, pixels, prediction)
    scale = float(vae.get("scaling_factor", 0.18215))
    family = find_family(cross_width, widths) or new_family
    return replace(
        family, vae_scale_factor=vae_scale_factor, scaling_factor=scale, default_pixels=pixels, prediction=prediction
    )


def refuse_unsupported(
    name: str, unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Refuse models that would fail at the first step or make wrong pictures.

    Args:
        name: Name of the model, for messages.
        unet, vae, scheduler: Their configurations.

    Raises:
        UnsupportedBase: The model has another noise schedule or other latents, or reads more than prompts.
        KeyError: The scheduler's configuration names no noise schedule.
    """
    scheduler_class = str(scheduler.get("_class_name", ""))
    if "EDM" in scheduler_class or vae.get("latents_mean") is not None:
        raise UnsupportedBase(
            f"{name} is an EDM model such as Playground 2.5, with a noise schedule and latents of its own "
            f"({scheduler_class or 'latents_mean'}): open a plain Stable Diffusion instead"
        )
    beta_schedule, prediction = scheduler["beta_schedule"], scheduler.get("prediction_type", "epsilon")
    reads_more = any(unet.get(field) is not None for field in EXTRA_CONDITION_FIELDS)
    reads_more |= unet.get("addition_embed_type") not in {None, "text_time"}
    reasons = {
        "has a UNet that reads more than the prompt's context": reads_more,
        f"has the noise schedule {beta_schedule!r}, not 'scaled_linear'": beta_schedule != "scaled_linear",
        "has a noise schedule of its own (trained_betas)": scheduler.get("trained_betas") is not None,
        f"predicts {prediction!r}, not noise (epsilon) or velocity (v)": prediction not in get_args(Prediction),
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    if reason is not None:
        raise UnsupportedBase(f"{name} {reason}: open a plain Stable Diffusion instead")


def build_schedule(scheduler: Mapping[str, Any]) -> NoiseSchedule:
    """Return the noise schedule of a scheduler's configuration.

    Raises:
        ValueError: The schedule has another number of steps, or impossible betas.
    """
    start, end, steps = scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"]
    zero_snr = scheduler.get("rescale_betas_zero_snr")
    if not isinstance(zero_snr, bool | None):
        raise ValueError(f"rescale_betas_zero_snr is {zero_snr!r}, not true or false")
    if steps != len(NoiseSchedule()) or not 0 < start < end < 1:
        raise ValueError(f"a noise schedule of {steps} steps from {start} to {end}")
    return NoiseSchedule(start, end, steps, zero_snr=bool(zero_snr))
