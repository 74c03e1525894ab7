"""Detect which model a single-file checkpoint holds, by the names of its tensors and not by the name of the file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from velatura.base.image_condition import CONDITION_BY_CHANNELS, LATENT_CHANNELS
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX
from velatura.formats.checkpoints.ldm_text import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    clip_from_ldm,
    clip_to_ldm,
    open_clip_from_ldm,
    open_clip_to_ldm,
)
from velatura.formats.checkpoints.tensor_sources import TensorSource

REFINER_PREFIX = "conditioner.embedders.0.model."
WEIGHT_SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"  # empty tensors: velocity prediction, zero terminal SNR
PURPOSE_BY_CHANNELS = {5: "depth", 7: "upscaling", **CONDITION_BY_CHANNELS}  # by a UNet's input channels
# Models that velatura does not open, by the name of a block in their UNet or transformer
FOREIGN_BLOCKS = {
    "joint_blocks": "a Stable Diffusion 3",
    "double_blocks": "a Flux",
    "double_layers": "an AuraFlow",
    "clip_txt_mapper": "a Stable Cascade",
}
# Tensors beside a UNet that looks plain, but paints something else without them
SPECIAL_MODEL_PREFIXES = {
    "edm_mean": "an EDM model such as Playground 2.5, with a noise schedule of its own",
    "edm_std": "an EDM model such as Playground 2.5, with a noise schedule of its own",
    "edm_vpred.": "an EDM model that predicts velocity such as CosXL, with a noise schedule of its own",
    "control_model.": "a ControlNet, with a Stable Diffusion around it",
    "cc_projection.": "a Zero123, which turns an object around and reads an image in place of a prompt",
}
FOREIGN_PREFIXES = {
    **{f"{UNET_PREFIX}{block}.": model for block, model in FOREIGN_BLOCKS.items()},
    f"{UNET_PREFIX}time_embed.cond_proj.": "a Stable Diffusion distilled with its guidance",
    **SPECIAL_MODEL_PREFIXES,
}
LONE_UNET_HINT = (
    "give text encoders as text= (--text) and an autoencoder as vae= (--vae), or open a whole base (--base) and give "
    "this one as its unet= (--unet)"
)
# Left by training beside the weights: losses, averages, and numbers of the noise schedule
TRAINING_LEFTOVERS = re.compile(
    r"loss\.|first_stage_model\.loss\.|model_ema\.|denoiser\.|"
    r"(betas|logvar|scale_factor|lvlb_weights|edm_vp_sigma|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod"
    r"(_prev)?|posterior_\w+)$|"
    r"(cond_stage_model|conditioner\.embedders\.\d)\..*(position_ids|logit_scale|attn_mask|text_projection(\.weight)?)$"
)


@dataclass(frozen=True)
class TextEncoderLayout:
    """Names of a text encoder's tensors in a checkpoint, and how its base uses it (see ClipTextEncoder).

    Attributes:
        prefix: Prefix of the names.
        is_open_clip: The names below the prefix are OpenCLIP's, not transformers'.
        layers: Number of layers that are used; None means all.
        file_layers: Number of layers in the file; None means as many as are used.
        has_projection: It also gives a pooled embedding.
        default_clip_skip: Layer whose output is used, 1 being the last.
        has_final_norm: The final layer norm is applied to that output.
        takes_clip_skip: A recipe's clip skip chooses the layer.
    """

    prefix: str
    is_open_clip: bool = False
    layers: int | None = None
    file_layers: int | None = None
    has_projection: bool = False
    default_clip_skip: int = 1
    has_final_norm: bool = True
    takes_clip_skip: bool = False

    def sources(self, keys: Iterable[str]) -> dict[str, TensorSource]:
        """Return the sources of the text encoder's tensors in a checkpoint of these keys."""
        if not self.is_open_clip:
            return clip_from_ldm(keys, self.prefix)
        return open_clip_from_ldm(keys, self.prefix, layers=self.layers, has_projection=self.has_projection)

    def to_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the text encoder's tensors under the names of checkpoints."""
        if not self.is_open_clip:
            return clip_to_ldm(state, self.prefix)
        return open_clip_to_ldm(state, self.prefix, layers=self.file_layers)


