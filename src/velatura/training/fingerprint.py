"""What a dataset was when a run began, so that a run that goes on is told when it is another one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from velatura.datasets.folder import Example
from velatura.errors import BadDataset

SHOWN = 3  # names in an error


def fingerprint(examples: Sequence[Example]) -> dict[str, str]:
    """Each picture's name with a hash of all that is known of it: its bytes, its caption, its mask if it has one."""
    found: dict[str, str] = {}
    for example in examples:
        name, number = example.path.name, 2
        while name in found:
            name, number = f"{example.path.name} ({number})", number + 1
        found[name] = _hash(example)
    return found


def refuse_changed(folder: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse pictures that are not those a run began with, naming what changed."""
    changes = {
        "new": sorted(now.keys() - before.keys()),
        "missing": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
    }
    said = [f"{len(names)} {what} ({_listed(names)})" for what, names in changes.items() if names]
    if said:
        raise BadDataset(
            f"{folder} is not what it was when the run began: {', '.join(said)}; "
            "put it back as it was, or say that it may change (data_changed=True, --data-changed)"
        )


def _hash(example: Example) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for field in fields(example):
        value: object = getattr(example, field.name)
        content = value.read_bytes() if isinstance(value, Path) else repr(value).encode()
        digest.update(hashlib.blake2b(content).digest())
    return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
