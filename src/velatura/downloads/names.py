"""Names of files as strangers give them, made safe for a folder of ours."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

from velatura.errors import DownloadFailed

ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".bin", ".hns")
LONGEST = 180  # bytes: file systems allow 255, and what lies beside the file has longer names
# names that Windows keeps for devices, whatever their ending
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def safe_name(told: str) -> str:
    """The name of a model file without folders, control characters, and what some system cannot write.

    Raises DownloadFailed where the ending is of no file that holds a model.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", told))[-1]
    kept = "".join(each for each in last if each.isprintable() and each not in '<>:"|?*')
    path = PurePath(kept.strip(" .").lstrip("-"))
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DownloadFailed(f"{kept[:80]!r} is no file of a model: those that end in {', '.join(ENDINGS)} are fetched")
    return _short(path.stem.strip(" ."), ending) + ending


def is_model(name: str) -> bool:
    """Whether a name ends as the files of models do."""
    return PurePath(name).suffix.lower() in ENDINGS


def _short(stem: str, ending: str) -> str:
    while len((stem + ending).encode()) > LONGEST:
        stem = stem[:-1]
    return f"_{stem}" if stem.partition(".")[0].lower() in DEVICES else stem
