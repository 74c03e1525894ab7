"""What a file of weights is, told by its names and shapes alone: no weight is read, and no name of a file counts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import cast

from pydantic import ValidationError
from torch import Tensor

from velatura.base.families import FAMILIES
from velatura.card import UNKNOWN_KIND, Card, FileInfo
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats import native
from velatura.formats.embeddings import aesthetic
from velatura.formats.hypernetworks import a1111, flat, hns
from velatura.formats.hypernetworks.a1111_fields import build_hypernetwork
from velatura.formats.loras.detect import detect_lora, lora_details
from velatura.formats.loras.read_lora import find_state_dict
from velatura.formats.loras.read_peft import find_adapters, join_adapters
from velatura.formats.metadata import (
    aliases,
    card_fields_from_metadata,
    claimed_hashes,
    family_from_metadata,
    metadata_details,
)
from velatura.overlays.composition import leaves
from velatura.tensors import Contents, as_dict, open_meta

FileTensors = Mapping[str, Tensor]
CardAndDialect = tuple[Card, str]  # and who names tensors so

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
UNET_CONV_IN_KEYS = {
    f"{UNET_PREFIX}input_blocks.0.0.weight": "",
    "model_ema.diffusion_modelinput_blocks00weight": "EMA only",
}
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.embedders.")
PURPOSE_BY_CHANNELS = {4: "", 5: "depth", 8: "pix2pix", 9: "inpainting"}  # by the channels that a UNet reads
REFINER_WIDTH = 1280
SDXL_EMBEDDING_KEYS = {("clip_l", "clip_g"): "kohya", ("text_encoders_0", "text_encoders_1"): "diffusers"}
FAMILY_BY_CROSS_WIDTH = {family.cross_width: family.name for family in FAMILIES.values()}
MAX_JSON_BYTES = 2**20  # bytes


def inspect_file(path: str | PathLike[str]) -> FileInfo:
    """What a file of weights or a folder of a model or adapter is; raises BadFile for what cannot be read at all."""
    path = Path(path).expanduser()
    if path.is_dir():
        return _inspect_folder(path) if (path / "model_index.json").is_file() else _inspect_adapter(path)
    if path.suffix.lower() == hns.HNS_SUFFIX:
        names = dict.fromkeys(leaf.name for leaf in leaves(hns.read_hns(path)))
        return FileInfo(card=Card(kind="hypernet", outline=f"of {', '.join(names)}"), dialect="hns", container="text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)  # it is warned of when it is opened
        return _inspect_contents(open_meta(path))


def _inspect_adapter(folder: Path) -> FileInfo:
    """What a folder in peft's layout holds, or those in it for the parts of a pipeline."""
    state = join_adapters({part: find_state_dict(open_meta(path)) for part, path in find_adapters(folder).items()})
    return _inspect_contents(Contents(folder, state)).model_copy(update={"dialect": "peft", "container": "folder"})


def _inspect_contents(contents: Contents) -> FileInfo:
    state, metadata = _named_tensors(contents), contents.metadata
    results = (detect(contents, state) for detect in DETECTORS)
    card, dialect = next(
        (result for result in results if result), (Card(kind=UNKNOWN_KIND, outline=_guess_unsupported(state)), "")
    )
    metadata_fields = card_fields_from_metadata(metadata) if dialect != "velatura" else {}
    return FileInfo(
        card=card.replace(**{"family": card.family or family_from_metadata(metadata), **metadata_fields}),
        dialect=dialect,
        container=contents.container,
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        precisions=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})),
        aliases=tuple(dict.fromkeys(filter(None, (card.name, *aliases(metadata))))),
        claimed_hashes=claimed_hashes(metadata),
        details=metadata_details(metadata) | (lora_details(state) if card.kind == "lora" else {}),
    )


def _named_tensors(contents: Contents) -> FileTensors:
    """The tensors of a file by name: of a torch file those in its state_dict, or else in all its dicts."""
    if contents.container == "safetensors":
        return contents.tensors
    if isinstance(contents.payload, Tensor):
        return {"": contents.payload}
    payload = as_dict(contents.payload) or {}
    state_dict = as_dict(payload.get("state_dict"))
    return _flatten(state_dict if state_dict is not None else contents.payload)


