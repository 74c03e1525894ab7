"""Hostile checkpoints, whole models in one file or in a folder: an SDXL and an SD1 of the least widths, changed."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from tests.formats.checkpoints.test_sdxl import random_sdxl
from tests.hostile.cases import LOAD, REFUSE, WARN, Case
from velatura.base.base import Base
from velatura.base.families import Family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.tensors import open_tensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
WIDTH, WIDTH_L, WIDTH_G = 16, 16, 24
POSITION_IDS = f"{CLIP}embeddings.position_ids"
NORM, NORM_G = f"{CLIP}final_layer_norm.bias", f"{CLIP_G}ln_final.bias"
CONV_IN = f"{UNET}input_blocks.0.0.weight"
TO_K = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def random_sd1():
    """Return a base of an SD1's plan and the least widths."""
    torch.manual_seed(0)
    words = {"vocab_size": 857, "bos_token_id": 855, "eos_token_id": 856, "pad_token_id": 856, "intermediate_size": 8}
    text = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, **words))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    encoder = ClipTextEncoder(velatura.tiny().text.tokenizer, text, takes_clip_skip=True)
    family = Family("unknown", WIDTH, (8, 16), 2, 0.18215, 16, "epsilon")
    return Base("sd1", family, unet=unet, vae=vae, text=TextEncoder([encoder]), schedule=NoiseSchedule()).to()


