"""What is computed once and kept in the work folder, under a name that changes with what it was made from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import drawing


def kept(work: Path, name: str, key: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array of that name and key, made and written if it is not there yet; never half written."""
    path = work / f"{name}-{key}.npy"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        beside = work / f"{name}-{key}.part.npy"
        np.save(beside, make())
        beside.replace(path)
    return np.load(path)


def drawing_key() -> str:
    """A key of the painter's whole source: another painter draws other pictures."""
    (folder,) = drawing.__path__
    return _short(b"".join(path.read_bytes() for path in sorted(Path(folder).glob("*.py"))))


def file_key(*paths: Path) -> str:
    """A key of what files hold."""
    return _short(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths))


def note(work: Path, key: str, value: object) -> None:
    """Keep a measured figure in work/notes.json, for the model card."""
    path = work / "notes.json"
    notes = json.loads(path.read_text()) if path.exists() else {}
    notes[key] = value
    path.write_text(json.dumps(notes, indent=1))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:10]
