"""Where a file belongs: by what is in it, in the layout that a folder has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

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


A1111_FOLDERS = {
    "checkpoint": "models/Stable-diffusion",
    "vae": "models/VAE",
    "hypernet": "models/hypernetworks",
    "lora": "models/Lora",
    "embedding": "embeddings",
}
COMFYUI_FOLDERS = {
    "checkpoint": "models/checkpoints",
    "vae": "models/vae",
    "hypernet": "models/hypernetworks",
    "lora": "models/loras",
    "embedding": "models/embeddings",
}
LAYOUT_MARKERS = ("checkpoint", "lora")  # whose folders have a name of their own in each layout


def kind_folder(folder: Path, kind: str) -> Path:
    """The sub-folder for a kind of file in A1111's or ComfyUI's layout; the folder itself where it has neither.

    The folder may also be the one that both call models.
    """
    return next((layout[kind] for layout in _layouts(folder) if kind in layout), folder)


def possible_folders(folder: Path) -> list[Path]:
    """All places where a file that is fetched into this folder could lie."""
    return list(dict.fromkeys([folder, *(path for layout in _layouts(folder) for path in layout.values())]))


def _layouts(folder: Path) -> Iterator[Mapping[str, Path]]:
    """The layouts that a folder has, as the places of kinds."""
    for layout in (A1111_FOLDERS, COMFYUI_FOLDERS):
        whole = {kind: folder / relative for kind, relative in layout.items()}
        models = {kind: _from_models(folder, relative) for kind, relative in layout.items()}
        yield from (paths for paths in (whole, models) if any(paths[kind].is_dir() for kind in LAYOUT_MARKERS))


def _from_models(folder: Path, relative: str) -> Path:
    """A place as seen from models; A1111 keeps embeddings beside it."""
    return folder / relative.removeprefix("models/") if relative.startswith("models/") else folder.parent / relative
