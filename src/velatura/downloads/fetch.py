"""Files and folders, fetched under names of their own and given their real ones when they are whole and known."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from velatura.card import UNKNOWN
from velatura.downloads.content import kind_of
from velatura.downloads.names import is_model
from velatura.downloads.part import Part, alone, refuse_taken
from velatura.downloads.places import place, places
from velatura.downloads.transfer import OnBytes, Transfer, Wanted, name_of
from velatura.downloads.web import Web
from velatura.errors import BadFile, DownloadFailed, VelaturaWarning

GOES_ON = "what has come is kept, the same command goes on"


@dataclass(frozen=True)
class Arrived:
    """Where a file or folder is now, what it is, its SHA-256 if that was checked, and whether it was there before."""

    path: Path
    kind: str
    sha256: str | None = None
    was_there: bool = False


@dataclass(frozen=True)
class Fetch:
    """Fetches into one folder; limit is the most bytes that may come."""

    web: Web
    to: Path
    limit: int
    on_bytes: OnBytes | None = None

    def file(self, wanted: Wanted) -> Arrived:
        """Fetch one file and put it where its kind lies."""
        name = name_of(self.web, wanted)
        sha256 = wanted.digest.sha256 if wanted.digest else None
        with alone(self.to / name):
            if there := self._there(name, wanted):
                return Arrived(there, kind_of(there, name), sha256, was_there=True)
            part = Part(self.to / name)
            with _resumable():
                Transfer(self.web, wanted, part, limit=self.limit, on_bytes=self.on_bytes).run()
            kind = _checked(part, name)
            if kind == UNKNOWN:
                said = (
                    f"{name} holds weights of no kind that is known here: it is kept, and opened by other programs only"
                )
                warnings.warn(said, VelaturaWarning, stacklevel=2)
            target = place(self.to, kind) / name
            part.keep_as(target)
            return Arrived(target, kind, sha256)

    def folder(self, files: Mapping[str, Wanted], name: str) -> Arrived:
        """Fetch the files of a diffusers folder, which has its name when all are there."""
        total = sum(each.size or 0 for each in files.values())
        if total > self.limit:
            said = f"{total / 1e9:.2f} GB in {len(files)} files, over the limit of {self.limit / 1e9:.2f} GB"
            raise DownloadFailed(f"{name} has {said}: allow more by --limit")
        target = place(self.to, "checkpoint") / name
        with alone(target):
            if target.is_dir() and all(_is_there(target / path, wanted) for path, wanted in files.items()):
                return Arrived(target, "checkpoint", was_there=True)
            refuse_taken(target)
            beside = target.with_name(f"{name}.part")
            with _resumable():
                self._gather(files, beside, total)
            beside.rename(target)
        return Arrived(target, "checkpoint")

    def _gather(self, files: Mapping[str, Wanted], folder: Path, total: int) -> None:
        """Fetch all that is not there yet, and see that the weights are weights."""
        before = 0
        for path, wanted in files.items():
            if not _is_there(folder / path, wanted):
                (folder / path).unlink(missing_ok=True)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                part = Part(folder / path)
                self._transfer_of_many(wanted, part, before, total).run()
                if is_model(path):
                    _checked(part, path)
                part.keep_as(folder / path)
            before += (folder / path).stat().st_size

    def _transfer_of_many(self, wanted: Wanted, part: Part, before: int, total: int) -> Transfer:
        def on_bytes(done: int, _total: int | None) -> None:
            if self.on_bytes:
                self.on_bytes(before + done, total)

        return Transfer(self.web, wanted, part, limit=self.limit - before, on_bytes=on_bytes)

    def _there(self, name: str, wanted: Wanted) -> Path | None:
        """The very file where it could lie already; another one of its name is in the way."""
        for path in (each / name for each in places(self.to)):
            if path.is_file() and wanted.digest and wanted.digest.fits(path):
                return path
            refuse_taken(path)
        return None


def _is_there(path: Path, wanted: Wanted) -> bool:
    return path.is_file() and wanted.digest is not None and wanted.digest.fits(path)


def _checked(part: Part, name: str) -> str:
    """The kind of a file that has come; one that cannot be read safely does not stay."""
    try:
        return kind_of(part.path, name)
    except BadFile:
        part.clear()
        raise


@contextmanager
def _resumable() -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(GOES_ON)
        raise