def _flatten(payload: object, prefix: str = "") -> dict[str, Tensor]:
    children = as_dict(payload)
    if children is None:
        children = dict[object, object](
            enumerate(cast("list[object]", payload) if isinstance(payload, list | tuple) else ())
        )
    tensors: dict[str, Tensor] = {}
    for key, child in children.items():
        tensors |= {f"{prefix}{key}": child} if isinstance(child, Tensor) else _flatten(child, f"{prefix}{key}/")
    return tensors


def _detect_native(contents: Contents, _: FileTensors) -> CardAndDialect | None:
    if native.CARD_KEY not in contents.metadata:
        return None
    try:
        return Card.model_validate_json(contents.metadata[native.CARD_KEY]), "velatura"
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise BadFile(f"{contents.path.name} has a damaged card ({reason}): save the overlay again") from None


def _detect_hypernetwork(contents: Contents, state: FileTensors) -> CardAndDialect | None:
    if flat.sniff(contents):
        widths = dict.fromkeys(key.partition("_")[0] for key in state)
        return Card(kind="hypernet", outline=",".join(widths)), "flat"
    if contents.container == "safetensors" or not a1111.sniff(contents):
        return None
    payload = as_dict(contents.payload) or {}
    widths = tuple(key for key in payload if type(key) is int)
    fields = {key: value for key, value in payload.items() if isinstance(key, str) and not key.isdecimal()}
    return build_hypernetwork(contents.path, fields, widths, len(state)).card, "a1111"


def _detect_embedding(contents: Contents, state: FileTensors) -> CardAndDialect | None:
    payload = as_dict(contents.payload) or {}
    tensors_by_name = {key.rpartition("/")[2]: tensor for key, tensor in state.items()}
    vectors = [tensor for key, tensor in state.items() if key.startswith("string_to_param/")]
    if len(vectors) == 1:  # of more terms than one no program reads any
        return _embedding_card(vectors).replace(**_a1111_card_fields(payload)), "a1111"
    for pair, dialect in SDXL_EMBEDDING_KEYS.items():
        if tensors_by_name.keys() == set(pair):
            return _embedding_card([tensors_by_name[key] for key in pair]).replace(family="SDXL"), dialect
    if tensors_by_name.keys() == {"emb_params"}:
        return _embedding_card(list(tensors_by_name.values())), "kohya"
    if len(state) == 1 and "" not in state and all(_is_embedding(key, tensor) for key, tensor in state.items()):
        return _embedding_card(list(state.values())), "diffusers"
    return None


def _a1111_card_fields(payload: Mapping[object, object]) -> dict[str, object]:
    """The fields of a card that A1111 keeps beside an embedding's vectors."""
    fields = {"name": "name", "base": "sd_checkpoint_name", "base_hash": "sd_checkpoint"}
    texts = {field: payload[key] for field, key in fields.items() if isinstance(payload.get(key), str)}
    steps = payload.get("step")
    return {**texts, "steps": steps if type(steps) is int and 0 <= steps < 2**53 else 0}


def _is_embedding(key: str, tensor: Tensor) -> bool:
    return tensor.ndim in {1, 2} and tensor.is_floating_point() and not key.endswith((".weight", ".bias"))


def _embedding_card(vectors: list[Tensor]) -> Card:
    """The card of an embedding of these vectors, one tensor for each text encoder."""
    count = max((tensor.shape[0] if tensor.ndim > 1 else 1 for tensor in vectors), default=0)
    widths = [tensor.shape[-1] if tensor.ndim else 0 for tensor in vectors]
    outline = f"{count} vector{'s' * (count != 1)} of {' and '.join(map(str, widths))}"
    return Card(
        kind="embedding", outline=outline, family=FAMILY_BY_CROSS_WIDTH.get(widths[0], "") if len(widths) == 1 else ""
    )


def _detect_aesthetic(contents: Contents, state: FileTensors) -> CardAndDialect | None:
    vector = state.get("") if isinstance(contents.payload, Tensor) else None
    if vector is None or not aesthetic.is_image_embedding(vector):
        return None
    width = vector.shape[-1]
    return Card(
        kind="aesthetic", outline=f"an image embedding of {width}", family=aesthetic.FAMILY_BY_LENGTH.get(width, "")
    ), "a1111"


