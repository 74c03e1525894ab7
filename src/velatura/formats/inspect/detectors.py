"""Detectors of kinds of files by the names and shapes of their tensors; no weight is read.

A detector returns the card of a file of its kind and the program that names tensors so, or None for other files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor

from velatura.base.families import FAMILY_BY_CROSS_WIDTH
from velatura.base.image_condition import LATENT_CHANNELS
from velatura.card import Card
from velatura.face_restoration.read_files import FACE_DETECTORS, detect_face_model
from velatura.formats import native
from velatura.formats.checkpoints import single_file, vae_file
from velatura.formats.checkpoints.ldm_families import (
    FOREIGN_BLOCKS,
    PURPOSE_BY_CHANNELS,
    SPECIAL_MODEL_PREFIXES,
    V_MARKER,
    ZERO_SNR_MARKER,
)
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX
from velatura.formats.embeddings import aesthetic
from velatura.formats.embeddings.read_embedding import DIFFUSERS_SDXL_KEYS, drop_output_vectors, training_fields
from velatura.formats.hypernetworks import a1111, flat
from velatura.formats.hypernetworks.a1111_fields import build_hypernetwork
from velatura.formats.loras.detect import detect_lora, find_state_dict
from velatura.overlays.embedding import SDXL_KEYS, SINGLE_KEYS
from velatura.tensors import STATE_DICT_KEYS, Contents, StateDict, as_dict, strip_wrapper_prefixes
from velatura.upscaling.read_upscaler import detect_upscaler
from velatura.upscaling.weights_file import find_weights

CardAndDialect = tuple[Card, str]

VAE_PREFIX = "first_stage_model."
EMA_UNET_PREFIX = "model_ema.diffusion_model"  # in names without dots
# The first convolution of a UNet by its key, and the remark that this key gives
CONV_IN_REMARKS = {
    f"{UNET_PREFIX}input_blocks.0.0.weight": "",
    f"{EMA_UNET_PREFIX}input_blocks00weight": "EMA only",
}
CROSS_KEY_ENDS = ("attn2.to_k.weight", "attn2to_kweight")
LONE_UNET = "UNet alone"
PART_PREFIXES = {"VAE": (VAE_PREFIX,), "text encoder": ("cond_stage_model.", "conditioner.embedders.")}
REFINER_WIDTH = 1280
SDXL_EMBEDDING_DIALECTS = {SDXL_KEYS: "kohya", DIFFUSERS_SDXL_KEYS: "diffusers"}
# What files that are not opened here hold, by the beginning of a key; the first that fits
UNSUPPORTED_MODELS = {
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "down_blocks.": "a UNet alone, as diffusers names it",
    "input_blocks.": "a UNet alone",
    "text_model.": "a text encoder alone",
    "encoder.layers.": "a text encoder alone",
    **{f"{prefix}{block}.": model for prefix in (UNET_PREFIX, "") for block, model in FOREIGN_BLOCKS.items()},
    "optimizer_state_dict": "an optimizer's state",
}

PART_ADVICE = {  # by the beginning of what a file holds
    "a whole checkpoint": "open it as a base (--base)",
    "a checkpoint without": "open it as a base (--base), with what it lacks as --text or --vae",
    "a UNet": "give it with --unet (unet=) beside a base",
    "a text encoder": "give it with --text (text=) beside a base",
    "an autoencoder": "give it with --vae (vae=) beside a base",
    "an optimizer": "give the file that it lies beside",
    "": "velatura does not open it",
}


def named_tensors(contents: Contents) -> StateDict:
    """Return the tensors of a file by name: of a torch file those in its state dict, or else in all its dicts."""
    if contents.container == "safetensors":
        return contents.tensors
    payload = as_dict(contents.payload) or {}
    has_tensors = any(isinstance(value, Tensor) for value in payload.values())
    usual_key, *other_keys = STATE_DICT_KEYS
    for key in (usual_key,) if has_tensors else (usual_key, *other_keys):
        state_dict = as_dict(payload.get(key))
        if state_dict is not None:
            return strip_wrapper_prefixes(flatten_payload(state_dict))
    return strip_wrapper_prefixes(flatten_payload(contents.payload))


def flatten_payload(payload: object, prefix: str = "") -> dict[str, Tensor]:
    """Return all tensors in a tree of dicts and lists, by their paths with "/"; a tensor alone has the path ""."""
    if isinstance(payload, Tensor):
        return {prefix.removesuffix("/"): payload}
    children = as_dict(payload)
    if children is None and isinstance(payload, list | tuple):
        children = dict[object, object](enumerate(cast("list[object]", payload)))
    tensors: dict[str, Tensor] = {}
    for key, child in (children or {}).items():
        tensors |= flatten_payload(child, f"{prefix}{key}/")
    return tensors


def detect_native(contents: Contents, _: StateDict) -> CardAndDialect | None:
    """Detect any overlay that velatura wrote, by its card.

    Raises:
        BadFile: The card is damaged.
    """
    return (native.parse_card(contents), "velatura") if native.CARD_KEY in contents.metadata else None


def detect_hypernetwork(contents: Contents, state: StateDict) -> CardAndDialect | None:
    """Detect a hypernetwork of A1111, or one in flat safetensors.

    Raises:
        BadFile: A1111's fields describe no hypernetwork.
    """
    if flat.sniff(contents):
        widths = dict.fromkeys(key.partition("_")[0] for key in state)
        return Card(kind="hypernet", outline=",".join(widths)), "flat"
    if contents.container == "safetensors" or not a1111.sniff(contents):
        return None
    payload = as_dict(contents.payload) or {}
    widths = tuple(key for key in payload if type(key) is int)
    fields = {key: value for key, value in payload.items() if isinstance(key, str) and not key.isdecimal()}
    return build_hypernetwork(contents.path, fields, widths, len(state)).card, "a1111"


def detect_embedding(contents: Contents, state: StateDict) -> CardAndDialect | None:
    """Detect an embedding (textual inversion) of A1111, sd-scripts or diffusers."""
    payload = as_dict(contents.payload) or {}
    vectors = [tensor for key, tensor in state.items() if key.startswith("string_to_param/")]
    if len(vectors) == 1:  # programs read files of one term only
        return _embedding_card(vectors).replace(**_a1111_card_fields(payload)), "a1111"
    tensors_by_name = drop_output_vectors({key.rpartition("/")[2]: tensor for key, tensor in state.items()})
    for keys, dialect in SDXL_EMBEDDING_DIALECTS.items():
        if tensors_by_name.keys() >= set(keys):
            return _embedding_card([tensors_by_name[key] for key in keys]).replace(family="SDXL"), dialect
    if tensors_by_name.keys() >= set(SINGLE_KEYS):
        return _embedding_card([tensors_by_name[key] for key in SINGLE_KEYS]), "kohya"
    if len(state) == 1 and "" not in state and all(_is_embedding(key, tensor) for key, tensor in state.items()):
        return _embedding_card(list(state.values())), "diffusers"
    return None


def detect_aesthetic(contents: Contents, state: StateDict) -> CardAndDialect | None:
    """Detect an aesthetic embedding of A1111's extension: one tensor, as long as CLIP's image embeddings."""
    vector = state.get("") if isinstance(contents.payload, Tensor) else None
    if vector is None or not aesthetic.is_image_embedding(vector):
        return None
    width = vector.shape[-1]
    family = aesthetic.FAMILY_BY_LENGTH.get(width, "")
    return Card(kind="aesthetic", outline=f"an image embedding of {width}", family=family), "a1111"


def detect_lora_file(contents: Contents, _: StateDict) -> CardAndDialect | None:
    """Detect a LoRA or one of its relatives, among the tensors where a reader looks for them."""
    return detect_lora(contents, find_state_dict(contents))


def detect_checkpoint(contents: Contents, state: StateDict) -> CardAndDialect | None:
    """Detect a whole Stable Diffusion in one file, with its family and how it differs from a plain one."""
    conv_in_key = next((key for key in CONV_IN_REMARKS if key in state), None)
    if conv_in_key is None:
        return None
    cross_widths = (tensor.shape[-1] for key, tensor in state.items() if _is_cross_key(key))
    conv_in = state[conv_in_key]
    is_v_prediction = V_MARKER in state or contents.metadata.get("modelspec.prediction_type") == "v"
    remarks = (
        CONV_IN_REMARKS[conv_in_key],
        describe_channels(conv_in.shape[1] if conv_in.ndim > 1 else 0),
        "v-prediction" if is_v_prediction else "",
        "zero terminal SNR" if ZERO_SNR_MARKER in state else "",
        next(
            (
                model.partition(",")[0]
                for prefix, model in SPECIAL_MODEL_PREFIXES.items()
                if _has_prefix(state, (prefix,))
            ),
            "",
        ),
        _describe_missing_parts(state),
    )
    family = guess_checkpoint_family(next(cross_widths, 0))
    return Card(kind="checkpoint", outline=", ".join(filter(None, remarks)), family=family), "ldm"


def detect_vae(_: Contents, state: StateDict) -> CardAndDialect | None:
    """Detect a VAE alone, under LDM's or diffusers' names."""
    prefix = next((prefix for prefix in vae_file.PREFIXES if f"{prefix}decoder.conv_in.weight" in state), "")
    vae_tensors = {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if "conv_in" in key or "mid" in key
    }
    conv_in = vae_tensors.get("decoder.conv_in.weight")
    if conv_in is None or "encoder.conv_in.weight" not in vae_tensors or conv_in.ndim < 2:
        return None
    dialect = "diffusers" if any(key.startswith("decoder.mid_block.") for key in vae_tensors) else "ldm"
    return Card(kind="vae", outline=f"{conv_in.shape[1]} latent channels"), dialect


def detect_upscaler_file(contents: Contents, _: StateDict) -> CardAndDialect | None:
    """Detect a network that upscales images, in the wrapper that training programs put it in or at the top."""
    layout = detect_upscaler(find_weights(contents))
    return layout and (Card(kind="upscaler", outline=layout.outline), layout.architecture.lower())


def detect_face_file(contents: Contents, _: StateDict) -> CardAndDialect | None:
    """Detect a network that restores faces or finds them."""
    model = detect_face_model(find_weights(contents))
    kind = "face-detector" if model in FACE_DETECTORS else "face-restorer"
    return (Card(kind=kind, outline=model), model.lower()) if model else None


# In the order in which files are tried
DETECTORS = (
    detect_native,
    detect_hypernetwork,
    detect_embedding,
    detect_aesthetic,
    detect_lora_file,
    detect_checkpoint,
    detect_vae,
    detect_upscaler_file,
    detect_face_file,
)


def guess_unsupported(state: StateDict) -> str:
    """Say what a file holds that is not opened here, or return "" if nothing fits."""
    return next((model for prefix, model in UNSUPPORTED_MODELS.items() if _has_prefix(state, (prefix,))), "")


def describe_other_model(contents: Contents) -> str:
    """Say what a file that is not an overlay holds, and what to do with it; "" if that is not known."""
    tensors = named_tensors(contents)
    unsupported = guess_unsupported(tensors)
    named = Contents(contents.path, tensors)
    if single_file.sniff(named):
        part = unsupported or _describe_checkpoint(tensors)
    elif vae_file.has_vae(named):
        part = "an autoencoder alone"
    elif detect_upscaler(find_weights(contents)):
        return "is not an overlay but an upscaler: use it with --hires-upscaler or `velatura upscale`"
    elif model := detect_face_model(find_weights(contents)):
        return f"is not an overlay but {model}, a network on faces: use it with --restore-faces"
    else:
        part = unsupported
    advice = next(advice for name, advice in PART_ADVICE.items() if part.startswith(name))
    return part and f"is not an overlay but {part}: {advice}"


def _describe_missing_parts(keys: Iterable[str]) -> str:
    """Say which parts of a base are missing in a file with a UNet, "" if all are there."""
    keys = list(keys)
    missing = [part for part, prefixes in PART_PREFIXES.items() if not _has_prefix(keys, prefixes)]
    if len(missing) == len(PART_PREFIXES):
        return LONE_UNET
    return f"without {missing[0]}" if missing else ""


def _describe_checkpoint(keys: Iterable[str]) -> str:
    """Say which parts of a base a file with a UNet holds."""
    missing = _describe_missing_parts(keys)
    if missing == LONE_UNET:
        return f"a {LONE_UNET}"
    return f"a checkpoint {missing}" if missing else "a whole checkpoint"


def guess_checkpoint_family(cross_width: int) -> str:
    """Return the family whose cross-attention reads contexts of this width, or "" if there is none."""
    return "SDXL refiner" if cross_width == REFINER_WIDTH else FAMILY_BY_CROSS_WIDTH.get(cross_width, "")


def describe_channels(channels: int) -> str:
    """Say what a UNet with so many input channels is made for; "" for a plain one."""
    return "" if channels == LATENT_CHANNELS else PURPOSE_BY_CHANNELS.get(channels, f"of {channels} channels")


def _a1111_card_fields(payload: Mapping[object, object]) -> dict[str, object]:
    """Return the fields of a card that A1111 stores beside an embedding's vectors."""
    name = payload.get("name")
    return {**training_fields(payload), **({"name": name} if isinstance(name, str) else {})}


def _is_embedding(key: str, tensor: Tensor) -> bool:
    return tensor.ndim in {1, 2} and tensor.is_floating_point() and not key.endswith((".weight", ".bias"))


def _embedding_card(vectors: list[Tensor]) -> Card:
    """Return the card of an embedding with these vectors, one tensor for every text encoder."""
    count = max((tensor.shape[0] if tensor.ndim > 1 else 1 for tensor in vectors), default=0)
    widths = [tensor.shape[-1] if tensor.ndim else 0 for tensor in vectors]
    outline = f"{count} vector{'' if count == 1 else 's'} of {' and '.join(map(str, widths))}"
    family = FAMILY_BY_CROSS_WIDTH.get(widths[0], "") if len(widths) == 1 else ""
    return Card(kind="embedding", outline=outline, family=family)


def _is_cross_key(key: str) -> bool:
    return key.endswith(CROSS_KEY_ENDS) and key.startswith((UNET_PREFIX, EMA_UNET_PREFIX))


def _has_prefix(keys: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefixes) for key in keys)
