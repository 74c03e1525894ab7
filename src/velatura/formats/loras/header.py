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
from velatura.formats.metadata import model_spec_fields
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora
from velatura.tensors import write_safetensors

LORA_MODULE, LYCORIS_MODULE = "networks.lora", "lycoris.kohya"
# what A1111 and others tell the family by: sd-scripts' names of base models
KOHYA_BASE_MODELS = {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
# by LyCORIS's words, where they are others than ours
LYCORIS_ALGORITHMS = {"oft": "diag-oft", "dora": "lora", "lora-bias": "lora"}
KEPT_PREFIXES = ("ss_", "modelspec.", "ssmd_")
LEGACY_HASH_BYTES = slice(0x100000, 0x110000)  # of a file's bytes, which the oldest webuis hashed
DYNAMIC = "Dynamic"  # sd-scripts' own word


def build_header(lora: Lora, title: str) -> dict[str, str]:
    """All fields of a LoRA's header: those that its own file had, and those that its card and its layers tell."""
    stored = {key: value for key, value in lora.metadata.items() if key.startswith(KEPT_PREFIXES)}
    layers = lora.layers.values()
    computed = _network_fields(layers) | _card_fields(lora.card)
    actual = {"ss_network_dim": _ranks(layers), "ss_network_alpha": _alphas(layers)}
    outdated = {key for key, numbers in actual.items() if numbers and not _is_among(stored.get(key, ""), numbers)}
    base_values = base_fields(FAMILIES.get(lora.card.family), lora.card.family, lora.card.name or title)
    header = base_values | computed | {key: value for key, value in stored.items() if key not in outdated}
    return {key: value for key, value in header.items() if value}


def base_fields(family: Family | None, family_name: str, title: str) -> dict[str, str]:
    """The fields that say what bases a LoRA is for, and its title; named: the family, where nobody here knows it."""
    v_suffix = "_v" if family and family.prediction == "v_prediction" else ""
    version = KOHYA_BASE_MODELS.get(family_name, f"velatura_{family_name}") + v_suffix if family_name else ""
    spec = model_spec_fields(family, title, kind="lora") if family else {"modelspec.title": title}
    return {"ss_base_model_version": version, "ss_v2": str(family_name == "SD2"), "ss_output_name": title} | spec


def rank_fields(ranks: Collection[float], alphas: Collection[float]) -> dict[str, str]:
    """The fields of rank and alpha, as sd-scripts write what differs between layers."""
    texts = [
        _format_number(next(iter(numbers))) if len(set(numbers)) == 1 else DYNAMIC if numbers else ""
        for numbers in (ranks, alphas)
    ]
    return {"ss_network_dim": texts[0], "ss_network_alpha": texts[1]}


def add_hashes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """A header with sshs_model_hash, of the tensors' bytes, and sshs_legacy_hash, of 64 KiB behind the first MiB.

    Both are of a file that has sd-scripts' own fields only in its header, as those scripts reckon them.
    """
    kohya_fields = {key: value for key, value in header.items() if key.startswith("ss_")}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bare.safetensors"
        write_safetensors(path, tensors, kohya_fields)
        file_bytes = path.read_bytes()
    body = memoryview(file_bytes)[8 + int.from_bytes(file_bytes[:8], "little") :]
    legacy = sha256(memoryview(file_bytes)[LEGACY_HASH_BYTES]).hexdigest()[:8]
    return {**header, "sshs_model_hash": sha256(body).hexdigest(), "sshs_legacy_hash": legacy}


def _network_fields(layers: Collection[Delta]) -> dict[str, str]:
    algorithms = sorted({LYCORIS_ALGORITHMS.get(delta.algorithm, delta.algorithm) for delta in layers})
    is_plain_lora = algorithms == ["lora"] and not any(delta.tensor("dora_scale") is not None for delta in layers)
    arguments = {} if is_plain_lora else {"algo": algorithms[0] if len(algorithms) == 1 else "mixed"}
    fields = {
        "ss_network_module": LORA_MODULE if is_plain_lora else LYCORIS_MODULE,
        "ss_network_args": json.dumps(arguments),
    }
    return fields | rank_fields(_ranks(layers), _alphas(layers))


def _ranks(layers: Collection[Delta]) -> set[int]:
    return {delta.rank for delta in layers if delta.rank}


def _alphas(layers: Collection[Delta]) -> set[float]:
    """The alphas of what has a rank, which is its alpha where none is written down."""
    ranks_and_alphas = ((delta.rank, delta.tensor("alpha")) for delta in layers if delta.rank)
    return {float(rank if alpha is None else alpha) for rank, alpha in ranks_and_alphas}


def _is_among(text: str, numbers: Collection[float]) -> bool:
    try:
        return text == DYNAMIC or float(text) in numbers
    except ValueError:
        return False


def _format_number(number: float) -> str:
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
