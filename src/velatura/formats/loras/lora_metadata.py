"""What files of LoRAs say of themselves, as kohya's scripts and ModelSpec have it, and what of it cannot be so."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from velatura.card import Card
from velatura.errors import VelaturaWarning
from velatura.formats.metadata import aliases, card_fields_from_metadata, family_from_metadata
from velatura.overlays.deltas.delta import Delta

LoraMetadata = Mapping[str, str]

JSON_FIELDS = ("ss_network_args", "ss_tag_frequency", "ss_dataset_dirs", "ss_bucket_info", "ss_datasets")
EMPTY_VALUES = {"", "None"}
FORBIDDEN_IN_NAMES = set('<>/\\"')  # of a name: what belongs to tags and to paths
LOW_RANK_ALGORITHMS = {"lora", "lora-bias", "dora"}
MAX_ALPHA_OVER_RANK = 100  # alpha over rank: trainers take 1 or less, and a hundred is beyond all that works


def build_card(path: Path, metadata: LoraMetadata, detected: Card) -> Card:
    """A LoRA's card: what its tensors tell of it, and what its file says."""
    names = (alias for alias in (*aliases(metadata), path.stem) if not set(alias) & FORBIDDEN_IN_NAMES)
    family = detected.family or family_from_metadata(metadata)
    return detected.replace(name=next(names, ""), family=family, **card_fields_from_metadata(metadata))


def warn_of_metadata(file_name: str, metadata: LoraMetadata, deltas: Sequence[Delta]) -> None:
    """Warn of what a file says of itself and is not so, or cannot be read."""
    for problem in (*_find_unreadable(metadata), *_find_contradictions(metadata, deltas)):
        warnings.warn(f"{file_name} {problem}", VelaturaWarning, 2)


def warn_of_alphas(file_name: str, deltas: Sequence[Delta], *, named_by_kohya: bool) -> None:
    """Warn of alphas that nobody means: below 0, 0, far beyond the rank, or left out where kohya's scripts write it."""
    ratios = [alpha / (delta.rank or 1) for delta in deltas if delta.rank and (alpha := _alpha_of(delta)) is not None]
    without_alpha = [delta for delta in deltas if delta.algorithm in LOW_RANK_ALGORITHMS and _alpha_of(delta) is None]
    problems = {
        f"has no alpha for {len(without_alpha)} of its layers, which then count fully": without_alpha
        and named_by_kohya,
        "has an alpha of 0, so that layers of it do nothing": any(ratio == 0 for ratio in ratios),
        "has an alpha below 0, so that it does the opposite of what it learned": any(ratio < 0 for ratio in ratios),
        f"has an alpha more than {MAX_ALPHA_OVER_RANK} times its rank": any(
            ratio > MAX_ALPHA_OVER_RANK for ratio in ratios
        ),
    }
    for problem, is_present in problems.items():
        if is_present:
            warnings.warn(f"{file_name} {problem}: look at what it makes", VelaturaWarning, 2)


def _find_unreadable(metadata: LoraMetadata) -> Iterator[str]:
    if set(metadata.get("ss_output_name", "")) & FORBIDDEN_IN_NAMES:
        yield "calls itself by signs that no name has (ss_output_name): it goes by its file's name"
    for field in JSON_FIELDS:
        if metadata.get(field, "") not in EMPTY_VALUES and not _is_json(metadata[field]):
            yield f"has a {field} that is no JSON: it is left unread"


def _find_contradictions(metadata: LoraMetadata, deltas: Sequence[Delta]) -> Iterator[str]:
    """Where the rank or the alpha that a file says is that of none of its layers."""
    arguments = metadata.get("ss_network_args", "")
    low_rank_deltas = [delta for delta in deltas if delta.algorithm in LOW_RANK_ALGORITHMS]
    stated, ranks = _read_number(metadata, "ss_network_dim"), {delta.rank for delta in low_rank_deltas if delta.rank}
    if ranks and stated is not None and stated not in ranks:
        yield f"says that its rank is {stated:g} (ss_network_dim), and has {_format_range(ranks)}: its tensors count"
    stated, alphas = (
        _read_number(metadata, "ss_network_alpha"),
        {alpha for delta in low_rank_deltas if (alpha := _alpha_of(delta)) is not None},
    )
    # LyCORIS writes another alpha than it was told where it scales by the root of the rank
    if alphas and stated is not None and stated not in alphas and "rs_lora" not in arguments:
        yield f"says that its alpha is {stated:g} (ss_network_alpha), and has {_format_range(alphas)}: its tensors count"


def _alpha_of(delta: Delta) -> float | None:
    alpha = delta.tensor("alpha")
    return None if alpha is None else float(alpha)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_number(metadata: LoraMetadata, key: str) -> float | None:
    """A number that is written as text, None where it is a word (Dynamic) or not there."""
    try:
        number = float(metadata.get(key, "")[:40])
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _format_range(numbers: set[int] | set[float]) -> str:
    """Some numbers, or the least and the most of many."""
    listed = sorted(numbers)
    return ", ".join(f"{number:g}" for number in listed) if len(listed) < 4 else f"{listed[0]:g} to {listed[-1]:g}"
