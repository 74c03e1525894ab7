"""What a dataset was when a run began, so that a run that goes on is told when it is another one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from velatura.datasets.folder import Example
from velatura.errors import BadDataset

MAX_LISTED_NAMES = 3  # names in an error


def fingerprint_examples(examples: Sequence[Example]) -> dict[str, str]:
    """Each picture's name with a hash of all that is known of it: its bytes, its caption, its mask if it has one."""
    digests: dict[str, str] = {}
    for example in examples:
        name, number = example.path.name, 2
        while name in digests:
            name, number = f"{example.path.name} ({number})", number + 1
        digests[name] = _hash(example)
    return digests


def check_data_unchanged(folder: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse pictures that are not those a run began with, naming what changed."""
    changes = {
        "new": sorted(now.keys() - before.keys()),
        "missing": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
    }
    differences = [f"{len(names)} {what} ({_list_names(names)})" for what, names in changes.items() if names]
    if differences:
        raise BadDataset(
            f"{folder} is not what it was when the run began: {', '.join(differences)}; "
            "put it back as it was, or say that it may change (data_changed=True, --data-changed)"
        )


def _hash(example: Example) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for field in fields(example):
        value: object = getattr(example, field.name)
        content = value.read_bytes() if isinstance(value, Path) else repr(value).encode()
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED_NAMES]) + (", ..." if len(names) > MAX_LISTED_NAMES else "")
