"""Where a file belongs: by what is in it, in the layout that a folder has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

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
