"""What files of LoRAs say of themselves, as kohya's scripts and ModelSpec have it, and what of it cannot be so."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from velatura.card import Card
from velatura.errors import VelaturaWarning
from velatura.formats.said import aliases, said_family, said_in_card
from velatura.overlays.deltas.delta import Delta

Metadata = Mapping[str, str]

JSON_FIELDS = ("ss_network_args", "ss_tag_frequency", "ss_dataset_dirs", "ss_bucket_info", "ss_datasets")
NOTHING = {"", "None"}
ODD = set('<>/\\"')  # of a name: what belongs to tags and to paths
LOW_RANK = {"lora", "lora-bias", "dora"}
STRONGEST = 100  # alpha over rank: trainers take 1 or less, and a hundred is beyond all that works


def card_of(path: Path, metadata: Metadata, told: Card) -> Card:
    """A LoRA's card: what its tensors tell of it, and what its file says."""
    names = (each for each in (*aliases(metadata), path.stem) if not set(each) & ODD)
    family = told.family or said_family(metadata)
    return told.but(name=next(names, ""), family=family, **said_in_card(metadata))


def warn_of_metadata(file: str, metadata: Metadata, deltas: Sequence[Delta]) -> None:
    """Warn of what a file says of itself and is not so, or cannot be read."""
    for said in (*_unreadable(metadata), *_untrue(metadata, deltas)):
        warnings.warn(f"{file} {said}", VelaturaWarning, 2)


def warn_of_alphas(file: str, deltas: Sequence[Delta], *, named_by_kohya: bool) -> None:
    """Warn of alphas that nobody means: below 0, 0, far beyond the rank, or left out where kohya's scripts write it."""
    scales = [alpha / (each.rank or 1) for each in deltas if each.rank and (alpha := _alpha(each)) is not None]
    missing = [each for each in deltas if each.algorithm in LOW_RANK and _alpha(each) is None]
    odd = {
        f"has no alpha for {len(missing)} of its layers, which then count fully": missing and named_by_kohya,
        "has an alpha of 0, so that layers of it do nothing": any(scale == 0 for scale in scales),
        "has an alpha below 0, so that it does the opposite of what it learned": any(scale < 0 for scale in scales),
        f"has an alpha more than {STRONGEST} times its rank": any(scale > STRONGEST for scale in scales),
    }
    for said, true in odd.items():
        if true:
            warnings.warn(f"{file} {said}: look at what it makes", VelaturaWarning, 2)


def _unreadable(metadata: Metadata) -> Iterator[str]:
    if set(metadata.get("ss_output_name", "")) & ODD:
        yield "calls itself by signs that no name has (ss_output_name): it goes by its file's name"
    for field in JSON_FIELDS:
        if metadata.get(field, "") not in NOTHING and not _is_json(metadata[field]):
            yield f"has a {field} that is no JSON: it is left unread"


def _untrue(metadata: Metadata, deltas: Sequence[Delta]) -> Iterator[str]:
    """Where the rank or the alpha that a file says is that of none of its layers."""
    arguments = metadata.get("ss_network_args", "")
    plain = [each for each in deltas if each.algorithm in LOW_RANK]
    said, ranks = _number(metadata, "ss_network_dim"), {each.rank for each in plain if each.rank}
    if ranks and said is not None and said not in ranks:
        yield f"says that its rank is {said:g} (ss_network_dim), and has {_few(ranks)}: its tensors count"
    said, alphas = (
        _number(metadata, "ss_network_alpha"),
        {alpha for each in plain if (alpha := _alpha(each)) is not None},
    )
    # LyCORIS writes another alpha than it was told where it scales by the root of the rank
    if alphas and said is not None and said not in alphas and "rs_lora" not in arguments:
        yield f"says that its alpha is {said:g} (ss_network_alpha), and has {_few(alphas)}: its tensors count"


def _alpha(delta: Delta) -> float | None:
    found = delta.tensor("alpha")
    return None if found is None else float(found)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _number(metadata: Metadata, key: str) -> float | None:
    """A number that is written as text, None where it is a word (Dynamic) or not there."""
    try:
        found = float(metadata.get(key, "")[:40])
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _few(numbers: set[int] | set[float]) -> str:
    """Some numbers, or the least and the most of many."""
    listed = sorted(numbers)
    return ", ".join(f"{each:g}" for each in listed) if len(listed) < 4 else f"{listed[0]:g} to {listed[-1]:g}"
