"""The library as routes show it: a list that is read again after a while, and files by ids without their paths."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from velatura.errors import ignore_warnings
from velatura.library import Library, file_entry
from velatura.library.entry import LibraryEntry
from velatura.server.errors import not_found
from velatura.server.folders import Folders

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.sampling.resolve.faces import FaceFiles

FRESH_SECONDS = 10.0


class ServerLibrary(Library):
    """Library of a server, whose errors advise a client, which cannot name another folder.

    Args:
        folders: The folders to search.
    """

    def __init__(self, *folders: Path) -> None:
        super().__init__(*folders)
        self._advice = (
            "if its file is elsewhere, put it into a folder of the server's library, or send a job of the kind pull"
        )


class LibraryView:
    """Entries of the library's files, which are searched for at most once in FRESH_SECONDS.

    Args:
        folders: The server's folders.
    """

    def __init__(self, folders: Folders) -> None:
        self._library = ServerLibrary(*folders.library)
        self._folders = folders
        self._lock, self._details_lock = Lock(), Lock()
        self._entries: dict[str, LibraryEntry] = {}
        self._read_at: float | None = None

    def entries(self) -> dict[str, LibraryEntry]:
        """Return the entries by their ids, sorted by name."""
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > FRESH_SECONDS:
                with ignore_warnings():
                    self._entries = {entry_id(entry): entry for entry in self._library.entries()}
                self._read_at = time.monotonic()
            return self._entries

    def of_kind(self, kind: str) -> list[LibraryEntry]:
        """Return the entries of a kind, without snapshots of trainings."""
        return [entry for entry in self.entries().values() if entry.kind == kind and not entry.file.is_snapshot]

    def named(self, name: str, kind: str) -> LibraryEntry:
        """Return the entry of a kind by its name, title or hash, never by a path outside the library.

        Raises:
            UnknownName: There is none.
        """
        with self._lock, ignore_warnings():
            return self._library.entry(name, kind)

    def upscale(
        self,
        image: Image,
        name: str,
        size: tuple[int, int],
        *,
        device: str,
        on_tile: Callable[[int, int], None],
        max_pixels: int,
    ) -> Image:
        """Return an image upscaled by a network of the library.

        Args:
            image: The image.
            name: The name of the network.
            size: Width and height of the result.
            device: Where the network computes.
            on_tile: Called after each tile; what it raises ends the work.
            max_pixels: The most pixels that the network may make before they are resized.

        Raises:
            BadArgument: The network would make more.
            UnknownName: No upscaler has that name.
            BadFile: Its file cannot be read.
        """
        from velatura.sampling.hires import find_upscaler_file
        from velatura.upscaling import upscale_image

        with self._lock, ignore_warnings():
            upscaler = find_upscaler_file(name, self._library)
        return upscale_image(upscaler, image, size, device=device, on_tile=on_tile, max_pixels=max_pixels)

    def face_files(self, name: str) -> FaceFiles:
        """Return the files that restore faces.

        Args:
            name: GFPGAN or CodeFormer.

        Raises:
            UnknownName: One of them is missing.
        """
        from velatura.sampling.resolve.faces import find_face_files

        with self._lock, ignore_warnings():
            return find_face_files(name, self._library)

    def refresh(self) -> None:
        """Search the folders at the next call."""
        self._read_at = None

    def find(self, file_id: str) -> LibraryEntry:
        """Return the entry of an id.

        Raises:
            ApiError: No file has this id.
        """
        entry = self.entries().get(file_id)
        if entry is None:
            raise not_found("file in the library")
        return entry

    def whole(self, entry: LibraryEntry) -> LibraryEntry:
        """Return an entry with its hashes; a hypernetwork's file is opened whole.

        Both are done once for each state of a file, and may take a while: lists and searches do not wait for them.
        """
        with self._details_lock, ignore_warnings():
            if entry.kind != "hypernet" or entry.error:
                return self._library.with_hashes(entry)
            opened = file_entry(entry.path)
            return replace(entry, info=opened.info, hashes=opened.hashes)

    def place(self, entry: LibraryEntry) -> str:
        """Return where a file is: its path below the folder of the library that it is in."""
        for folder in self._folders.library:
            if entry.path.is_relative_to(folder):
                return entry.path.relative_to(folder).as_posix()
        return entry.path.name

    def preview_path(self, entry: LibraryEntry) -> Path | None:
        """Return the path of a file's preview image; one that a link leads out of the library is left out."""
        if entry.preview is None:
            return None
        path = entry.preview.resolve()
        roots = (*self._folders.library, entry.path.resolve().parent)
        return path if any(map(path.is_relative_to, roots)) else None


def entry_id(entry: LibraryEntry) -> str:
    """Return the id of a file in URLs."""
    return sha256(str(entry.path).encode("utf-8", "replace")).hexdigest()[:16]
