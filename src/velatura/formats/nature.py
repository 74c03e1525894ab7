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
from velatura.card import UNKNOWN, Card, Nature
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats import a1111_hypernetwork, aesthetic_pt, flat_hypernetwork, hns, native
from velatura.formats.a1111_fields import described
from velatura.formats.lora_state import state_of
from velatura.formats.nature_lora import lora, told_more
from velatura.formats.peft_lora import adapters_in, joined
from velatura.formats.said import aliases, claimed_hashes, details, said_family, said_in_card
from velatura.overlays.composition import leaves
from velatura.tensors import Contents, as_dict
from velatura.tensors.glimpse import glimpse

State = Mapping[str, Tensor]
Found = tuple[Card, str]  # and who names tensors so

UNET, VAE = "model.diffusion_model.", "first_stage_model."
UNET_ENTRIES = {f"{UNET}input_blocks.0.0.weight": "", "model_ema.diffusion_modelinput_blocks00weight": "EMA only"}
TEXT = ("cond_stage_model.", "conditioner.embedders.")
PURPOSES = {4: "", 5: "depth", 8: "pix2pix", 9: "inpainting"}  # by the channels that a UNet reads
REFINER_WIDTH = 1280
PAIRS = {("clip_l", "clip_g"): "kohya", ("text_encoders_0", "text_encoders_1"): "diffusers"}
WORD_WIDTHS = {each.cross_width: each.name for each in FAMILIES.values()}
MOST_JSON = 2**20  # bytes


