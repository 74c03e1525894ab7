"""Where weights lie: the files of a folder, whatever program laid it out, each with what stands beside it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from velatura.errors import VelaturaWarning

# in the order in which they are preferred where several have one stem
WEIGHTS_SUFFIXES = (".safetensors", ".sft", ".pt", ".hns", ".ckpt", ".bin")
# where embeddings are kept, they may be in pictures, as in the webui
TENSOR_IMAGE_SUFFIXES = (".png", ".webp", ".avif", ".jxl")
PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SIDECAR_SUFFIXES = (".json", ".civitai.info", ".txt", ".description.txt")
MODEL_INDEX = "model_index.json"  # of a folder in diffusers' layout
ADAPTER_CONFIG = (
    "adapter_config.json"  # of a LoRA in peft's layout, in its folder or in one for each part of a pipeline
)
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_PARTS = ("unet", "text_encoder", "text_encoder_2")
SKIPPED_FOLDERS = {"snapshots", "venv", "node_modules", "__pycache__", "site-packages"}

# what A1111, Forge, SD.Next and ComfyUI call their folders, and what is kept there
FOLDER_KINDS = {
    "stable-diffusion": "checkpoint",
    "checkpoints": "checkpoint",
    "diffusers": "checkpoint",
    "vae": "vae",
    "hypernetworks": "hypernet",
    "hypernetwork": "hypernet",
    "lora": "lora",
    "loras": "lora",
    "lycoris": "lora",
    "embeddings": "embedding",
    "aesthetic_embeddings": "aesthetic",
}


class FileState(NamedTuple):
    """By what a change of a file is noticed."""

    size: int
    modified: int
    inode: int

    @classmethod
    def from_path(cls, path: Path) -> FileState:
        """The state of a file as it is now."""
        stat = path.stat()
        # numbers of SQLite end at 2**63, those of nodes do not
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino % 2**63)


@dataclass(frozen=True)
class ModelFile:
    """A file of weights, or a folder in diffusers' or peft's layout, as it lies in a library's folder.

    below is its path there without its ending, as ComfyUI calls it; meant is the kind that its folder is for, "" for
    any; notes are the files that speak of it, previews its pictures.
    """

    path: Path
    relative_name: str
    expected_kind: str
    state: FileState
    sidecars: tuple[Path, ...] = ()
    previews: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What a prompt or a command line calls it."""
        return self.path.name if self.is_folder else self.path.stem

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder in diffusers' or peft's layout."""
        return self.path.suffix.lower() not in (*WEIGHTS_SUFFIXES, *TENSOR_IMAGE_SUFFIXES)

    def sidecar_state(self) -> str:
        """By what a change of its notes is noticed."""
        return repr([(sidecar.name, *_current_state(sidecar)) for sidecar in self.sidecars])


def find_model_files(folder: Path) -> list[ModelFile]:
    """All weights in a folder, the ones to prefer first: by ending, then by path.

    A folder of A1111 or ComfyUI holds much else: it is searched in its models, its embeddings (those of the extension
    for aesthetic gradients too) and at its top, any other folder everywhere; hidden files, snapshots of trainings and
    Python's own folders are passed over.
    """
    files = [file for root in _search_roots(folder) for file in _walk(root, folder)]
    top_files = (
        []
        if _search_roots(folder) == [folder]
        else list(_list_weights(folder, folder, sorted(path.name for path in folder.iterdir())))
    )
    return sorted({file.path: file for file in [*files, *top_files]}.values(), key=_preference)


def model_file(path: Path) -> ModelFile:
    """A file of weights, a diffusers folder or an adapter's, wherever it lies and whatever it is called."""
    path = path.absolute()
    siblings = {} if path.is_dir() else dict.fromkeys(path.name for path in path.parent.iterdir())
    return _make_model_file(path, path.parent, siblings)


def watched_file(path: Path) -> Path | None:
    """The file by which a change of a place is noticed, of a folder one of those in it; None for any other folder."""
    if not path.is_dir():
        return path
    if (path / MODEL_INDEX).is_file():
        return path / MODEL_INDEX
    adapters = (path / part for part in ("", *ADAPTER_PARTS) if (path / part / ADAPTER_CONFIG).is_file())
    weights = (adapter / name for adapter in adapters for name in ADAPTER_WEIGHTS)
    return next((path for path in weights if path.is_file()), None)


