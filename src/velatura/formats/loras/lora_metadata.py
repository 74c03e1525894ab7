"""Metadata of LoRA files, as sd-scripts and ModelSpec write it: the card made from it, and its contradictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from velatura.card import Card
from velatura.errors import warn
from velatura.files import parse_json
from velatura.formats.loras.keys import ALGORITHM_SUFFIXES
from velatura.formats.loras.layer_bounds import choose_family
from velatura.formats.metadata import Metadata, aliases, card_fields_from_metadata, family_from_metadata
from velatura.overlays.deltas.delta import Delta

TAG_COUNTS = "ss_tag_frequency"  # numbers by tag, by folder or by dataset
JSON_FIELDS = {  # by the type of their values
    "ss_network_args": dict,
    TAG_COUNTS: dict,
    "ss_dataset_dirs": dict,
    "ss_bucket_info": dict,
    "ss_datasets": list,
}
EMPTY_VALUES = {"", "None"}
FORBIDDEN_IN_NAMES = set('<>/\\"')  # characters that belong to tags and to paths
LOW_RANK_ALGORITHMS = {"lora", "lora-bias", "dora"}
# Tensors whose product is the change, so that one of zeros makes the whole change zero
PRODUCT_FACTORS = frozenset(suffix for name in ("LoRA", "LoHa", "LoKr") for suffix in ALGORITHM_SUFFIXES[name])
MAX_ALPHA_OVER_RANK = 100  # trainers use 1 or less; no useful LoRA comes near 100
MAX_NUMBER_LENGTH = 40  # characters of a number in the metadata that are read
MAX_LISTED_NUMBERS = 3


def build_card(path: Path, metadata: Metadata, detected: Card, layers: Iterable[str]) -> Card:
    """Build the card of a LoRA from other programs.

    Args:
        path: Its file, which gives the name if the metadata has none that a prompt can say.
        metadata: The file's metadata.
        detected: The card that its tensors tell: its family counts more than the metadata's.
        layers: kohya's names of its layers, which may tell the family too.
    """
    names = (alias for alias in (*aliases(metadata), path.stem) if not set(alias) & FORBIDDEN_IN_NAMES)
    family = choose_family(detected.family, layers, family_from_metadata(metadata))
    return detected.replace(name=next(names, ""), family=family, **card_fields_from_metadata(metadata))


def warn_of_metadata(file_name: str, metadata: Metadata, deltas: Sequence[Delta]) -> None:
    """Warn of metadata that cannot be read, and of metadata that contradicts the tensors."""
    for problem in (*_find_unreadable(metadata), *_find_contradictions(metadata, deltas)):
        warn(f"{file_name} {problem}")


def warn_of_alphas(file_name: str, deltas: Sequence[Delta], *, is_named_by_kohya: bool) -> None:
    """Warn of alphas that are probably wrong: below 0, 0, or far above the rank, or missing where kohya writes them.

    Args:
        file_name: Name of the file, for messages.
        deltas: The changes of its layers.
        is_named_by_kohya: Kohya's scripts named the tensors; they always write an alpha.
    """
    ratios = _alphas_over_ranks(deltas)
    missing_count = sum(delta.algorithm in LOW_RANK_ALGORITHMS and _alpha_of(delta) is None for delta in deltas)
    problems = {
        f"has no alpha for {missing_count} of its layers, which then act without a scale": missing_count > 0
        and is_named_by_kohya,
        "has an alpha of 0, so that some layers have no effect": any(ratio == 0 for ratio in ratios),
        "has an alpha below 0, so that it does the opposite of what it learned": any(ratio < 0 for ratio in ratios),
        f"has an alpha of more than {MAX_ALPHA_OVER_RANK} times its rank": any(
            ratio > MAX_ALPHA_OVER_RANK for ratio in ratios
        ),
    }
    for problem, is_present in problems.items():
        if is_present:
            warn(f"{file_name} {problem}: check the pictures that it makes")


def warn_of_zero_changes(file_name: str, deltas: Sequence[Delta]) -> None:
    """Warn if the change of every layer is exactly zero, because a factor of its product is, as before training."""
    if deltas and all(_is_zero_product(delta) for delta in deltas):
        warn(
            f"{file_name} has no effect: a factor of every layer's change holds only zeros, as before training; use a "
            "trained copy"
        )


def _is_zero_product(delta: Delta) -> bool:
    """Return True if the change is a product with a factor of zeros, and nothing is added to it or rescaled."""
    tensors = delta.state_dict()
    others = tensors.keys() - PRODUCT_FACTORS - {"alpha"}
    factors = [tensors[suffix] for suffix in tensors.keys() & PRODUCT_FACTORS]
    return not others and any(not bool(factor.any()) for factor in factors)


def _alphas_over_ranks(deltas: Sequence[Delta]) -> list[float]:
    ratios: list[float] = []
    for delta in deltas:
        alpha = _alpha_of(delta)
        if delta.rank and alpha is not None:
            ratios.append(alpha / delta.rank)
    return ratios


def _find_unreadable(metadata: Metadata) -> Iterator[str]:
    if set(metadata.get("ss_output_name", "")) & FORBIDDEN_IN_NAMES:
        yield "has a name with <, >, /, \\ or quotes in its metadata (ss_output_name): the file's name is used instead"
    for field, field_type in JSON_FIELDS.items():
        if metadata.get(field, "") not in EMPTY_VALUES:
            yield from _find_json_problems(field, metadata[field], field_type)


def _find_json_problems(field: str, text: str, field_type: type) -> Iterator[str]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        yield f"has a {field} that is not JSON: it is ignored"
        return
    if value is not None and not isinstance(value, field_type):
        expected = "an object" if field_type is dict else "a list"
        yield f"has a {field} that is not {expected} in JSON: it is ignored"
    elif field == TAG_COUNTS and not _are_counts(value):
        yield f"has a {field} with values that are not counts of tags: it is ignored"


def _are_counts(value: object, max_depth: int = 3) -> bool:
    """Return True for numbers of 0 or more in objects, which may be in objects of folders and datasets."""
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).values()
        return max_depth > 0 and all(_are_counts(item, max_depth - 1) for item in items)
    return value is None or (isinstance(value, int | float) and value >= 0)


def _find_contradictions(metadata: Metadata, deltas: Sequence[Delta]) -> Iterator[str]:
    """Say where the metadata's rank or alpha is not the rank or alpha of any layer."""
    low_rank_deltas = [delta for delta in deltas if delta.algorithm in LOW_RANK_ALGORITHMS]
    ranks = {delta.rank for delta in low_rank_deltas if delta.rank}
    stated_rank = _read_number(metadata, "ss_network_dim")
    if ranks and stated_rank is not None and stated_rank not in ranks:
        yield (
            f"has the rank {stated_rank:g} in its metadata (ss_network_dim) and {_format_range(ranks)} in its tensors: "
            "the tensors count"
        )
    alphas = {alpha for alpha in map(_alpha_of, low_rank_deltas) if alpha is not None}
    stated_alpha = _read_number(metadata, "ss_network_alpha")
    # LyCORIS multiplies the alpha that it writes by a root of the rank where rs_lora is set
    is_rescaled = "rs_lora" in metadata.get("ss_network_args", "")
    if alphas and stated_alpha is not None and stated_alpha not in alphas and not is_rescaled:
        yield (
            f"has the alpha {stated_alpha:g} in its metadata (ss_network_alpha) and {_format_range(alphas)} in its "
            "tensors: the tensors count"
        )


def _alpha_of(delta: Delta) -> float | None:
    alpha = delta.tensor("alpha")
    return None if alpha is None else float(alpha)


def _read_number(metadata: Metadata, key: str) -> float | None:
    """Return a number from the metadata, or None if it is missing or a word such as Dynamic."""
    try:
        number = float(metadata.get(key, "")[:MAX_NUMBER_LENGTH])
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _format_range(numbers: set[int] | set[float]) -> str:
    """List a few numbers, or name the least and the greatest of many."""
    ordered = sorted(numbers)
    if len(ordered) <= MAX_LISTED_NUMBERS:
        return ", ".join(f"{number:g}" for number in ordered)
    return f"{ordered[0]:g} to {ordered[-1]:g}"
