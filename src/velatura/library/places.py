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
ENDINGS = (".safetensors", ".sft", ".pt", ".hns", ".ckpt", ".bin")
# where embeddings are kept, they may be in pictures, as in the webui
TENSOR_PICTURES = (".png", ".webp", ".avif", ".jxl")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
NOTES = (".json", ".civitai.info", ".txt", ".description.txt")
MODEL_INDEX = "model_index.json"  # of a folder in diffusers' layout
ADAPTER = "adapter_config.json"  # of a LoRA in peft's layout, in its folder or in one for each part of a pipeline
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_PARTS = ("unet", "text_encoder", "text_encoder_2")
PASSED_OVER = {"snapshots", "venv", "node_modules", "__pycache__", "site-packages"}

# what A1111, Forge, SD.Next and ComfyUI call their folders, and what is kept there
KINDS = {
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


class State(NamedTuple):
    """By what a change of a file is noticed."""

    size: int
    changed: int
    node: int

    @classmethod
    def of(cls, path: Path) -> State:
        """The state of a file as it is now."""
        found = path.stat()
        # numbers of SQLite end at 2**63, those of nodes do not
        return cls(found.st_size, found.st_mtime_ns, found.st_ino % 2**63)


@dataclass(frozen=True)
class Place:
    """A file of weights, or a folder in diffusers' or peft's layout, as it lies in a library's folder.

    below is its path there without its ending, as ComfyUI calls it; meant is the kind that its folder is for, "" for
    any; notes are the files that speak of it, previews its pictures.
    """

    path: Path
    below: str
    meant: str
    state: State
    notes: tuple[Path, ...] = ()
    previews: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What a prompt or a command line calls it."""
        return self.path.name if self.is_folder else self.path.stem

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder in diffusers' or peft's layout."""
        return self.path.suffix.lower() not in (*ENDINGS, *TENSOR_PICTURES)

    def notes_state(self) -> str:
        """By what a change of its notes is noticed."""
        return repr([(each.name, *_state(each)) for each in self.notes])


def places_in(folder: Path) -> list[Place]:
    """All weights in a folder, the ones to prefer first: by ending, then by path.

    A folder of A1111 or ComfyUI holds much else: it is searched in its models, its embeddings (those of the extension
    for aesthetic gradients too) and at its top, any other folder everywhere; hidden files, snapshots of trainings and
    Python's own folders are passed over.
    """
    found = [place for root in _roots(folder) for place in _below(root, folder)]
    loose = (
        []
        if _roots(folder) == [folder]
        else list(_listed(folder, folder, sorted(each.name for each in folder.iterdir())))
    )
    return sorted({each.path: each for each in [*found, *loose]}.values(), key=_preference)


def place_of(path: Path) -> Place:
    """A file of weights, a diffusers folder or an adapter's, wherever it lies and whatever it is called."""
    path = path.absolute()
    beside = {} if path.is_dir() else dict.fromkeys(each.name for each in path.parent.iterdir())
    return _place(path, path.parent, beside)


def told_by(path: Path) -> Path | None:
    """The file by which a change of a place is noticed, of a folder one of those in it; None for any other folder."""
    if not path.is_dir():
        return path
    if (path / MODEL_INDEX).is_file():
        return path / MODEL_INDEX
    adapters = (path / part for part in ("", *ADAPTER_PARTS) if (path / part / ADAPTER).is_file())
    weights = (adapter / name for adapter in adapters for name in ADAPTER_WEIGHTS)
    return next((each for each in weights if each.is_file()), None)


def _preference(place: Place) -> tuple[int, Path]:
    endings = (*ENDINGS, *TENSOR_PICTURES)
    return (len(endings) if place.is_folder else endings.index(place.path.suffix.lower())), place.path


def _roots(folder: Path) -> list[Path]:
    """Where to search a folder: everywhere, if it is laid out as no known program does."""
    models = folder / "models"
    if (folder / MODEL_INDEX).is_file() or not models.is_dir():
        return [folder]
    if not any(each.name.lower() in KINDS for each in models.iterdir()):
        return [folder]
    kept = [*sorted(folder.iterdir()), *sorted(folder.glob("extensions/*/aesthetic_embeddings"))]
    return [models, *(each for each in kept if each.name.lower() in KINDS and each.is_dir())]


def _below(root: Path, folder: Path) -> Iterator[Place]:
    """All weights below a root, linked folders too."""
    seen: set[str] = set()
    for here, below, names in os.walk(root, onerror=_warn, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        if MODEL_INDEX in names:
            below.clear()
            yield _place(Path(here), folder, {})
            continue
        below[:] = [each for each in below if not each.startswith(".") and each not in PASSED_OVER]
        if (ADAPTER in names or set(below) & set(ADAPTER_PARTS)) and told_by(Path(here)):
            yield _place(Path(here), folder, {})
            below[:] = [each for each in below if each not in ADAPTER_PARTS]
            names[:] = [each for each in names if each not in ADAPTER_WEIGHTS]
        yield from _listed(Path(here), folder, names)


def _listed(here: Path, folder: Path, names: list[str]) -> Iterator[Place]:
    """The weights among the names in one folder."""
    beside = dict.fromkeys(names)
    for name in names:
        # A1111 lists its own "no hypernetwork" as None
        path = here / name
        is_weights = name.lower().endswith(ENDINGS) or _may_hold_tensors(path, folder, beside)
        if name.startswith(".") or not is_weights or path.stem == "None":
            continue
        try:
            if path.is_file():
                yield _place(path, folder, beside)
        except FileNotFoundError:  # gone since the folder was listed
            continue


def _may_hold_tensors(path: Path, folder: Path, beside: Mapping[str, object]) -> bool:
    """Whether a file is a picture among embeddings, and no preview of any."""
    if not path.name.lower().endswith(TENSOR_PICTURES) or path.stem.endswith(".preview"):
        return False
    return _meant(path, folder) == "embedding" and not any(path.stem + each in beside for each in ENDINGS)


def _meant(path: Path, folder: Path) -> str:
    """The kind of overlay that the folder around a file is for, "" for any."""
    inside = path.relative_to(folder).parts[:-1]
    return next((KINDS[each.lower()] for each in (folder.name, *inside)[::-1] if each.lower() in KINDS), "")


def _warn(error: OSError) -> None:
    """Warn of a folder that cannot be searched."""
    said = f"{error.filename} cannot be searched ({error.strerror}): what lies there is not found, so make it readable"
    warnings.warn(said, VelaturaWarning, stacklevel=2)


def _place(path: Path, folder: Path, beside: Mapping[str, object]) -> Place:
    inside = path.relative_to(folder)
    has_ending = inside.suffix.lower() in (*ENDINGS, *TENSOR_PICTURES)
    notes = tuple(path.with_name(path.stem + each) for each in NOTES if path.stem + each in beside)
    pictures = (path.stem + middle + each for middle in ("", ".preview") for each in PICTURES)
    state = State.of(told_by(path) or path)
    return Place(
        path,
        (inside.with_suffix("") if has_ending else inside).as_posix(),
        _meant(path, folder),
        state,
        notes,
        tuple(path.with_name(each) for each in pictures if each in beside and each != path.name),
    )


def _state(path: Path) -> State:
    """The state of a file that may be gone by now."""
    try:
        return State.of(path)
    except OSError:
        return State(0, 0, 0)