def _preference(file: ModelFile) -> tuple[int, Path]:
    endings = (*WEIGHTS_SUFFIXES, *TENSOR_IMAGE_SUFFIXES)
    return (len(endings) if file.is_folder else endings.index(file.path.suffix.lower())), file.path


def _search_roots(folder: Path) -> list[Path]:
    """Where to search a folder: everywhere, if it is laid out as no known program does."""
    models = folder / "models"
    if (folder / MODEL_INDEX).is_file() or not models.is_dir():
        return [folder]
    if not any(path.name.lower() in FOLDER_KINDS for path in models.iterdir()):
        return [folder]
    candidates = [*sorted(folder.iterdir()), *sorted(folder.glob("extensions/*/aesthetic_embeddings"))]
    return [models, *(path for path in candidates if path.name.lower() in FOLDER_KINDS and path.is_dir())]


def _walk(root: Path, folder: Path) -> Iterator[ModelFile]:
    """All weights below a root, linked folders too."""
    seen: set[str] = set()
    for directory, subfolders, names in os.walk(root, onerror=_warn, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        if MODEL_INDEX in names:
            subfolders.clear()
            yield _make_model_file(Path(directory), folder, {})
            continue
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in SKIPPED_FOLDERS]
        if (ADAPTER_CONFIG in names or set(subfolders) & set(ADAPTER_PARTS)) and watched_file(Path(directory)):
            yield _make_model_file(Path(directory), folder, {})
            subfolders[:] = [name for name in subfolders if name not in ADAPTER_PARTS]
            names[:] = [name for name in names if name not in ADAPTER_WEIGHTS]
        yield from _list_weights(Path(directory), folder, names)


def _list_weights(directory: Path, folder: Path, names: list[str]) -> Iterator[ModelFile]:
    """The weights among the names in one folder."""
    siblings = dict.fromkeys(names)
    for name in names:
        # A1111 lists its own "no hypernetwork" as None
        path = directory / name
        is_weights = name.lower().endswith(WEIGHTS_SUFFIXES) or _may_hold_tensors(path, folder, siblings)
        if name.startswith(".") or not is_weights or path.stem == "None":
            continue
        try:
            if path.is_file():
                yield _make_model_file(path, folder, siblings)
        except FileNotFoundError:  # gone since the folder was listed
            continue


def _may_hold_tensors(path: Path, folder: Path, siblings: Mapping[str, object]) -> bool:
    """Whether a file is a picture among embeddings, and no preview of any."""
    if not path.name.lower().endswith(TENSOR_IMAGE_SUFFIXES) or path.stem.endswith(".preview"):
        return False
    return _expected_kind(path, folder) == "embedding" and not any(
        path.stem + suffix in siblings for suffix in WEIGHTS_SUFFIXES
    )


def _expected_kind(path: Path, folder: Path) -> str:
    """The kind of overlay that the folder around a file is for, "" for any."""
    parts = path.relative_to(folder).parts[:-1]
    return next(
        (FOLDER_KINDS[name.lower()] for name in (folder.name, *parts)[::-1] if name.lower() in FOLDER_KINDS), ""
    )


def _warn(error: OSError) -> None:
    """Warn of a folder that cannot be searched."""
    message = (
        f"{error.filename} cannot be searched ({error.strerror}): what lies there is not found, so make it readable"
    )
    warnings.warn(message, VelaturaWarning, stacklevel=2)


def _make_model_file(path: Path, folder: Path, siblings: Mapping[str, object]) -> ModelFile:
    relative = path.relative_to(folder)
    has_ending = relative.suffix.lower() in (*WEIGHTS_SUFFIXES, *TENSOR_IMAGE_SUFFIXES)
    sidecars = tuple(
        path.with_name(path.stem + suffix) for suffix in SIDECAR_SUFFIXES if path.stem + suffix in siblings
    )
    pictures = (path.stem + infix + suffix for infix in ("", ".preview") for suffix in PREVIEW_SUFFIXES)
    state = FileState.from_path(watched_file(path) or path)
    return ModelFile(
        path,
        (relative.with_suffix("") if has_ending else relative).as_posix(),
        _expected_kind(path, folder),
        state,
        sidecars,
        tuple(path.with_name(name) for name in pictures if name in siblings and name != path.name),
    )


def _current_state(path: Path) -> FileState:
    """The state of a file that may be gone by now."""
    try:
        return FileState.from_path(path)
    except OSError:
        return FileState(0, 0, 0)