@cache
def checkpoint(kind):
    """Return the tensors and the metadata of a base as one file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        velatura.save(random_sd1() if kind == "sd1" else random_sdxl(velatura.tiny()), path)
        contents = open_tensors(path)
        return {key: contents.tensors[key].clone() for key in contents.tensors}, dict(contents.metadata)


@cache
def folder_files():
    """Return the files of an SD1 in diffusers' layout, by their paths."""
    with TemporaryDirectory() as folder:
        velatura.save(random_sd1(), Path(folder) / "sd1")
        root = Path(folder) / "sd1"
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_folder(path):
    for name, data in folder_files().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def without(*prefixes):
    return lambda state: {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


def only(*prefixes):
    return lambda state: {key: tensor for key, tensor in state.items() if key.startswith(prefixes)}


def with_tensor(key, tensor):
    return lambda state: {**state, key: tensor(state[key]) if callable(tensor) else tensor}


def both(first, second):
    return lambda state: second(first(state))


def widened(prefix, width, new_width):
    """Return the change of the width of a text encoder, in all its tensors."""

    def change(state):
        return {
            key: _widen(tensor, width, new_width) if key.startswith(prefix) else tensor for key, tensor in state.items()
        }

    return change


def _widen(tensor, width, new_width):
    sizes = {width: new_width, 3 * width: 3 * new_width}
    shape = [sizes.get(size, size) for size in tensor.shape]
    return tensor if shape == list(tensor.shape) else torch.full(shape, 0.01)


def rows(count):
    return lambda tensor: torch.full((count, *tensor.shape[1:]), 0.01)


def first_set_to(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def merged(state):
    return state | checkpoint("sd1")[0]


def positions(count):
    return with_tensor(POSITION_IDS, torch.arange(count)[None])


POSITIONS, POSITIONS_G = f"{CLIP}embeddings.position_embedding.weight", f"{CLIP_G}positional_embedding"
WORDS = f"{CLIP}embeddings.token_embedding.weight"
PROJECTION, FUSED = f"{CLIP_G}text_projection", f"{CLIP_G}transformer.resblocks.2.attn.in_proj_weight"
QUANT_BIAS, LOGIT_SCALE = f"{VAE}quant_conv.bias", f"{CLIP_G}logit_scale"
FLOAT_IDS = torch.arange(77.0)[None]
FILES = [
    ("ok_sd1", LOAD, "an SD1", "sd1", dict),
    ("ok_sdxl", LOAD, "an SDXL", "sdxl", dict),
    ("ok_position_ids", LOAD, "77 position ids", "sd1", positions(77)),
    (
        "ok_position_ids_float",
        LOAD,
        "position ids as floats",
        "sd1",
        with_tensor(POSITION_IDS, torch.arange(77.0)[None]),
    ),
    ("ok_logit_scale", LOAD, "a logit_scale beside it", "sdxl", with_tensor(LOGIT_SCALE, torch.tensor(4.6))),
    ("ok_leftovers", LOAD, "numbers of the noise schedule", "sd1", with_tensor("betas", torch.ones(1000))),
    ("position_ids_broken", WARN, "a position twice", "sd1", with_tensor(POSITION_IDS, torch.arange(77).clamp(max=75))),
    ("unknown_tensor", WARN, "a tensor of no part", "sd1", with_tensor("foo", torch.ones(3))),
    ("zero_weight", WARN, "a weight of zeros", "sd1", with_tensor(TO_K, torch.zeros_like)),
    ("clip_g_wide", REFUSE, "clip_g of width 32", "sdxl", widened(CLIP_G, WIDTH_G, 32)),
    ("clip_g_narrow", REFUSE, "clip_g of width 16", "sdxl", widened(CLIP_G, WIDTH_G, 16)),
    ("clip_l_wide", REFUSE, "clip_l of width 24", "sdxl", widened(CLIP_L, WIDTH_L, 24)),
    ("clip_l_narrow", REFUSE, "clip_l of width 8", "sdxl", widened(CLIP_L, WIDTH_L, 8)),
    (
        "clip_both_wide",
        REFUSE,
        "both of twice the width",
        "sdxl",
        both(widened(CLIP_L, 16, 32), widened(CLIP_G, 24, 48)),
    ),
    ("clip_wide", REFUSE, "SD1's text encoder of twice the width", "sd1", widened(CLIP, WIDTH, 32)),
    ("clip_narrow", REFUSE, "SD1's text encoder of half the width", "sd1", widened(CLIP, WIDTH, 8)),
    (
        "clip_g_last_layer",
        REFUSE,
        "clip_g without its last layer",
        "sdxl",
        without(f"{CLIP_G}transformer.resblocks.3."),
    ),
    ("clip_g_middle_layer", REFUSE, "clip_g without layer 1", "sdxl", without(f"{CLIP_G}transformer.resblocks.1.")),
    ("clip_g_layers", REFUSE, "clip_g without layers", "sdxl", without(f"{CLIP_G}transformer.")),
    ("clip_g_missing", REFUSE, "no clip_g", "sdxl", without(CLIP_G)),
    ("clip_l_last_layer", REFUSE, "clip_l without its last layer", "sdxl", without(f"{CLIP_L}encoder.layers.2.")),
    ("clip_l_first_layer", REFUSE, "clip_l without its first layer", "sdxl", without(f"{CLIP_L}encoder.layers.0.")),
    ("clip_l_missing", REFUSE, "no clip_l", "sdxl", without("conditioner.embedders.0.")),
    (
        "clip_last_layer",
        REFUSE,
        "SD1's text encoder without its last layer",
        "sd1",
        without(f"{CLIP}encoder.layers.1."),
    ),
    ("clip_layers", REFUSE, "SD1's text encoder without layers", "sd1", without(f"{CLIP}encoder.")),
    ("clip_norm_missing", REFUSE, "no last norm", "sd1", without(f"{CLIP}final_layer_norm.")),
    ("clip_g_norm_short", REFUSE, "a short last norm", "sdxl", with_tensor(NORM_G, torch.zeros(23))),
    ("clip_g_projection", REFUSE, "no projection", "sdxl", without(PROJECTION)),
    (
        "clip_g_projection_wide",
        REFUSE,
        "a projection to 24",
        "sdxl",
        with_tensor(PROJECTION, torch.ones(24, 24)),
    ),
    (
        "clip_g_fused_short",
        REFUSE,
        "queries and keys without values",
        "sdxl",
        with_tensor(FUSED, rows(48)),
    ),
    *(
        (f"position_ids_{count}", REFUSE, f"{count} position ids", "sd1", positions(count))
        for count in (0, 1, 76, 78, 154)
    ),
    *(
        (
            f"positions_{count}",
            REFUSE,
            f"{count} positions",
            "sd1",
            with_tensor(POSITIONS, rows(count)),
        )
        for count in (1, 76, 78, 248)
    ),
    (
        "positions_g_76",
        REFUSE,
        "76 positions of clip_g",
        "sdxl",
        with_tensor(POSITIONS_G, rows(76)),
    ),
    (
        "vocabulary_short",
        REFUSE,
        "856 words",
        "sd1",
        with_tensor(WORDS, rows(856)),
    ),
    (
        "logit_scale_alone",
        REFUSE,
        "only the logit_scale of clip_g",
        "sdxl",
        lambda _: {LOGIT_SCALE: torch.tensor(4.6)},
    ),
    (
        "logit_scale_for_clip_g",
        REFUSE,
        "a logit_scale in place of clip_g",
        "sdxl",
        both(without(CLIP_G), with_tensor(LOGIT_SCALE, torch.tensor(4.6))),
    ),
    ("position_ids_alone", REFUSE, "only position ids", "sd1", lambda _: {POSITION_IDS: torch.arange(77)[None]}),
    ("one_key", REFUSE, "only the first convolution", "sd1", only(CONV_IN)),
    ("one_other_key", REFUSE, "only a tensor of the time embedding", "sd1", only(f"{UNET}time_embed.0.weight")),
    ("two_keys", REFUSE, "one tensor of the UNet and one of the text encoder", "sd1", only(CONV_IN, NORM)),
    ("half_of_unet", REFUSE, "no output blocks", "sd1", without(f"{UNET}output_blocks.")),
    ("unet_block", REFUSE, "an input block less", "sd1", without(f"{UNET}input_blocks.2.")),
    ("vae_decoder", REFUSE, "no decoder", "sd1", without(f"{VAE}decoder.")),
    ("vae_missing", REFUSE, "no autoencoder", "sd1", without(VAE)),
    ("mixed_families", REFUSE, "an SD1 and an SDXL at once", "sdxl", merged),
    (
        "context_mixed",
        REFUSE,
        "one layer for another context",
        "sd1",
        with_tensor(TO_K, lambda tensor: torch.full((len(tensor), 24), 0.01)),
    ),
    ("all_empty", REFUSE, "all tensors without values", "sd1", lambda state: {key: torch.empty(0) for key in state}),
    ("one_empty", REFUSE, "one tensor without values", "sd1", with_tensor(NORM, torch.empty(0))),
    ("nan_unet", REFUSE, "NaN in the UNet", "sd1", with_tensor(TO_K, first_set_to(float("nan")))),
    ("inf_clip_g", REFUSE, "inf in clip_g", "sdxl", with_tensor(NORM_G, first_set_to(float("inf")))),
    (
        "nan_vae",
        REFUSE,
        "NaN in the autoencoder",
        "sd1",
        with_tensor(QUANT_BIAS, first_set_to(float("nan"))),
    ),
    ("int_unet", REFUSE, "int32 in the UNet", "sd1", with_tensor(TO_K, lambda tensor: tensor.int())),
    (
        "complex_clip",
        REFUSE,
        "complex numbers in the text encoder",
        "sd1",
        with_tensor(NORM, lambda tensor: tensor + 0j),
    ),
    ("channels_3", REFUSE, "an input of 3 channels", "sd1", with_tensor(CONV_IN, torch.ones(8, 3, 3, 3))),
]

DEEP = "[" * 20_000 + "]" * 20_000
JSON_FILES = [  # of a diffusers folder: the file, and what replaces it or its fields
    ("ok", LOAD, "a folder of diffusers", "model_index.json", {}),
    ("class_eval", REFUSE, "builtins.eval for a class", "model_index.json", {"_class_name": "builtins.eval"}),
    ("class_number", REFUSE, "a number for a class", "model_index.json", {"_class_name": 5}),
    ("class_list", REFUSE, "a list for a class", "model_index.json", {"_class_name": ["os", "system"]}),
    ("class_missing", REFUSE, "no class", "model_index.json", {"_class_name": None}),
    ("module_subprocess", REFUSE, "a part from subprocess", "model_index.json", {"vae": ["subprocess", "Popen"]}),
    (
        "module_beside",
        REFUSE,
        "a part from a module beside it",
        "model_index.json",
        {"unet": ["unet.my_unet", "MyUNet"]},
    ),
    ("index_deep", REFUSE, "an index nested 20,000 deep", "model_index.json", DEEP),
    ("index_list", REFUSE, "a list for the index", "model_index.json", "[]"),
    ("index_nan", REFUSE, "an index cut short", "model_index.json", '{"_class_name": "Stable'),
    (
        "index_twice",
        REFUSE,
        "a class twice",
        "model_index.json",
        '{"_class_name": "StableDiffusionPipeline", "_class_name": "A"}',
    ),
    ("auto_map_unet", REFUSE, "remote code for the UNet", "unet/config.json", {"auto_map": {"AutoModel": "x.Y"}}),
    (
        "auto_map_text",
        REFUSE,
        "remote code for the text encoder",
        "text_encoder/config.json",
        {"auto_map": {"AutoModel": "x.Y"}},
    ),
    ("unet_deep", REFUSE, "a configuration nested 20,000 deep", "unet/config.json", DEEP),
    ("unet_wide", REFUSE, "2e9 channels", "unet/config.json", {"block_out_channels": [8, 2_000_000_000]}),
    ("unet_many", REFUSE, "5,000 blocks", "unet/config.json", {"block_out_channels": [8] * 5000}),
    ("unet_sample", REFUSE, "a size of 1e9", "unet/config.json", {"sample_size": 1_000_000_000}),
    ("unet_heads", REFUSE, "-1 heads", "unet/config.json", {"attention_head_dim": -1}),
    ("unet_context", REFUSE, "a context of 768", "unet/config.json", {"cross_attention_dim": 768}),
    ("unet_text", REFUSE, "a word for the channels", "unet/config.json", {"in_channels": "many"}),
    ("text_layers", REFUSE, "12 layers", "text_encoder/config.json", {"num_hidden_layers": 12}),
    ("text_width", REFUSE, "a width of 768", "text_encoder/config.json", {"hidden_size": 768}),
    ("text_heads_zero", REFUSE, "0 heads", "text_encoder/config.json", {"num_attention_heads": 0}),
    ("scheduler_steps", REFUSE, "1e9 steps", "scheduler/scheduler_config.json", {"num_train_timesteps": 1_000_000_000}),
    ("scheduler_betas", REFUSE, "a negative beta", "scheduler/scheduler_config.json", {"beta_start": -1}),
    ("scheduler_list", REFUSE, "a list for the scheduler", "scheduler/scheduler_config.json", "[1]"),
]


def checkpoint_file(name, kind, change):
    def write(folder):
        state, metadata = checkpoint(kind)
        path = folder / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in change(state).items()}, path, metadata)
        return path

    return write