def _detect_checkpoint(contents: Contents, state: FileTensors) -> CardAndDialect | None:
    conv_in_key = next((key for key in UNET_CONV_IN_KEYS if key in state), None)
    if conv_in_key is None:
        return None
    width = next((tensor.shape[-1] for key, tensor in state.items() if _is_cross_key(key)), 0)
    family = "SDXL refiner" if width == REFINER_WIDTH else FAMILY_BY_CROSS_WIDTH.get(width, "")
    channels = state[conv_in_key].shape[1] if state[conv_in_key].ndim > 1 else 0
    missing = [
        part
        for part, prefixes in (("VAE", (VAE_PREFIX,)), ("text encoder", TEXT_ENCODER_PREFIXES))
        if not _has_prefix(state, prefixes)
    ]
    is_v_prediction = "v_pred" in state or contents.metadata.get("modelspec.prediction_type") == "v"
    facts = (
        *(
            UNET_CONV_IN_KEYS[conv_in_key],
            PURPOSE_BY_CHANNELS.get(channels, f"of {channels} channels"),
            "v-prediction" if is_v_prediction else "",
        ),
        *("zero terminal SNR" if "ztsnr" in state else "", f"without {' and '.join(missing)}" if missing else ""),
    )
    return Card(kind="checkpoint", outline=", ".join(filter(None, facts)), family=family), "ldm"


def _is_cross_key(key: str) -> bool:
    return key.endswith(("attn2.to_k.weight", "attn2to_kweight")) and key.startswith(
        (UNET_PREFIX, "model_ema.diffusion_model")
    )


def _has_prefix(state: FileTensors, prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefixes) for key in state)


def _detect_vae(_: Contents, state: FileTensors) -> CardAndDialect | None:
    vae_tensors = {
        key.removeprefix(VAE_PREFIX): tensor for key, tensor in state.items() if "conv_in" in key or "mid" in key
    }
    conv_in = vae_tensors.get("decoder.conv_in.weight")
    if conv_in is None or "encoder.conv_in.weight" not in vae_tensors or conv_in.ndim < 2:
        return None
    dialect = "diffusers" if any(key.startswith("decoder.mid_block.") for key in vae_tensors) else "ldm"
    return Card(kind="vae", outline=f"{conv_in.shape[1]} latent channels"), dialect


DETECTORS: tuple[Callable[[Contents, FileTensors], CardAndDialect | None], ...] = (
    *(
        _detect_native,
        _detect_hypernetwork,
        _detect_embedding,
        _detect_aesthetic,
        detect_lora,
        _detect_checkpoint,
        _detect_vae,
    ),
)

UNSUPPORTED_MODELS = {
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "down_blocks.": "a UNet alone, as diffusers names it",
    "input_blocks.": "a UNet alone",
    "text_model.": "a text encoder alone",
    "encoder.layers.": "a text encoder alone",
    f"{UNET_PREFIX}double_blocks.": "a Flux",
    f"{UNET_PREFIX}joint_blocks.": "a Stable Diffusion 3",
    "double_blocks.": "a Flux",
    "optimizer_state_dict": "an optimizer's state",
}


def _guess_unsupported(state: FileTensors) -> str:
    """What it may be that nobody here opens."""
    return next((model for prefix, model in UNSUPPORTED_MODELS.items() if _has_prefix(state, (prefix,))), "")


def _inspect_folder(path: Path) -> FileInfo:
    """What a folder in diffusers' layout holds, by its configurations."""
    index, unet_config = _read_config(path / "model_index.json"), _read_config(path / "unet" / "config.json")
    width, channels = unet_config.get("cross_attention_dim"), unet_config.get("in_channels")
    family = (
        "SDXL refiner"
        if width == REFINER_WIDTH
        else FAMILY_BY_CROSS_WIDTH.get(width if isinstance(width, int) else 0, "")
    )
    pipeline = index.get("_class_name")
    outline = (
        PURPOSE_BY_CHANNELS.get(channels, f"of {channels} channels") if isinstance(channels, int) else "without a UNet"
    )
    pipeline_details = {"pipeline": str(pipeline)[:100]} if pipeline else {}
    card = Card(kind="checkpoint", outline=outline, family=family)
    return FileInfo(card=card, dialect="diffusers", container="folder", details=pipeline_details)


def _read_config(path: Path) -> dict[str, object]:
    """A configuration as it stands; raises BadFile where there is none."""
    try:
        with path.open("rb") if path.is_file() else BytesIO() as file:  # a pipe would be waited for
            config: object = json.loads(file.read(MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is missing, or no JSON"
        raise BadFile(f"{path.parent.name}/{path.name} cannot be read ({reason}): download the folder again") from None
    return cast("dict[str, object]", config) if isinstance(config, dict) else {}
