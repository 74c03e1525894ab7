"""Find the files of weights in a folder, of whatever program, with their sidecars and previews."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from velatura.errors import warn

# the preferred ones first, if several files have the same stem
WEIGHTS_SUFFIXES = (".safetensors", ".sft", ".pt", ".hns", ".ckpt", ".pth", ".bin")
# A1111 stores embeddings in images too, in its folder for embeddings
TENSOR_IMAGE_SUFFIXES = (".png", ".webp", ".avif", ".jxl")
PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SIDECAR_SUFFIXES = (".json", ".civitai.info", ".txt", ".description.txt")
MODEL_INDEX = "model_index.json"  # marks a diffusers folder
ADAPTER_CONFIG = "adapter_config.json"  # marks a LoRA in peft's layout, or each part of one in a subfolder
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_PARTS = ("unet", "text_encoder", "text_encoder_2")
SNAPSHOT_FOLDER, RUN_LOG = "snapshots", "log.jsonl"  # in the folder of a training
SKIPPED_FOLDERS = {SNAPSHOT_FOLDER, "venv", "node_modules", "__pycache__", "site-packages"}

# The folders of A1111, Forge, SD.Next and ComfyUI, and the kind of files in them
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
    "esrgan": "upscaler",
    "realesrgan": "upscaler",
    "bsrgan": "upscaler",
    "upscale_models": "upscaler",
    "gfpgan": "face-restorer",
    "codeformer": "face-restorer",
    "facerestore_models": "face-restorer",
    "facedetection": "face-detector",
}


class FileState(NamedTuple):
    """Size, time and inode by which a change of a file is detected."""

    size: int
    modified: int
    inode: int

    @classmethod
    def from_path(cls, path: Path) -> FileState:
        """Return the current state of a file."""
        stat = path.stat()
        # SQLite stores integers below 2**63 only, and inodes may be larger
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino % 2**63)


@dataclass(frozen=True)
class ModelFile:
    """A file of weights in a library's folder, or a folder in diffusers' or peft's layout.

    Attributes:
        path: Its path.
        relative_name: Its path below the library's folder without the suffix, as ComfyUI names models.
        expected_kind: The kind of files that its folder is for, "" for any.
        state: By which a change of its content is detected.
        sidecars: The files with notes about it.
        previews: Its preview images.
    """

    path: Path
    relative_name: str
    expected_kind: str
    state: FileState
    sidecars: tuple[Path, ...] = ()
    previews: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Name in prompts and on the command line."""
        return self.path.name if self.is_folder else self.path.stem

    @property
    def is_folder(self) -> bool:
        """True for a folder in diffusers' or peft's layout."""
        return self.path.suffix.lower() not in (*WEIGHTS_SUFFIXES, *TENSOR_IMAGE_SUFFIXES)

    @property
    def is_snapshot(self) -> bool:
        """True for a snapshot of a training, which is found by its own name only: inca-000100, not inca."""
        return self.path.parent.name == SNAPSHOT_FOLDER and (self.path.parent.parent / RUN_LOG).is_file()

    def sidecar_state(self) -> str:
        """Return a text by which a change of its sidecars is detected."""
        return repr([(sidecar.name, *_current_state(sidecar)) for sidecar in self.sidecars])


def find_model_files(folder: Path) -> list[ModelFile]:
    """Find all weights in a folder.

    In a folder of A1111 or ComfyUI, which holds much else, only the models, the embeddings (those of the extension for
    aesthetic gradients too) and the top are searched. Any other folder is searched completely. Hidden files, snapshots
    of trainings and Python's own folders are skipped. If the folder is that of a training, its snapshots are searched.

    Returns:
        The files, the preferred ones first: by suffix, then by path.
    """
    files = [file for root in _search_roots(folder) for file in _walk(root, folder)]
    top_files = (
        []
        if _search_roots(folder) == [folder]
        else list(_list_weights(folder, folder, sorted(path.name for path in folder.iterdir())))
    )
    return sorted({file.path: file for file in [*files, *top_files]}.values(), key=_preference)


def model_file(path: Path) -> ModelFile:
    """Return a file of weights, or a diffusers or peft folder, at any path and with any name."""
    path = path.absolute()
    siblings = {} if path.is_dir() else dict.fromkeys(path.name for path in path.parent.iterdir())
    return _make_model_file(path, path.parent, siblings)


def watched_file(path: Path) -> Path | None:
    """Return the file by which a change is detected: the path, or one in a model folder; None for other folders."""
    if not path.is_dir():
        return path
    if (path / MODEL_INDEX).is_file():
        return path / MODEL_INDEX
    adapters = (path / part for part in ("", *ADAPTER_PARTS) if (path / part / ADAPTER_CONFIG).is_file())
    weights = (adapter / name for adapter in adapters for name in ADAPTER_WEIGHTS)
    return next((path for path in weights if path.is_file()), None)


