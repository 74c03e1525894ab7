"""Files and folders, fetched under names of their own and given their real ones when they are whole and known."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from velatura.card import UNKNOWN_KIND
from velatura.downloads.destination import is_model, kind_folder, possible_folders
from velatura.downloads.partial_file import PartialFile, lock_target, refuse_existing
from velatura.downloads.transfer import OnBytes, RemoteFile, Transfer, file_name
from velatura.downloads.web_client import WebClient
from velatura.errors import BadFile, DownloadFailed, VelaturaWarning
from velatura.formats.hypernetworks import hns
from velatura.formats.inspect.inspect import inspect_file

SAFETENSORS_ENDINGS = (".safetensors", ".sft")


def detect_kind(path: Path, name: str) -> str:
    """The kind of a file that will get this name, or "unknown" for weights that nobody here opens.

    Raises BadFile for what holds no weights, and for a pickle that is called safetensors, or the reverse.
    """
    if name.endswith(hns.HNS_SUFFIX):
        hns.read_hns(path)
        return "hypernet"
    info = inspect_file(path)
    if (info.container == "safetensors") != name.endswith(SAFETENSORS_ENDINGS):
        inside = "is safetensors" if info.container == "safetensors" else "is no safetensors but a torch file"
        raise BadFile(f"{name} {inside}, so it is not called what it is: do not trust it")
    return info.card.kind


RESUME_HINT = "what has come is kept, the same command goes on"


@dataclass(frozen=True)
class FetchResult:
    """Where a file or folder is now, what it is, its SHA-256 if that was checked, and whether it was there before."""

    path: Path
    kind: str
    sha256: str | None = None
    was_there: bool = False


@dataclass(frozen=True)
class Fetcher:
    """Fetches into one folder; limit is the most bytes that may come."""

    web: WebClient
    target_folder: Path
    limit: int
    on_bytes: OnBytes | None = None

    def fetch_file(self, remote_file: RemoteFile) -> FetchResult:
        """Fetch one file and put it where its kind lies."""
        name = file_name(self.web, remote_file)
        sha256 = remote_file.digest.sha256 if remote_file.digest else None
        with lock_target(self.target_folder / name):
            if existing := self._find_existing(name, remote_file):
                return FetchResult(existing, detect_kind(existing, name), sha256, was_there=True)
            part = PartialFile(self.target_folder / name)
            with _hint_on_interrupt():
                Transfer(self.web, remote_file, part, limit=self.limit, on_bytes=self.on_bytes).run()
            kind = _check_kind(part, name)
            if kind == UNKNOWN_KIND:
                message = (
                    f"{name} holds weights of no kind that is known here: it is kept, and opened by other programs only"
                )
                warnings.warn(message, VelaturaWarning, stacklevel=2)
            target = kind_folder(self.target_folder, kind) / name
            part.move_to(target)
            return FetchResult(target, kind, sha256)

    def fetch_folder(self, files: Mapping[str, RemoteFile], name: str) -> FetchResult:
        """Fetch the files of a diffusers folder, which has its name when all are there."""
        total = sum(remote_file.size or 0 for remote_file in files.values())
        if total > self.limit:
            message = f"{total / 1e9:.2f} GB in {len(files)} files, over the limit of {self.limit / 1e9:.2f} GB"
            raise DownloadFailed(f"{name} has {message}: allow more by --limit")
        target = kind_folder(self.target_folder, "checkpoint") / name
        with lock_target(target):
            if target.is_dir() and all(_is_present(target / path, remote_file) for path, remote_file in files.items()):
                return FetchResult(target, "checkpoint", was_there=True)
            refuse_existing(target)
            partial_folder = target.with_name(f"{name}.part")
            with _hint_on_interrupt():
                self._fetch_missing(files, partial_folder, total)
            partial_folder.rename(target)
        return FetchResult(target, "checkpoint")

    def _fetch_missing(self, files: Mapping[str, RemoteFile], folder: Path, total: int) -> None:
        """Fetch all that is not there yet, and see that the weights are weights."""
        before = 0
        for path, remote_file in files.items():
            if not _is_present(folder / path, remote_file):
                (folder / path).unlink(missing_ok=True)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                part = PartialFile(folder / path)
                self._make_transfer(remote_file, part, before, total).run()
                if is_model(path):
                    _check_kind(part, path)
                part.move_to(folder / path)
            before += (folder / path).stat().st_size

    def _make_transfer(self, remote_file: RemoteFile, part: PartialFile, before: int, total: int) -> Transfer:
        def on_bytes(done: int, _total: int | None) -> None:
            if self.on_bytes:
                self.on_bytes(before + done, total)

        return Transfer(self.web, remote_file, part, limit=self.limit - before, on_bytes=on_bytes)

    def _find_existing(self, name: str, remote_file: RemoteFile) -> Path | None:
        """The very file where it could lie already; another one of its name is in the way."""
        for path in (subfolder / name for subfolder in possible_folders(self.target_folder)):
            if path.is_file() and remote_file.digest and remote_file.digest.matches(path):
                return path
            refuse_existing(path)
        return None


def _is_present(path: Path, remote_file: RemoteFile) -> bool:
    return path.is_file() and remote_file.digest is not None and remote_file.digest.matches(path)


def _check_kind(part: PartialFile, name: str) -> str:
    """The kind of a file that has come; one that cannot be read safely does not stay."""
    try:
        return detect_kind(part.path, name)
    except BadFile:
        part.clear()
        raise


@contextmanager
def _hint_on_interrupt() -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(RESUME_HINT)
        raise