def nature_of(path: str | PathLike[str]) -> Nature:
    """What a file of weights or a folder of a model or adapter is; raises BadFile for what cannot be read at all."""
    path = Path(path).expanduser()
    if path.is_dir():
        return _of_folder(path) if (path / "model_index.json").is_file() else _of_adapter(path)
    if path.suffix.lower() == hns.ENDING:
        names = dict.fromkeys(leaf.name for leaf in leaves(hns.read_hns(path)))
        return Nature(card=Card(kind="hypernet", outline=f"of {', '.join(names)}"), dialect="hns", container="text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)  # it is warned of when it is opened
        return _of_contents(glimpse(path))


def _of_adapter(folder: Path) -> Nature:
    """What a folder in peft's layout holds, or those in it for the parts of a pipeline."""
    state = joined({part: state_of(glimpse(path)) for part, path in adapters_in(folder).items()})
    return _of_contents(Contents(folder, state)).model_copy(update={"dialect": "peft", "container": "folder"})


def _of_contents(contents: Contents) -> Nature:
    state, metadata = _state(contents), contents.metadata
    found = (sniff(contents, state) for sniff in SNIFFERS)
    card, dialect = next((each for each in found if each), (Card(kind=UNKNOWN, outline=_guess(state)), ""))
    said = said_in_card(metadata) if dialect != "velatura" else {}
    return Nature(
        card=card.but(**{"family": card.family or said_family(metadata), **said}),
        dialect=dialect,
        container=contents.container,
        tensors=len(state),
        parameters=sum(each.numel() for each in state.values()),
        precisions=tuple(sorted({str(each.dtype).removeprefix("torch.") for each in state.values()})),
        aliases=tuple(dict.fromkeys(filter(None, (card.name, *aliases(metadata))))),
        claimed_hashes=claimed_hashes(metadata),
        details=details(metadata) | (told_more(state) if card.kind == "lora" else {}),
    )


def _state(contents: Contents) -> State:
    """The tensors of a file by name: of a torch file those in its state_dict, or else in all its dicts."""
    if contents.container == "safetensors":
        return contents.tensors
    if isinstance(contents.payload, Tensor):
        return {"": contents.payload}
    payload = as_dict(contents.payload) or {}
    inner = as_dict(payload.get("state_dict"))
    return _flat(inner if inner is not None else contents.payload)


def _flat(payload: object, prefix: str = "") -> dict[str, Tensor]:
    inside = as_dict(payload)
    if inside is None:
        inside = dict[object, object](
            enumerate(cast("list[object]", payload) if isinstance(payload, list | tuple) else ())
        )
    found: dict[str, Tensor] = {}
    for key, each in inside.items():
        found |= {f"{prefix}{key}": each} if isinstance(each, Tensor) else _flat(each, f"{prefix}{key}/")
    return found


def _native(contents: Contents, _: State) -> Found | None:
    if native.CARD not in contents.metadata:
        return None
    try:
        return Card.model_validate_json(contents.metadata[native.CARD]), "velatura"
    except ValidationError as error:
        said = error.errors()[0]["msg"].lower()
        raise BadFile(f"{contents.path.name} has a damaged card ({said}): save the overlay again") from None


def _hypernetwork(contents: Contents, state: State) -> Found | None:
    if flat_hypernetwork.sniff(contents):
        widths = dict.fromkeys(key.partition("_")[0] for key in state)
        return Card(kind="hypernet", outline=",".join(widths)), "flat"
    if contents.container == "safetensors" or not a1111_hypernetwork.sniff(contents):
        return None
    payload = as_dict(contents.payload) or {}
    widths = tuple(key for key in payload if type(key) is int)
    fields = {key: each for key, each in payload.items() if isinstance(key, str) and not key.isdecimal()}
    return described(contents.path, fields, widths, len(state)).card, "a1111"


def _embedding(contents: Contents, state: State) -> Found | None:
    payload = as_dict(contents.payload) or {}
    names = {key.rpartition("/")[2]: each for key, each in state.items()}
    vectors = [each for key, each in state.items() if key.startswith("string_to_param/")]
    if len(vectors) == 1:  # of more terms than one no program reads any
        return _words(vectors).but(**_said_by_a1111(payload)), "a1111"
    for pair, dialect in PAIRS.items():
        if names.keys() == set(pair):
            return _words([names[each] for each in pair]).but(family="SDXL"), dialect
    if names.keys() == {"emb_params"}:
        return _words(list(names.values())), "kohya"
    if len(state) == 1 and "" not in state and all(_is_words(key, each) for key, each in state.items()):
        return _words(list(state.values())), "diffusers"
    return None


def _said_by_a1111(payload: Mapping[object, object]) -> dict[str, object]:
    """The fields of a card that A1111 keeps beside an embedding's vectors."""
    fields = {"name": "name", "base": "sd_checkpoint_name", "base_hash": "sd_checkpoint"}
    texts = {ours: payload[theirs] for ours, theirs in fields.items() if isinstance(payload.get(theirs), str)}
    steps = payload.get("step")
    return {**texts, "steps": steps if type(steps) is int and 0 <= steps < 2**53 else 0}


def _is_words(key: str, tensor: Tensor) -> bool:
    return tensor.ndim in {1, 2} and tensor.is_floating_point() and not key.endswith((".weight", ".bias"))


def _words(vectors: list[Tensor]) -> Card:
    """The card of an embedding of these vectors, one tensor for each text encoder."""
    count = max((each.shape[0] if each.ndim > 1 else 1 for each in vectors), default=0)
    widths = [each.shape[-1] if each.ndim else 0 for each in vectors]
    outline = f"{count} vector{'s' * (count != 1)} of {' and '.join(map(str, widths))}"
    return Card(kind="embedding", outline=outline, family=WORD_WIDTHS.get(widths[0], "") if len(widths) == 1 else "")


def _aesthetic(contents: Contents, state: State) -> Found | None:
    alone = state.get("") if isinstance(contents.payload, Tensor) else None
    if alone is None or not aesthetic_pt.is_vector(alone):
        return None
    width = alone.shape[-1]
    return Card(
        kind="aesthetic", outline=f"an image embedding of {width}", family=aesthetic_pt.FAMILIES.get(width, "")
    ), "a1111"


def _checkpoint(contents: Contents, state: State) -> Found | None:
    entry = next((key for key in UNET_ENTRIES if key in state), None)
    if entry is None:
        return None
    width = next((each.shape[-1] for key, each in state.items() if _is_cross_key(key)), 0)
    family = "SDXL refiner" if width == REFINER_WIDTH else WORD_WIDTHS.get(width, "")
    channels = state[entry].shape[1] if state[entry].ndim > 1 else 0
    missing = [part for part, prefixes in (("VAE", (VAE,)), ("text encoder", TEXT)) if not _any(state, prefixes)]
    velocity = "v_pred" in state or contents.metadata.get("modelspec.prediction_type") == "v"
    facts = (
        *(UNET_ENTRIES[entry], PURPOSES.get(channels, f"of {channels} channels"), "v-prediction" if velocity else ""),
        *("zero terminal SNR" if "ztsnr" in state else "", f"without {' and '.join(missing)}" if missing else ""),
    )
    return Card(kind="checkpoint", outline=", ".join(filter(None, facts)), family=family), "ldm"


def _is_cross_key(key: str) -> bool:
    return key.endswith(("attn2.to_k.weight", "attn2to_kweight")) and key.startswith(
        (UNET, "model_ema.diffusion_model")
    )


def _any(state: State, prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefixes) for key in state)


