"""Derive the configurations of models from the shapes of their tensors; `config_hints` has the other settings."""

from __future__ import annotations

from velatura.base.model_settings import ModelConfig
from velatura.errors import BadFile
from velatura.formats.checkpoints.ldm_keys import UNetLayout, count_indices
from velatura.formats.checkpoints.ldm_text import PROJECTION_KEY, TEXT_MODEL_PREFIX
from velatura.tensors import StateDict

TIME_ID_COUNT = 6  # SDXL: original height and width, top and left of the crop, target height and width


def unet_config(state: StateDict, pooled_width: int = 0) -> ModelConfig:
    """Derive the configuration of a UNet from the shapes of its tensors.

    Args:
        state: Tensors under diffusers' names, on the meta device or any other.
        pooled_width: Features of the pooled text embedding that SDXL's UNet reads beside the sizes; 0 if unknown.

    Returns:
        Fields of UNet2DConditionModel.

    Raises:
        BadFile: The UNet's added embedding does not fit a pooled embedding of that width.
    """
    layout = UNetLayout.from_diffusers(state)
    levels = range(len(layout.attends_down))
    depths = [
        count_indices(state, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.") or 1
        for level in levels
    ]
    cross_attention_dim = next(tensor.shape[1] for key, tensor in state.items() if key.endswith("attn2.to_k.weight"))
    proj_in = next(tensor for key, tensor in state.items() if key.endswith("proj_in.weight"))
    return {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": [state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels],
        "layers_per_block": layout.layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in layout.attends_down],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in layout.attends_up],
        "cross_attention_dim": cross_attention_dim,
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "use_linear_projection": proj_in.ndim == 2,
        **_addition_config(state, pooled_width),
    }


def _addition_config(state: StateDict, pooled_width: int) -> ModelConfig:
    """Return the settings of SDXL's added embedding, through which its UNet reads the pooled text and the sizes."""
    if "add_embedding.linear_1.weight" not in state:
        return {}
    width = state["add_embedding.linear_1.weight"].shape[1]
    if pooled_width and (width <= pooled_width or (width - pooled_width) % TIME_ID_COUNT):
        raise BadFile(
            f"the UNet's added embedding has {width} features, which does not fit pooled embeddings of {pooled_width}: "
            "this is not an SDXL"
        )
    return {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": width,
        "addition_time_embed_dim": (width - pooled_width) // TIME_ID_COUNT,
    }


def vae_config(state: StateDict) -> ModelConfig:
    """Derive fields of AutoencoderKL from the shapes of its tensors under diffusers' names."""
    levels = range(count_indices(state, r"encoder\.down_blocks\.(\d+)\."))
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [
            state[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels
        ],
        "layers_per_block": count_indices(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "mid_block_add_attention": any(".mid_block.attentions." in key for key in state),
    }


def text_config(state: StateDict) -> ModelConfig:
    """Derive fields of CLIPTextConfig from the shapes of a text encoder's tensors under transformers' names."""
    projection = {"projection_dim": state[PROJECTION_KEY].shape[0]} if PROJECTION_KEY in state else {}
    state = {key.removeprefix(TEXT_MODEL_PREFIX): tensor for key, tensor in state.items()}
    token_embedding = state["embeddings.token_embedding.weight"]
    position_embedding = state["embeddings.position_embedding.weight"]
    return {
        **projection,
        "vocab_size": token_embedding.shape[0],
        "hidden_size": token_embedding.shape[1],
        "max_position_embeddings": position_embedding.shape[0],
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_indices(state, r"encoder\.layers\.(\d+)\."),
    }
