"""Folders of overlays: find one by its name, load it once."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from velatura.errors import BadFile, UnknownName
from velatura.formats import DIALECTS, open_overlay
from velatura.overlays.overlay import Overlay

# where A1111 keeps its overlays, below its own folder and below its models folder
A1111_FOLDERS = ("models/hypernetworks", "hypernetworks")


class Library:
    """Overlays in folders, called by the stem of their file, whatever its case.

    A folder of A1111's layout is searched where A1111 keeps overlays, any other one whole. Where two files share a stem
    the folder given first wins, then safetensors, then the first path. Files are looked for at each call, and read once
    for as long as they stay unchanged.
    """

    def __init__(self, *folders: str | PathLike[str]) -> None:
        self._folders = [Path(folder).expanduser() for folder in folders]
        self._loaded: dict[tuple[Path, int, int], Overlay] = {}
        for folder in self._folders:
            if not folder.is_dir():
                raise BadFile(f"{folder} is no folder: give the folder where overlays lie")

    def names(self) -> list[str]:
        """The names of all overlays, sorted."""
        return sorted((path.stem for path in self._paths().values()), key=str.lower)

    def path(self, name: str) -> Path:
        """Where the overlay of that name lies."""
        paths = self._paths()
        if name.lower() not in paths:
            raise UnknownName.among("overlay", name, self.names())
        return paths[name.lower()]

    def overlay(self, name: str) -> Overlay:
        """The overlay of that name: the same object at every call, until its file changes."""
        path = self.path(name)
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_size)
        if key not in self._loaded:
            self._loaded[key] = open_overlay(path)
        return self._loaded[key]

    def _paths(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in _files(folder):
                found.setdefault(path.stem.lower(), path)
        return found


def _files(folder: Path) -> Iterator[Path]:
    places = [folder / each for each in A1111_FOLDERS if (folder / each).is_dir()] or [folder]
    for ending in (each.ending for each in DIALECTS.values()):
        for place in places:
            # A1111 lists its own "no hypernetwork" as None
            yield from (path for path in sorted(place.rglob(f"*{ending}")) if path.stem != "None")
