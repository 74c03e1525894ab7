"""Metadata that written LoRA files get: the fields of sd-scripts and of ModelSpec, and the hashes by both rules."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from velatura.base.families import Family
from velatura.card import Card
from velatura.files import hash_old_window
from velatura.formats.check_metadata import families_of, stated_families
from velatura.formats.metadata import KOHYA_BASE_MODELS, VELATURA_VERSION_PREFIX, family_of_card, model_spec_fields
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora
from velatura.tensors import StateDict, write_safetensors

LORA_MODULE, LYCORIS_MODULE = "networks.lora", "lycoris.kohya"
LYCORIS_ALGORITHMS = {"oft": "diag-oft", "dora": "lora", "lora-bias": "lora"}  # LyCORIS's names where they differ
KEPT_PREFIXES = ("ss_", "modelspec.", "ssmd_")
DYNAMIC = "Dynamic"  # sd-scripts' word for a rank or an alpha that differs between layers
SAFETENSORS_LENGTH_BYTES = 8  # the length of the header, little-endian


def build_header(lora: Lora, title: str) -> dict[str, str]:
    """Return the metadata of a LoRA's file.

    Fields of the file that it came from are kept, except a rank and an alpha that its layers no longer have, and a
    family of bases that has no such layers.

    Args:
        lora: The LoRA.
        title: Its title if its card has no name.
    """
    stored = {key: value for key, value in lora.metadata.items() if key.startswith(KEPT_PREFIXES)}
    families, stated = families_of(lora), stated_families(stored)
    layers = lora.layers.values()
    computed = _network_fields(layers) | _card_fields(lora.card)
    actual = {"ss_network_dim": _ranks(layers), "ss_network_alpha": _alphas(layers)}
    outdated = {key for key, numbers in actual.items() if numbers and not _is_among(stored.get(key, ""), numbers)}
    outdated |= {key for key, family in stated.items() if families and family not in families}
    base_values = base_fields(family_of_card(lora.card), lora.card.family, lora.card.name or title)
    header = base_values | computed | {key: value for key, value in stored.items() if key not in outdated}
    return {key: value for key, value in header.items() if value}


def base_fields(family: Family | None, family_name: str, title: str) -> dict[str, str]:
    """Return the fields that name the bases of a LoRA, and its title.

    Args:
        family: The family of the bases, or None if it is not known here.
        family_name: Name of the family, also of an unknown one; "" for none.
        title: Name of the LoRA for people.
    """
    version = ""
    if family_name:
        suffix = "_v" if family and family.prediction == "v_prediction" else ""
        version = KOHYA_BASE_MODELS.get(family_name, f"{VELATURA_VERSION_PREFIX}{family_name}") + suffix
    spec = model_spec_fields(family, title, kind="lora") if family else {"modelspec.title": title}
    return {"ss_base_model_version": version, "ss_v2": str(family_name == "SD2"), "ss_output_name": title} | spec


def rank_fields(ranks: Collection[float], alphas: Collection[float]) -> dict[str, str]:
    """Return the fields of rank and alpha; sd-scripts write "Dynamic" where layers differ."""
    return {"ss_network_dim": _format_numbers(ranks), "ss_network_alpha": _format_numbers(alphas)}


def add_hashes(tensors: StateDict, header: Mapping[str, str]) -> dict[str, str]:
    """Return the header with the two hashes by which programs know a LoRA.

    sshs_model_hash is the SHA-256 of the tensors' bytes; sshs_legacy_hash that of 64 KiB after the first MiB. As in
    sd-scripts, both are of a file whose header has only the fields of sd-scripts.
    """
    kohya_fields = {key: value for key, value in header.items() if key.startswith("ss_")}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bare.safetensors"
        write_safetensors(path, tensors, kohya_fields)
        file_bytes = memoryview(path.read_bytes())
        legacy_hash = hash_old_window(path)
    header_length = int.from_bytes(file_bytes[:SAFETENSORS_LENGTH_BYTES], "little")
    body = file_bytes[SAFETENSORS_LENGTH_BYTES + header_length :]
    return {**header, "sshs_model_hash": sha256(body).hexdigest(), "sshs_legacy_hash": legacy_hash}


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
    """Return the alphas of all layers with a rank; where a file has no alpha, it is the rank."""
    ranks_and_alphas = ((delta.rank, delta.tensor("alpha")) for delta in layers if delta.rank)
    return {float(rank if alpha is None else alpha) for rank, alpha in ranks_and_alphas}


def _is_among(text: str, numbers: Collection[float]) -> bool:
    try:
        return text == DYNAMIC or float(text) in numbers
    except ValueError:
        return False


def _format_numbers(numbers: Collection[float]) -> str:
    if not numbers:
        return ""
    first, *others = set(numbers)
    return DYNAMIC if others else f"{first:g}"


def _card_fields(card: Card) -> dict[str, str]:
    return {
        "ss_steps": str(card.steps) if card.steps else "",
        "ss_sd_model_name": card.base,
        "ss_sd_model_hash": card.base_hash,
        "ss_training_comment": card.note,
        "modelspec.description": card.note,
        "modelspec.trigger_phrase": ", ".join(card.trigger_words),
    }