# SD2 uses 23 of the 24 layers in its file. SDXL uses the last but one layer of both text encoders.
TEXT_ENCODER_LAYOUTS: dict[str, tuple[TextEncoderLayout, ...]] = {
    "SD1": (TextEncoderLayout(CLIP_PREFIX, takes_clip_skip=True),),
    "SD2": (TextEncoderLayout(OPEN_CLIP_PREFIX, is_open_clip=True, layers=23, file_layers=24),),
    "SDXL": (
        TextEncoderLayout(SDXL_CLIP_PREFIX, default_clip_skip=2, has_final_norm=False),
        TextEncoderLayout(
            SDXL_OPEN_CLIP_PREFIX, is_open_clip=True, has_projection=True, default_clip_skip=2, has_final_norm=False
        ),
    ),
}


def detect_family(name: str, keys: Collection[str]) -> str:
    """Return the family of a checkpoint, one of TEXT_ENCODER_LAYOUTS.

    Args:
        name: Name of the file, for messages.
        keys: All keys of the checkpoint.

    Raises:
        UnsupportedBase: Another kind of model, a refiner, or a part of a model.
        BadFile: Several models at once, or an SDXL without its second text encoder.
    """
    for prefix, model in FOREIGN_PREFIXES.items():
        if any(key.startswith(prefix) for key in keys):
            raise UnsupportedBase(f"{name} is {model}, which velatura does not open: open an SD1, SD2 or SDXL")
    if any(key.startswith(REFINER_PREFIX) for key in keys):
        raise UnsupportedBase(f"{name} is the refiner of an SDXL, which only finishes pictures: open the SDXL itself")
    families = [
        family
        for family, layouts in TEXT_ENCODER_LAYOUTS.items()
        if any(key.startswith(layouts[-1].prefix) for key in keys)
    ]
    if len(families) > 1:
        raise BadFile(f"{name} holds the text encoders of an {' and an '.join(families)} at once: do not trust it")
    if not families and any(key.startswith(SDXL_CLIP_PREFIX) for key in keys):
        raise BadFile(
            f"{name} lacks the second text encoder of an SDXL ({SDXL_OPEN_CLIP_PREFIX}*): it is cut short or damaged"
        )
    if not families:
        raise UnsupportedBase(
            f"{name} holds a UNet and no text encoder of a known kind, so it is a part of a model: {LONE_UNET_HINT}"
        )
    return families[0]


def check_input_channels(name: str, channels: int) -> None:
    """Refuse a UNet that reads channels for another purpose than inpainting or pix2pix beside those of latents.

    Raises:
        UnsupportedBase: Another number of channels; the message says what such models are for.
    """
    if channels not in {LATENT_CHANNELS, *CONDITION_BY_CHANNELS}:
        purpose = PURPOSE_BY_CHANNELS.get(channels, "another purpose")
        raise UnsupportedBase(
            f"{name} is a model for {purpose}: its UNet reads {channels} channels, and velatura opens UNets of 4 "
            "(Stable Diffusion), 9 (inpainting) and 8 (pix2pix): open one of those"
        )


def refuse_scaled_weights(name: str, keys: Iterable[str]) -> None:
    """Refuse a checkpoint whose weights count only together with scales beside them, as ComfyUI's scaled fp8 has them.

    Raises:
        UnsupportedBase: The checkpoint has such scales.
    """
    scales = [key for key in keys if key.endswith(WEIGHT_SCALE_SUFFIXES)]
    if scales:
        raise UnsupportedBase(
            f"{name} holds scaled fp8: {len(scales)} of its weights count only together with a scale beside them "
            f"({scales[0][:100]}), which velatura does not read: use the model in float16, or in fp8 without scales"
        )