def diffusers_folder(name, file, change):
    def write(folder):
        path = folder / name
        write_folder(path)
        text = change if isinstance(change, str) else json.dumps(json.loads((path / file).read_text()) | change)
        (path / file).write_text(text)
        return path

    return write


def shard_index(name, *shards):
    """Write a folder whose UNet is in shards at the given paths."""

    def write(folder):
        path = folder / name
        write_folder(path)
        weights = path / "unet" / "diffusion_pytorch_model.safetensors"
        keys = list(open_tensors(weights).tensors)
        weights.unlink()
        table = {key: shards[number % len(shards)] for number, key in enumerate(keys)}
        index = {"metadata": {}, "weight_map": table}
        (path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return write


SHARDS = [
    ("shards_traversal", "a shard outside", ("../../../secret.safetensors",)),
    ("shards_absolute", "a shard at an absolute path", ("/etc/hostname",)),
    ("shards_windows", "a shard at a path of Windows", ("..\\..\\secret.safetensors",)),
    ("shards_missing", "a shard that is not there", ("diffusion_pytorch_model-00001-of-00001.safetensors",)),
    ("shards_numbers", "numbers for shards", (1, 2)),
    ("shards_empty", "an empty name for a shard", ("",)),
    ("shards_many", "a shard for every tensor", tuple(f"part-{number}.safetensors" for number in range(5000))),
]
# Neighbours of others
SLOW = {
    *("ok_position_ids_float", "ok_leftovers", "zero_weight", "clip_g_narrow", "clip_l_narrow", "clip_both_wide"),
    *("clip_narrow", "clip_g_layers", "clip_l_first_layer", "clip_layers", "position_ids_1", "position_ids_154"),
    *("positions_1", "positions_248", "inf_clip_g", "int_unet", "one_empty", "vae_decoder", "unet_block"),
    *("text_layers", "text_width", "scheduler_list", "index_list", "unet_many", "shards_numbers", "shards_empty"),
}
# A library lists a checkpoint without an autoencoder, which may be beside it, and names models of another kind
OTHERWISE = {"vae_missing": LOAD, "channels_3": WARN}
CASES = [
    *(
        Case(
            f"ck_{name}",
            "checkpoint",
            must,
            why,
            checkpoint_file(f"ck_{name}", kind, change),
            OTHERWISE.get(name, ""),
            name in SLOW,
        )
        for name, must, why, kind, change in FILES
    ),
    *(
        Case(f"df_{name}", "checkpoint", must, why, diffusers_folder(f"df_{name}", file, change), "", name in SLOW)
        for name, must, why, file, change in JSON_FILES
    ),
    *(
        Case(f"df_{name}", "checkpoint", REFUSE, why, shard_index(f"df_{name}", *shards), "", name in SLOW)
        for name, why, shards in SHARDS
    ),
]
