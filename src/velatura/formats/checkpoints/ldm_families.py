"""What kind of model a single-file checkpoint holds, told by the names of its tensors and never by its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from velatura.errors import UnsupportedBase
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
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"  # empty tensors by which a file tells how it was trained
PURPOSE_BY_CHANNELS = {
    5: "depth",
    7: "upscaling",
    8: "editing by instruction",
    9: "inpainting",
}  # by the channels a UNet reads
# what the UNet's tensors of models for other programs begin with
FOREIGN_MODELS = {
    "joint_blocks.": "a Stable Diffusion 3",
    "double_blocks.": "a FLUX",
    "double_layers.": "an AuraFlow",
    "clip_txt_mapper.": "a Stable Cascade",
    "time_embed.cond_proj.": "a Stable Diffusion distilled with its guidance",
}
# what training leaves beside the weights: losses, averages, and figures of the noise schedule
TRAINING_LEFTOVERS = re.compile(
    r"loss\.|first_stage_model\.loss\.|model_ema\.|denoiser\.|"
    r"(betas|logvar|scale_factor|lvlb_weights|edm_vp_sigma|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod"
    r"(_prev)?|posterior_\w+)$|"
    r"(cond_stage_model|conditioner\.embedders\.\d)\..*(position_ids|logit_scale|attn_mask|text_projection(\.weight)?)$"
)


@dataclass(frozen=True)
class TextEncoderLayout:
    """Where a text tower stands in a checkpoint, and how its base reads it (see Tower).

    layers: how many of its layers are read; file_layers: how many the file has.
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
        """Where the tower's tensors are in a checkpoint of these keys."""
        if not self.is_open_clip:
            return clip_from_ldm(keys, self.prefix)
        return open_clip_from_ldm(keys, self.prefix, layers=self.layers, has_projection=self.has_projection)

    def to_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tower's tensors under the names of checkpoints."""
        if not self.is_open_clip:
            return clip_to_ldm(state, self.prefix)
        return open_clip_to_ldm(state, self.prefix, layers=self.file_layers)


# Which layers are read: 24 are in SD2's files, and the last is not; an SDXL reads the last but one of both towers.
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
    """Which of KINDS a checkpoint is; one of another kind is refused by what it is."""
    for prefix, model in FOREIGN_MODELS.items():
        if any(key.startswith(UNET_PREFIX + prefix) for key in keys):
            raise UnsupportedBase(f"{name} is {model}, which is not opened here: open an SD1, SD2 or SDXL")
    if any(key.startswith(REFINER_PREFIX) for key in keys):
        raise UnsupportedBase(f"{name} is the refiner of an SDXL, which only finishes pictures: open the SDXL itself")
    families = [
        family
        for family, layouts in TEXT_ENCODER_LAYOUTS.items()
        if any(key.startswith(layouts[-1].prefix) for key in keys)
    ]
    if len(families) > 1:
        raise UnsupportedBase(
            f"{name} holds the text encoders of an {' and an '.join(families)} at once: do not trust it"
        )
    if not families:
        raise UnsupportedBase(
            f"{name} has no text encoder that is known here, so it is a part of a model: open the whole checkpoint"
        )
    return families[0]


def check_input_channels(name: str, channels: int) -> None:
    """Refuse a UNet that reads something beside the latents, by what it is for."""
    if channels != 4:
        raise UnsupportedBase(
            f"{name} is a model for {PURPOSE_BY_CHANNELS.get(channels, 'another purpose')}: its UNet reads {channels} channels, "
            "not 4, which cannot be given yet; open a plain Stable Diffusion instead"
        )
