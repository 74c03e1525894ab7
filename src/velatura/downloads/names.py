"""Names of files as strangers give them, made safe for a folder of ours."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

from velatura.errors import DownloadFailed

MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".bin", ".hns")
MAX_NAME_BYTES = 180  # bytes: file systems allow 255, and what lies beside the file has longer names
# names that Windows keeps for devices, whatever their ending
WINDOWS_DEVICE_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)),
}


def safe_name(name: str) -> str:
    """The name of a model file without folders, control characters, and what some system cannot write.

    Raises DownloadFailed where the ending is of no file that holds a model.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    printable = "".join(character for character in last if character.isprintable() and character not in '<>:"|?*')
    path = PurePath(printable.strip(" .").lstrip("-"))
    ending = path.suffix.lower()
    if ending not in MODEL_ENDINGS:
        raise DownloadFailed(
            f"{printable[:80]!r} is no file of a model: those that end in {', '.join(MODEL_ENDINGS)} are fetched"
        )
    return _shorten(path.stem.strip(" ."), ending) + ending


def is_model(name: str) -> bool:
    """Whether a name ends as the files of models do."""
    return PurePath(name).suffix.lower() in MODEL_ENDINGS


def _shorten(stem: str, ending: str) -> str:
    while len((stem + ending).encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return f"_{stem}" if stem.partition(".")[0].lower() in WINDOWS_DEVICE_NAMES else stem
