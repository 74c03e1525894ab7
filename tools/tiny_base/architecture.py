"""The shapes of the tiny base's parts: SD1's own architecture, scaled down to 64 px pictures.

Latents are 16x16x4 (factor 4). A hypernetwork meets four context widths: 64, 128 and 192 in self-attention,
96 in cross-attention.
"""

from types import MethodType

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

PICTURE_PIXELS = 64
LATENT_FACTOR = 4
LATENT_PIXELS = PICTURE_PIXELS // LATENT_FACTOR
TOKENS = 77
TEXT_WIDTH = 96
PROJECTION_WIDTH = 64

# SD1's schedule (sqrt-linear betas), as diffusers' schedulers name it
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def make_unet() -> UNet2DConditionModel:
    """SD1's block types on 16x16 latents: cross-attention at 16 and 8, none at 4 but in the middle block."""
    return UNet2DConditionModel(
        sample_size=LATENT_PIXELS,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        # diffusers reads this as the number of heads per resolution: 32 features a head throughout
        attention_head_dim=(2, 4, 6),
        norm_num_groups=32,
    )


def make_vae() -> AutoencoderKL:
    """SD1's autoencoder with two halvings instead of three; the scaling factor is set after training."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=PICTURE_PIXELS,
        scaling_factor=1.0,
    )


def make_clip(vocabulary_size: int) -> CLIPModel:
    """A CLIP pair: a three-layer text tower of 77 positions, a four-layer vision tower on 8 px patches.

    The end token has the last id, as in OpenAI's vocabulary, and pads as well.
    """
    end = vocabulary_size - 1
    text = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=PROJECTION_WIDTH,
        pad_token_id=end,
        bos_token_id=end - 1,
        eos_token_id=end,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=PROJECTION_WIDTH,
        image_size=PICTURE_PIXELS,
        patch_size=8,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION_WIDTH)
    )


def make_compilable(model: nn.Module) -> None:
    """Double pictures by repeating pixels instead of F.interpolate, with the same result.

    torch 2.13's compiler gives nearest-neighbour interpolation in bf16 on a CPU a gradient of zero, silently.
    """
    for module in model.modules():
        if isinstance(module, Upsample2D):
            module.forward = MethodType(_upsample, module)


def _upsample(self: Upsample2D, hidden_states: Tensor, output_size: int | None = None) -> Tensor:
    batch, channels, height, width = hidden_states.shape
    doubled = hidden_states[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return self.conv(doubled.reshape(batch, channels, 2 * height, 2 * width))
