"""Downloads into a folder. Files have temporary names until they are complete and their content is checked."""

from __future__ import annotations

import filecmp
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from velatura.card import UNKNOWN_KIND
from velatura.downloads.destination import is_model, kind_folder, possible_folders
from velatura.downloads.partial_file import PartialFile, lock_target, refuse_existing
from velatura.downloads.transfer import RESUME_HINT, OnBytes, RemoteFile, Transfer, file_name, stated_size
from velatura.downloads.web_client import WebClient
from velatura.errors import BadFile, DownloadFailed, quantity, warn
from velatura.formats.hypernetworks import hns
from velatura.formats.inspect.inspect import inspect_file

SAFETENSORS_ENDINGS = (".safetensors", ".sft")


def detect_kind(path: Path, name: str) -> str:
    """Return the kind of a model file, or "unknown" for weights in a format that velatura does not know.

    Args:
        path: The file.
        name: Name that it will get.

    Raises:
        BadFile: if the file does not hold weights, or is a torch file named .safetensors, or the reverse.
    """
    if name.endswith(hns.HNS_SUFFIX):
        hns.read_hns(path)
        return "hypernet"
    info = inspect_file(path)
    if (info.container == "safetensors") != name.endswith(SAFETENSORS_ENDINGS):
        content = "a safetensors file" if info.container == "safetensors" else "a torch file, not safetensors"
        raise BadFile(f"{name} is {content}, so its ending is wrong: do not trust it")
    return info.card.kind


@dataclass(frozen=True)
class FetchResult:
    """A downloaded file or folder.

    Attributes:
        path: Where it is.
        kind: Kind of model, such as "lora".
        sha256: SHA-256 of a file if it was checked.
        was_there: True if it existed already and nothing was downloaded.
    """

    path: Path
    kind: str
    sha256: str | None = None
    was_there: bool = False


@dataclass(frozen=True)
class Fetcher:
    """Downloads files and diffusers folders into one folder.

    Attributes:
        web: Client for the requests.
        target_folder: Folder, which may have A1111's or ComfyUI's layout.
        limit: Maximum bytes of a download.
        on_bytes: Called with the bytes so far, and with the total if it is known.
    """

    web: WebClient
    target_folder: Path
    limit: int
    on_bytes: OnBytes | None = None

    def fetch_file(self, remote_file: RemoteFile) -> FetchResult:
        """Download one file, check it, and move it to the subfolder for its kind.

        Raises:
            AlreadyExists: if another file has the name.
            DownloadFailed: if the download fails.
            BadFile: if the content is not a model file.
        """
        name = file_name(self.web, remote_file)
        sha256 = remote_file.digest.sha256 if remote_file.digest else None
        with lock_target(self.target_folder / name):
            existing = self._find_existing(name, remote_file)
            if existing is not None:
                return FetchResult(existing, detect_kind(existing, name), sha256, was_there=True)
            part = PartialFile(self.target_folder / name)
            with _hint_on_interrupt():
                Transfer(self.web, remote_file, part, limit=self.limit, on_bytes=self.on_bytes).run()
            kind = _detect_or_discard(part, name)
            rival = self._find_rival(name)
            if rival is not None and _discard_if_same(part, rival):
                return FetchResult(rival, kind, sha256, was_there=True)
            if kind == UNKNOWN_KIND:
                warn(f"{name} holds weights of an unknown kind: it is kept, but velatura does not open it")
            target = kind_folder(self.target_folder, kind) / name
            part.move_to(target)
            return FetchResult(target, kind, sha256)

    def fetch_folder(self, files: Mapping[str, RemoteFile], name: str) -> FetchResult:
        """Download the files of a diffusers folder. The folder gets its name when all files are complete.

        Args:
            files: Files by their paths in the folder.
            name: Name of the folder.

        Raises:
            AlreadyExists: if another folder has the name.
            DownloadFailed: if a download fails, or all files together exceed the limit.
            BadFile: if a model file has a wrong content.
        """
        total = sum(remote_file.size or 0 for remote_file in files.values())
        if total > self.limit:
            message = (
                f"{total / 1e9:.2f} GB in {quantity(len(files), 'file')}, over the limit of {self.limit / 1e9:.2f} GB"
            )
            raise DownloadFailed(f"{name} has {message}: allow more with --limit")
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
        """Download the files that are missing, and check that model files hold weights."""
        before = 0
        for path, remote_file in files.items():
            if not _is_present(folder / path, remote_file):
                (folder / path).unlink(missing_ok=True)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                part = PartialFile(folder / path)
                self._make_transfer(remote_file, part, before, total).run()
                if is_model(path):
                    _detect_or_discard(part, path)
                part.move_to(folder / path)
            before += (folder / path).stat().st_size

    def _make_transfer(self, remote_file: RemoteFile, part: PartialFile, before: int, total: int) -> Transfer:
        def on_bytes(done: int, _total: int | None) -> None:
            if self.on_bytes:
                self.on_bytes(before + done, total)

        return Transfer(self.web, remote_file, part, limit=self.limit - before, on_bytes=on_bytes)

    def _find_existing(self, name: str, remote_file: RemoteFile) -> Path | None:
        """Return the path of the same file if it was downloaded before.

        Raises:
            AlreadyExists: if another file has its name. Without a digest only the size tells that here.
        """
        for subfolder in possible_folders(self.target_folder):
            path = subfolder / name
            if _is_present(path, remote_file):
                return path
            if not self._may_be_same(path, remote_file):
                refuse_existing(path)
        return None

    def _may_be_same(self, path: Path, remote_file: RemoteFile) -> bool:
        """Return True for an existing file that has the size of one without a digest: only the content tells more."""
        if not path.is_file() or remote_file.digest is not None:
            return False
        size = remote_file.size or stated_size(self.web, remote_file)
        return size in {None, path.stat().st_size}

    def _find_rival(self, name: str) -> Path | None:
        """Return the path of an existing file of this name, which nothing but its content can tell from the new one."""
        paths = (subfolder / name for subfolder in possible_folders(self.target_folder))
        return next((path for path in paths if path.is_file()), None)


def _is_present(path: Path, remote_file: RemoteFile) -> bool:
    return path.is_file() and remote_file.digest is not None and remote_file.digest.matches(path)


def _discard_if_same(part: PartialFile, existing: Path) -> bool:
    """Delete a downloaded file if an existing one has the same content; raise AlreadyExists if it has not."""
    is_same = filecmp.cmp(part.path, existing, shallow=False)
    part.clear()
    if not is_same:
        refuse_existing(existing)
    return is_same


def _detect_or_discard(part: PartialFile, name: str) -> str:
    """Return the kind of a downloaded file; delete a file that cannot be read safely."""
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
