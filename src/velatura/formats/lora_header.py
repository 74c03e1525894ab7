"""What files of LoRAs are given to say of themselves: sd-scripts' fields, ModelSpec's, and the hashes of both rules."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from velatura.base.families import FAMILIES, Family
from velatura.card import Card
from velatura.formats.model_spec import model_spec
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora import Lora
from velatura.tensors import write_safetensors

MODULE, LYCORIS = "networks.lora", "lycoris.kohya"
# what A1111 and others tell the family by: sd-scripts' names of base models
BASE_MODELS = {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
# by LyCORIS's words, where they are others than ours
ALGORITHMS = {"oft": "diag-oft", "dora": "lora", "lora-bias": "lora"}
KEPT = ("ss_", "modelspec.", "ssmd_")
WINDOW = slice(0x100000, 0x110000)  # of a file's bytes, which the oldest webuis hashed
DYNAMIC = "Dynamic"  # sd-scripts' own word


def header_of(lora: Lora, title: str) -> dict[str, str]:
    """All fields of a LoRA's header: those that its own file had, and those that its card and its layers tell."""
    kept = {key: each for key, each in lora.metadata.items() if key.startswith(KEPT)}
    layers = lora.layers.values()
    told = _network(layers) | _card_fields(lora.card)
    true = {"ss_network_dim": _ranks(layers), "ss_network_alpha": _alphas(layers)}
    untrue = {key for key, numbers in true.items() if numbers and not _is_among(kept.get(key, ""), numbers)}
    ours = said_of_base(FAMILIES.get(lora.card.family), lora.card.family, lora.card.name or title)
    found = ours | told | {key: each for key, each in kept.items() if key not in untrue}
    return {key: each for key, each in found.items() if each}


def said_of_base(family: Family | None, named: str, title: str) -> dict[str, str]:
    """The fields that say what bases a LoRA is for, and its title; named: the family, where nobody here knows it."""
    velocity = "_v" if family and family.prediction == "v_prediction" else ""
    version = BASE_MODELS.get(named, f"velatura_{named}") + velocity if named else ""
    spec = model_spec(family, title, kind="lora") if family else {"modelspec.title": title}
    return {"ss_base_model_version": version, "ss_v2": str(named == "SD2"), "ss_output_name": title} | spec


def said_of_ranks(ranks: Collection[float], alphas: Collection[float]) -> dict[str, str]:
    """The fields of rank and alpha, as sd-scripts write what differs between layers."""
    one = [_text(next(iter(each))) if len(set(each)) == 1 else DYNAMIC if each else "" for each in (ranks, alphas)]
    return {"ss_network_dim": one[0], "ss_network_alpha": one[1]}


def with_hashes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """A header with sshs_model_hash, of the tensors' bytes, and sshs_legacy_hash, of 64 KiB behind the first MiB.

    Both are of a file that has sd-scripts' own fields only in its header, as those scripts reckon them.
    """
    own = {key: each for key, each in header.items() if key.startswith("ss_")}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bare.safetensors"
        write_safetensors(path, tensors, own)
        whole = path.read_bytes()
    body = memoryview(whole)[8 + int.from_bytes(whole[:8], "little") :]
    legacy = sha256(memoryview(whole)[WINDOW]).hexdigest()[:8]
    return {**header, "sshs_model_hash": sha256(body).hexdigest(), "sshs_legacy_hash": legacy}


def _network(layers: Collection[Delta]) -> dict[str, str]:
    algorithms = sorted({ALGORITHMS.get(each.algorithm, each.algorithm) for each in layers})
    plain = algorithms == ["lora"] and not any(each.tensor("dora_scale") is not None for each in layers)
    arguments = {} if plain else {"algo": algorithms[0] if len(algorithms) == 1 else "mixed"}
    network = {"ss_network_module": MODULE if plain else LYCORIS, "ss_network_args": json.dumps(arguments)}
    return network | said_of_ranks(_ranks(layers), _alphas(layers))


def _ranks(layers: Collection[Delta]) -> set[int]:
    return {each.rank for each in layers if each.rank}


def _alphas(layers: Collection[Delta]) -> set[float]:
    """The alphas of what has a rank, which is its alpha where none is written down."""
    both = ((each.rank, each.tensor("alpha")) for each in layers if each.rank)
    return {float(rank if alpha is None else alpha) for rank, alpha in both}


def _is_among(text: str, numbers: Collection[float]) -> bool:
    try:
        return text == DYNAMIC or float(text) in numbers
    except ValueError:
        return False


def _text(number: float) -> str:
    return f"{number:g}"


def _card_fields(card: Card) -> dict[str, str]:
    return {
        "ss_steps": str(card.steps) if card.steps else "",
        "ss_sd_model_name": card.base,
        "ss_sd_model_hash": card.base_hash,
        "ss_training_comment": card.note,
        "modelspec.description": card.note,
        "modelspec.trigger_phrase": ", ".join(card.trigger_words),
    }