def _vae(_: Contents, state: State) -> Found | None:
    bare = {key.removeprefix(VAE): each for key, each in state.items() if "conv_in" in key or "mid" in key}
    entry = bare.get("decoder.conv_in.weight")
    if entry is None or "encoder.conv_in.weight" not in bare or entry.ndim < 2:
        return None
    dialect = "diffusers" if any(key.startswith("decoder.mid_block.") for key in bare) else "ldm"
    return Card(kind="vae", outline=f"{entry.shape[1]} latent channels"), dialect


SNIFFERS: tuple[Callable[[Contents, State], Found | None], ...] = (
    *(_native, _hypernetwork, _embedding, _aesthetic, lora, _checkpoint, _vae),
)

GUESSES = {
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "down_blocks.": "a UNet alone, as diffusers names it",
    "input_blocks.": "a UNet alone",
    "text_model.": "a text encoder alone",
    "encoder.layers.": "a text encoder alone",
    f"{UNET}double_blocks.": "a Flux",
    f"{UNET}joint_blocks.": "a Stable Diffusion 3",
    "double_blocks.": "a Flux",
    "optimizer_state_dict": "an optimizer's state",
}


def _guess(state: State) -> str:
    """What it may be that nobody here opens."""
    return next((what for prefix, what in GUESSES.items() if _any(state, (prefix,))), "")


def _of_folder(path: Path) -> Nature:
    """What a folder in diffusers' layout holds, by its configurations."""
    index, unet = _settings(path / "model_index.json"), _settings(path / "unet" / "config.json")
    width, channels = unet.get("cross_attention_dim"), unet.get("in_channels")
    family = "SDXL refiner" if width == REFINER_WIDTH else WORD_WIDTHS.get(width if isinstance(width, int) else 0, "")
    pipeline = index.get("_class_name")
    outline = PURPOSES.get(channels, f"of {channels} channels") if isinstance(channels, int) else "without a UNet"
    details = {"pipeline": str(pipeline)[:100]} if pipeline else {}
    card = Card(kind="checkpoint", outline=outline, family=family)
    return Nature(card=card, dialect="diffusers", container="folder", details=details)


def _settings(path: Path) -> dict[str, object]:
    """A configuration as it stands; raises BadFile where there is none."""
    try:
        with path.open("rb") if path.is_file() else BytesIO() as file:  # a pipe would be waited for
            found: object = json.loads(file.read(MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is missing, or no JSON"
        raise BadFile(f"{path.parent.name}/{path.name} cannot be read ({said}): download the folder again") from None
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}
