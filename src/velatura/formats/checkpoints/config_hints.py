"""Hints: settings of models that do not follow from the shapes of their tensors, such as the number of heads.

They come from a config.json, from the metadata of a checkpoint that velatura wrote, or from the family.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from velatura.base.model_settings import MAX_CONFIG_NUMBER
from velatura.errors import BadFile, UnsupportedBase, warn
from velatura.files import is_unset
from velatura.formats.check_texts import shorten_keys
from velatura.formats.checkpoints.ldm_config import (
    ModelConfig,
    text_config,
    unet_config,
    vae_config,
)
from velatura.imports import import_model_libraries

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

CONFIG_HINTS_KEY = "velatura.base"  # in the metadata of checkpoints

# Hints of the families where they differ from the libraries' defaults, from the published models
CONFIG_HINTS: dict[str, dict[str, ModelConfig]] = {
    "SD1": {
        "unet": {"sample_size": 64},
        "vae": {"sample_size": 512},
        "text": {"num_attention_heads": 12, "projection_dim": 768},
    },
    "SD2": {
        "unet": {"attention_head_dim": [5, 10, 20, 20], "sample_size": 96},
        "vae": {"sample_size": 768},
        "text": {"num_attention_heads": 16, "hidden_act": "gelu"},
    },
    "SDXL": {
        "unet": {"attention_head_dim": [5, 10, 20], "sample_size": 128},
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025},
        "text": {"num_attention_heads": 12, "projection_dim": 768},
        "text_2": {"num_attention_heads": 20, "hidden_act": "gelu"},
    },
}
TEXT_PARTS = ("text", "text_2")  # in the order in which SDXL concatenates their hidden states
LAYER_COUNT = "num_hidden_layers"  # which follows from the shapes, and tells whether they are complete
TEXT_HINTS = (
    LAYER_COUNT,
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# The hints that a file may state: none of them could make a small file ask for a large model.
ALLOWED_HINTS = {
    "unet": (
        "attention_head_dim",
        "num_attention_heads",
        "norm_num_groups",
        "norm_eps",
        "sample_size",
        "act_fn",
        "upcast_attention",
        "flip_sin_to_cos",
        "freq_shift",
        "center_input_sample",
        "downsample_padding",
    ),
    "vae": ("norm_num_groups", "sample_size", "scaling_factor", "act_fn", "force_upcast"),
    "text": TEXT_HINTS,
    "text_2": TEXT_HINTS,
}
POSITIVE_HINTS = {
    "attention_head_dim",
    "num_attention_heads",
    "norm_num_groups",
    "norm_eps",
    "layer_norm_eps",
    "sample_size",
    "scaling_factor",
}
# Settings that change no picture: of averages of weights, in which training scripts save a UNet, ...
AVERAGING_SETTINGS = "decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup"
# ... of transformers, whose versions give every model settings for the generation of texts, ...
TRANSFORMERS_SETTINGS = (
    "add_cross_attention architectures attn_implementation bad_words_ids begin_suppress_tokens chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty "
    "max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_attentions output_hidden_states output_scores prefix problem_type pruned_heads remove_invalid_values "
    "repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype "
    "torchscript transformers_version typical_p use_bfloat16 use_cache use_return_dict"
)
# ... and of diffusers' schedulers: they choose a sampler and its steps, which a recipe says here
SCHEDULER_SETTINGS = (
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type rescale_betas_zero_snr "
    "algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio eta "
    "euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final "
    "original_inference_steps predict_epsilon predict_x0 predictor_order s_churn s_noise s_tmax s_tmin "
    "sample_max_value set_alpha_to_one sigma_max sigma_min skip_prk_steps solver_order solver_p solver_type "
    "steps_offset tau_func time_shift_type timestep_scaling timestep_spacing timestep_type use_beta_sigmas "
    "use_exponential_sigmas use_karras_sigmas use_lu_lambdas variance_type"
)
OTHER_SETTINGS = {
    "unet": AVERAGING_SETTINGS,
    "vae": AVERAGING_SETTINGS,
    "text": TRANSFORMERS_SETTINGS,
    "scheduler": SCHEDULER_SETTINGS,
}
OLD_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 2}  # before transformers 4.30, where CLIP's own ids were meant


def config_hints(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoders: Sequence[nn.Module]
) -> dict[str, ModelConfig]:
    """Return the hints of a base's models that differ from the libraries' defaults, by part.

    Raises:
        UnsupportedBase: A setting outside ALLOWED_HINTS, with which the base could not be read again.
    """
    pooled_width = 0
    if unet.config.get("addition_embed_type") is not None:
        pooled_width = _encoder_config(text_encoders[-1]).projection_dim
    hints = {
        "unet": _non_default_config("unet", dict(unet.config), unet_config(unet.state_dict(), pooled_width)),
        "vae": _non_default_config("vae", dict(vae.config), vae_config(vae.state_dict())),
        **{part: _non_default_text_config(encoder) for part, encoder in zip(TEXT_PARTS, text_encoders, strict=False)},
    }
    for part, config in hints.items():
        if unsupported := config.keys() - set(ALLOWED_HINTS[part]):
            raise UnsupportedBase(
                f"its {part} has the setting {min(unsupported)}, which a checkpoint cannot store: save the base as a "
                "folder"
            )
    return hints


def read_config_hints(part: str, stored: ModelConfig, from_shapes: ModelConfig, name: str) -> ModelConfig:
    """Return the hints in a config.json that differ from the library's defaults.

    Args:
        part: "unet", "vae" or "text".
        stored: The config.json.
        from_shapes: Settings that follow from the shapes, which are not hints.
        name: Name of the base, for messages.

    Raises:
        UnsupportedBase: A setting outside ALLOWED_HINTS that differs from the default.
        BadFile: A number out of range.
    """
    defaults = _defaults(part)
    remaining = {key: value for key, value in stored.items() if key in defaults and key not in from_shapes}
    non_default = {key: value for key, value in remaining.items() if _as_json(value) != _as_json(defaults[key])}
    # a text encoder's config.json also has transformers' general settings, which do not change what CLIP computes
    if part != "text" and (unsupported := non_default.keys() - set(ALLOWED_HINTS[part])):
        raise UnsupportedBase(
            f"{name} has the setting {min(unsupported)} in its {part}, which velatura does not support: open another"
        )
    return check_config_hints(name, {part: non_default}, [part])[part]


def warn_of_unknown_settings(folder: Path, part: str, stored: ModelConfig) -> None:
    """Warn of settings in a configuration that neither the library nor velatura knows.

    Args:
        folder: The folder of the part, for the message.
        part: "unet", "vae", "text" or "scheduler".
        stored: The configuration.
    """
    known = set(OTHER_SETTINGS[part].split()) | (set[str]() if part == "scheduler" else _defaults(part).keys())
    unknown = [
        name for name, value in stored.items() if name not in known and not name.startswith("_") and not is_unset(value)
    ]
    if unknown:
        warn(
            f"{folder.parent.name}/{folder.name} has settings that velatura does not know ({shorten_keys(unknown)}): "
            "they are ignored, and pictures may come out wrong"
        )


def warn_of_unknown_hints(name: str, stored: object) -> None:
    """Warn of settings in a checkpoint's metadata that this version does not know.

    Args:
        name: Name of the file, for the message.
        stored: Parsed JSON: settings by part.
    """
    parts = cast("dict[str, object]", stored) if isinstance(stored, dict) else {}
    unknown = [part for part in parts if part not in ALLOWED_HINTS]
    for part, allowed in ALLOWED_HINTS.items():
        settings = parts.get(part)
        keys = cast("dict[str, object]", settings) if isinstance(settings, dict) else {}
        unknown += [f"{part}.{key}" for key in keys if key not in allowed]
    if unknown:
        warn(
            f"{name} has settings in its metadata that velatura does not know ({shorten_keys(unknown)}): they are "
            "ignored, and pictures may come out wrong; a newer velatura may know them"
        )


def check_config_hints(name: str, stored: object, parts: Iterable[str]) -> dict[str, ModelConfig]:
    """Return the hints that a file states, without those outside ALLOWED_HINTS.

    Args:
        name: Name of the file, for messages.
        stored: Parsed JSON of a stranger's file: settings by part.
        parts: The parts that must be there.

    Raises:
        BadFile: A part is missing, or a number is out of range.
    """
    stored_hints = cast("dict[str, ModelConfig]", stored) if isinstance(stored, dict) else {}
    if not all(isinstance(stored_hints.get(part), dict) for part in parts):
        raise BadFile(f"{name} has damaged settings in its metadata: save the base again")
    hints = {
        part: {key: value for key, value in stored_hints[part].items() if key in ALLOWED_HINTS[part]} for part in parts
    }
    for part, config in hints.items():
        for key in POSITIVE_HINTS & config.keys():
            value: object = config[key]
            numbers = cast("list[object]", value) if isinstance(value, list) else [value]
            if value is not None and not all(map(_is_in_range, numbers)):
                shown = ", ".join(map(str, numbers))[:40]
                raise BadFile(f"{name} says that {key} of its {part} is {shown}, which is out of range: save it again")
    return hints


def _is_in_range(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_CONFIG_NUMBER


def _encoder_config(encoder: nn.Module) -> Any:
    return encoder.config


def _non_default_text_config(encoder: nn.Module) -> ModelConfig:
    config, defaults, from_shapes = _encoder_config(encoder), _defaults("text"), text_config(encoder.state_dict())
    stored = {key: getattr(config, key) for key in ALLOWED_HINTS["text"] if key not in from_shapes}
    if stored["eos_token_id"] == OLD_TOKEN_IDS["eos_token_id"]:
        stored = {key: value for key, value in stored.items() if key not in {*OLD_TOKEN_IDS, "pad_token_id"}}
    non_default = {key: value for key, value in stored.items() if value != defaults[key]}
    return {LAYER_COUNT: from_shapes[LAYER_COUNT], **non_default}


def _non_default_config(part: str, config: Mapping[str, Any], from_shapes: ModelConfig) -> ModelConfig:
    defaults = _defaults(part)
    remaining = {key: value for key, value in config.items() if key in defaults and key not in from_shapes}
    return {key: value for key, value in remaining.items() if _as_json(value) != _as_json(defaults[key])}


def _defaults(part: str) -> ModelConfig:
    """Return the library's default settings of a model: "unet", "vae" or "text"."""
    import_model_libraries()
    if part == "text":
        from transformers import CLIPTextConfig

        return CLIPTextConfig().to_dict()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model_class = UNet2DConditionModel if part == "unet" else AutoencoderKL
    return {name: parameter.default for name, parameter in inspect.signature(model_class).parameters.items()}


def _as_json(value: object) -> object:
    """Return a setting as JSON gives it back: a tuple as a list."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else value
