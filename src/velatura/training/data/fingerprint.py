"""Hashes of a dataset, by which `resume` notices that pictures, captions or masks have changed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from velatura.datasets.folder import Example
from velatura.errors import BadDataset

MAX_LISTED_NAMES = 3  # in an error
# Fields that runs of older versions did not know, with the values that change no hash
LATER_FIELDS: dict[str, object] = {"before": None, "is_mirrored": False}


def fingerprint_examples(examples: Sequence[Example]) -> dict[str, str]:
    """Return a hash of each picture's file, caption, repeats and mask by its name; equal names get a number."""
    digests: dict[str, str] = {}
    for example in examples:
        name, number = example.path.name, 2
        while name in digests:
            name, number = f"{example.path.name} ({number})", number + 1
        digests[name] = _hash(example)
    return digests


def check_data_unchanged(folder: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse a dataset that differs from the one that a run began with.

    Args:
        folder: Named in the error.
        before, now: Hashes by name, see `fingerprint_examples`.

    Raises:
        BadDataset: Pictures are new, missing or changed; the message names them.
    """
    if differences := describe_changes(before, now):
        raise BadDataset(
            f"{folder} has changed since the run began: {differences}; "
            "restore it, or allow the change (data_changed=True, --data-changed)"
        )


def describe_changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which pictures of a dataset are new, missing or changed; "" if none is.

    Args:
        before, now: Hashes by name, see `fingerprint_examples`.
    """
    changes = {
        "new": sorted(now.keys() - before.keys()),
        "missing": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
    }
    return ", ".join(f"{len(names)} {change} ({_list_names(names)})" for change, names in changes.items() if names)


def _hash(example: Example) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for field in fields(example):
        value: object = getattr(example, field.name)
        if field.name in LATER_FIELDS and value == LATER_FIELDS[field.name]:
            continue
        content = value.read_bytes() if isinstance(value, Path) else repr(value).encode()
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED_NAMES]) + (", ..." if len(names) > MAX_LISTED_NAMES else "")
