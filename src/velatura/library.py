"""Folders of overlays: find one by its name, load it once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from os import PathLike
from pathlib import Path

from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.formats import DIALECTS, hns, open_overlay
from velatura.overlays.overlay import Overlay

# where A1111 keeps its overlays, below its own folder and below its models folder
A1111_FOLDERS = ("models/hypernetworks", "hypernetworks")


class Library:
    """Overlays in folders, called by the stem of their file, whatever its case.

    A folder of A1111's layout is searched where A1111 keeps overlays, any other one whole, but for hidden folders and
    for the snapshots of trainings. Where two files share a stem the folder given first wins, then safetensors, then the
    first path; a call by such a stem is warned of, unless the files are one overlay in two formats, side by side. Files
    are looked for at each call, and read once for as long as they stay unchanged.
    """

    def __init__(self, *folders: str | PathLike[str]) -> None:
        self._folders = [Path(folder).expanduser() for folder in folders]
        self._loaded: dict[tuple[Path, int, int], Overlay] = {}
        for folder in self._folders:
            if not folder.is_dir():
                raise BadFile(f"{folder} is no folder: give the folder where overlays lie")

    def names(self) -> list[str]:
        """The names of all overlays, sorted."""
        return sorted((paths[0].stem for paths in self._paths().values()), key=str.lower)

    def path(self, name: str) -> Path:
        """Where the overlay of that name lies."""
        paths = self._paths().get(name.lower())
        if paths is None:
            raise UnknownName.among("overlay", name, self.names(), " or ".join(map(str, self._folders)))
        chosen, *others = paths
        if rival := next((each for each in others if _bare(each) != _bare(chosen)), None):
            said = f"{chosen} and {rival} are both called {chosen.stem!r}: the first is taken, so rename one"
            warnings.warn(said, VelaturaWarning, stacklevel=2)
        return chosen

    def overlay(self, name: str) -> Overlay:
        """The overlay of that name: the same object at every call, until its file changes."""
        path = self.path(name)
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_size)
        if key not in self._loaded:
            self._loaded[key] = open_overlay(path, partial(self._member, path))
        return self._loaded[key]

    def _member(self, composition: Path, name: str) -> Overlay:
        """A hypernetwork that a composition names, which is not itself."""
        if self.path(name) == composition:
            raise BadFile(f"{composition} is called {name!r} as what it names is: rename it")
        return self.overlay(name)

    def _paths(self) -> dict[str, list[Path]]:
        """The files of each stem, the one to take first."""
        found: dict[str, list[Path]] = {}
        for folder in self._folders:
            for path in _files(folder):
                found.setdefault(path.stem.lower(), []).append(path)
        return found


def _bare(path: Path) -> Path:
    """What files of one overlay in several formats have in common."""
    return path.resolve().with_suffix("")


def _files(folder: Path) -> Iterator[Path]:
    places = [folder / each for each in A1111_FOLDERS if (folder / each).is_dir()] or [folder]
    found = [sorted(_visible(place)) for place in places]
    for ending in (*(each.ending for each in DIALECTS.values()), hns.ENDING):
        for paths in found:
            # A1111 lists its own "no hypernetwork" as None
            yield from (path for path in paths if path.suffix == ending and path.stem != "None" and path.is_file())


def _visible(place: Path) -> Iterator[Path]:
    """All that lies below a place, linked folders too, but for what is hidden and for snapshots of trainings."""
    seen: set[str] = set()
    for folder, below, names in os.walk(place, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        below[:] = [each for each in below if not each.startswith(".") and each != "snapshots"]
        yield from (Path(folder, name) for name in names if not name.startswith("."))
