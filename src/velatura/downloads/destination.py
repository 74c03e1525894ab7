"""Safe file names, and the subfolder of A1111's or ComfyUI's layout for each kind of model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from velatura.errors import DownloadFailed

MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".hns")
MAX_NAME_BYTES = 180  # file systems allow 255, and files beside it have longer names
# Windows reserves these names for devices, with any ending
WINDOWS_DEVICE_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)),
}


def safe_name(name: str) -> str:
    """Return the name of a model file without folders, control characters, and characters that a system forbids.

    Raises:
        DownloadFailed: if the ending is not one of model files.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    printable = "".join(character for character in last if character.isprintable() and character not in '<>:"|?*')
    path = PurePath(printable.strip(" .").lstrip("-"))
    ending = path.suffix.lower()
    if ending not in MODEL_ENDINGS:
        raise DownloadFailed(
            f"{printable[:80]!r} is not a model file: choose one that ends in {', '.join(MODEL_ENDINGS)}"
        )
    return _shorten(path.stem.strip(" ."), ending) + ending


def is_model(name: str) -> bool:
    """Return True if a name has the ending of a model file."""
    return PurePath(name).suffix.lower() in MODEL_ENDINGS


def _shorten(stem: str, ending: str) -> str:
    while len((stem + ending).encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return f"_{stem}" if stem.partition(".")[0].lower() in WINDOWS_DEVICE_NAMES else stem


A1111_FOLDERS = {
    "checkpoint": "models/Stable-diffusion",
    "vae": "models/VAE",
    "upscaler": "models/ESRGAN",
    "hypernet": "models/hypernetworks",
    "lora": "models/Lora",
    "embedding": "embeddings",
}
COMFYUI_FOLDERS = {
    "checkpoint": "models/checkpoints",
    "vae": "models/vae",
    "upscaler": "models/upscale_models",
    "hypernet": "models/hypernetworks",
    "lora": "models/loras",
    "embedding": "models/embeddings",
}
LAYOUT_MARKERS = ("checkpoint", "lora")  # kinds whose folder has a different name in each layout


def kind_folder(folder: Path, kind: str) -> Path:
    """Return the subfolder for a kind of file.

    Args:
        folder: A1111's or ComfyUI's main folder, their folder "models", or any other folder.
        kind: Kind of file, such as "lora".

    Returns:
        The layout's subfolder for the kind, or `folder` if it has neither layout.
    """
    return next((layout[kind] for layout in _layouts(folder) if kind in layout), folder)


def possible_folders(folder: Path) -> list[Path]:
    """Return all folders where a file could be that was downloaded into this folder."""
    return list(dict.fromkeys([folder, *(path for layout in _layouts(folder) for path in layout.values())]))


def _layouts(folder: Path) -> Iterator[Mapping[str, Path]]:
    """Yield the layouts that a folder has, as folders by kind."""
    for layout in (A1111_FOLDERS, COMFYUI_FOLDERS):
        whole = {kind: folder / relative for kind, relative in layout.items()}
        models = {kind: _from_models(folder, relative) for kind, relative in layout.items()}
        yield from (paths for paths in (whole, models) if any(paths[kind].is_dir() for kind in LAYOUT_MARKERS))


def _from_models(folder: Path, relative: str) -> Path:
    """Return a layout's subfolder as seen from its folder "models"; A1111 keeps embeddings beside that folder."""
    return folder / relative.removeprefix("models/") if relative.startswith("models/") else folder.parent / relative