def _preference(file: ModelFile) -> tuple[int, Path]:
    suffixes = (*WEIGHTS_SUFFIXES, *TENSOR_IMAGE_SUFFIXES)
    return (len(suffixes) if file.is_folder else suffixes.index(file.path.suffix.lower())), file.path


def _search_roots(folder: Path) -> list[Path]:
    """Return the subfolders to search; the folder itself if it is not that of a known program."""
    models = folder / "models"
    if (folder / MODEL_INDEX).is_file() or not models.is_dir():
        return [folder]
    if not any(path.name.lower() in FOLDER_KINDS for path in models.iterdir()):
        return [folder]
    candidates = [*sorted(folder.iterdir()), *sorted(folder.glob("extensions/*/aesthetic_embeddings"))]
    return [models, *(path for path in candidates if path.name.lower() in FOLDER_KINDS and path.is_dir())]


def _walk(root: Path, folder: Path) -> Iterator[ModelFile]:
    """Find all weights below a root, in linked folders too."""
    seen: set[str] = set()
    for directory, subfolders, names in os.walk(root, onerror=_warn_of_unreadable_folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link to a parent folder
            subfolders.clear()
            continue
        seen.add(real)
        if MODEL_INDEX in names:
            subfolders.clear()
            yield _make_model_file(Path(directory), folder, {})
            continue
        is_run = Path(directory) == folder and RUN_LOG in names
        skipped = SKIPPED_FOLDERS - {SNAPSHOT_FOLDER} if is_run else SKIPPED_FOLDERS
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped]
        if (ADAPTER_CONFIG in names or set(subfolders) & set(ADAPTER_PARTS)) and watched_file(Path(directory)):
            yield _make_model_file(Path(directory), folder, {})
            subfolders[:] = [name for name in subfolders if name not in ADAPTER_PARTS]
            names[:] = [name for name in names if name not in ADAPTER_WEIGHTS]
        yield from _list_weights(Path(directory), folder, names)


def _list_weights(directory: Path, folder: Path, names: list[str]) -> Iterator[ModelFile]:
    """Find the weights among the names in one folder."""
    siblings = dict.fromkeys(names)
    for name in names:
        path = directory / name
        is_weights = name.lower().endswith(WEIGHTS_SUFFIXES) or _may_hold_tensors(path, folder, siblings)
        # "None" is A1111's name for no hypernetwork
        if name.startswith(".") or not is_weights or path.stem == "None":
            continue
        try:
            if path.is_file():
                yield _make_model_file(path, folder, siblings)
        except FileNotFoundError:  # deleted since the folder was listed
            continue


def _may_hold_tensors(path: Path, folder: Path, siblings: Mapping[str, object]) -> bool:
    """Return True for an image among embeddings that is not a preview."""
    if not path.name.lower().endswith(TENSOR_IMAGE_SUFFIXES) or path.stem.endswith(".preview"):
        return False
    return _expected_kind(path, folder) == "embedding" and not any(
        path.stem + suffix in siblings for suffix in WEIGHTS_SUFFIXES
    )


def _expected_kind(path: Path, folder: Path) -> str:
    """Return the kind of files that the folder around a file is for, "" for any."""
    parts = path.relative_to(folder).parts[:-1]
    for name in reversed((folder.name, *parts)):
        if name.lower() in FOLDER_KINDS:
            return FOLDER_KINDS[name.lower()]
    return ""


def _warn_of_unreadable_folder(error: OSError) -> None:
    warn(f"{error.filename} cannot be searched ({error.strerror}), so its files are not found: make it readable")


def _make_model_file(path: Path, folder: Path, siblings: Mapping[str, object]) -> ModelFile:
    relative = path.relative_to(folder)
    has_known_suffix = relative.suffix.lower() in (*WEIGHTS_SUFFIXES, *TENSOR_IMAGE_SUFFIXES)
    sidecars = tuple(
        path.with_name(path.stem + suffix) for suffix in SIDECAR_SUFFIXES if path.stem + suffix in siblings
    )
    pictures = (path.stem + infix + suffix for infix in ("", ".preview") for suffix in PREVIEW_SUFFIXES)
    state = FileState.from_path(watched_file(path) or path)
    return ModelFile(
        path,
        (relative.with_suffix("") if has_known_suffix else relative).as_posix(),
        _expected_kind(path, folder),
        state,
        sidecars,
        tuple(path.with_name(name) for name in pictures if name in siblings and name != path.name),
    )


def _current_state(path: Path) -> FileState:
    """Return the state of a file, zeros if it is gone."""
    try:
        return FileState.from_path(path)
    except OSError:
        return FileState(0, 0, 0)
