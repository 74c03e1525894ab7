"""One file, fetched: from where it broke off if it is still the same, no larger than allowed, and checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import httpx2
from httpx2 import Response

from velatura.downloads.names import is_model, safe_name
from velatura.downloads.part import Digest, Note, Part
from velatura.downloads.web import BROKEN, TRIES, Web, readable, shown
from velatura.errors import DownloadFailed

STARTS = 3  # from nothing: a server that never goes on where we stopped would keep us forever

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Wanted:
    """A file as it is offered: name, size and digest as far as somebody vouches for them; about is a rough size."""

    url: str
    name: str | None = None
    size: int | None = None
    digest: Digest | None = None
    about: int | None = None


class _Extent(NamedTuple):
    """What an answer says of itself: where it begins, and how long the whole is."""

    start: int
    total: int | None


def name_of(web: Web, wanted: Wanted) -> str:
    """What the file will be called: as its service says, as its address ends, or as its server answers."""
    if wanted.name is not None:
        return safe_name(wanted.name)
    last = PurePosixPath(readable(wanted.url).path).name
    if is_model(last):
        return safe_name(last)
    with web.opened(wanted.url) as response:
        _refuse_page(response)
        given = _disposition(response.headers.get("content-disposition", ""))
        return safe_name(given or PurePosixPath(response.url.path).name)


class Transfer:
    """Fetches one file into its part; limit is the most bytes it may have."""

    def __init__(self, web: Web, wanted: Wanted, part: Part, *, limit: int, on_bytes: OnBytes | None = None) -> None:
        self._web = web
        self._wanted = wanted
        self._part = part
        self._limit = limit
        self._on_bytes = on_bytes or _tell_nobody

    def run(self) -> None:
        """Fetch what is missing of the part, until it is whole and right."""
        self._refuse_large(self._wanted.size or self._wanted.about or 0)
        for start in range(STARTS):
            is_resumed = self._part.size > 0
            if self._is_whole() and self._is_right(may_retry=is_resumed and start < STARTS - 1):
                return
        raise DownloadFailed(f"{self._place} changes while it is fetched: try again later")

    @property
    def _place(self) -> str:
        return shown(self._wanted.url)

    def _is_whole(self) -> bool:
        """Go on with the part through broken connections; whether it has come to its end, or must be begun anew."""
        failures, most = 0, self._part.size
        while True:
            try:
                with self._web.opened(self._wanted.url, self._resuming()) as response:
                    return self._taken(response)
            except BROKEN as error:
                failures = 0 if self._part.size > most else failures + 1
                most = max(most, self._part.size)
                if failures == TRIES:
                    raise DownloadFailed(
                        f"{self._place} broke off after {self._part.size:,} bytes ({error}): "
                        "what has come is kept, the same command goes on"
                    ) from None
                self._web.wait(failures)
            except httpx2.HTTPError as error:
                raise DownloadFailed(f"{self._place} cannot be read ({error}): try again later") from None
            except OSError as error:
                raise DownloadFailed(
                    f"{self._part.path} cannot be written ({error.strerror or error}): "
                    "make room, or choose another folder; what has come is kept"
                ) from None

    def _resuming(self) -> dict[str, str]:
        """What asks for the rest only, and only of the same file."""
        note = self._part.note()
        if note is None or note.url != self._place or not (note.validator or self._wanted.digest):
            self._part.clear()
            return {}
        unless_changed = {"If-Range": note.validator} if note.validator else {}
        return {"Range": f"bytes={self._part.size}-", **unless_changed}

    def _taken(self, response: Response) -> bool:
        """Write what an answer brings; False if it is not the rest of what is here."""
        extent = _extent(response)
        if response.status_code == 416:
            if extent.total == self._part.size > 0:
                return True
            self._part.clear()
            return False
        _refuse_page(response)
        if extent.start != (self._part.size if response.status_code == 206 else 0):
            self._part.clear()
            return False
        self._refuse_extent(extent)
        if extent.start == 0:
            self._part.begin(Note(self._place, _validator(response), extent.total))
        with self._part.path.open("ab") as file:
            self._write(response, file, extent.total)
        return self._is_complete(extent.total)

    def _write(self, response: Response, file: IO[bytes], total: int | None) -> None:
        done = self._part.size
        most = min(each for each in (total, self._wanted.size, self._limit) if each is not None)
        for chunk in response.iter_raw():
            done += len(chunk)
            if done > most:
                self._refuse_endless(most)
            file.write(chunk)
            self._on_bytes(done, total or self._wanted.size)

    def _is_complete(self, total: int | None) -> bool:
        """Whether all has come; a connection that ends early without an error counts as broken off."""
        promised = total or self._wanted.size
        if promised is not None and self._part.size < promised:
            raise httpx2.RemoteProtocolError(f"{self._part.size:,} of {promised:,} bytes")
        return True

    def _is_right(self, *, may_retry: bool) -> bool:
        """Compare with what was promised; a part that was begun by another run gets a second chance."""
        digest = self._wanted.digest
        if digest is None or digest.fits(self._part.path):
            return True
        found = digest.of(self._part.path)
        self._part.clear()
        if may_retry:
            return False
        raise DownloadFailed(
            f"{self._place} came with the hash {found[:16]}..., not {digest.value.lower()[:16]}... as promised: "
            "nothing is kept; try again, and do not trust it if that is said again"
        )

    def _refuse_extent(self, extent: _Extent) -> None:
        """Refuse before anything is written what is too large, of another size than promised, or more than fits."""
        if extent.total is None:
            return
        if self._wanted.size not in {None, extent.total}:
            said = f"{extent.total:,} bytes, not {self._wanted.size:,} as promised"
            raise DownloadFailed(f"{self._place} has {said}: try again later, it may be just changing")
        self._refuse_large(extent.total)
        free = shutil.disk_usage(self._part.path.parent).free
        if extent.total - extent.start > free:
            missing = _size(extent.total - extent.start)
            raise DownloadFailed(f"{self._place} needs {missing}, and {_size(free)} are free: choose another disk")

    def _refuse_large(self, size: int) -> None:
        if size > self._limit:
            raise DownloadFailed(
                f"{self._place} has {_size(size)}, over the limit of {_size(self._limit)}: allow more by --limit"
            )

    def _refuse_endless(self, most: int) -> None:
        self._part.clear()
        promise = "the limit" if most == self._limit else "its own size"
        raise DownloadFailed(f"{self._place} sends more than {_size(most)}, {promise}: nothing of it is kept")


def _tell_nobody(_done: int, _total: int | None) -> None:
    """Let nobody watch."""


def _extent(response: Response) -> _Extent:
    """Read Content-Range and Content-Length."""
    if response.status_code in {206, 416}:
        told = response.headers.get("content-range", "")
        found = re.fullmatch(r"bytes (?:(\d{1,15})-\d{1,15}|\*)/(\d{1,15}|\*)", told)
        if found is None:
            return _Extent(-1, None)
        return _Extent(int(found[1] or -1), None if found[2] == "*" else int(found[2]))
    length = response.headers.get("content-length", "")
    return _Extent(0, int(length[:19]) if length.isdecimal() else None)


def _validator(response: Response) -> str:
    """By what the server would know this very file again: a strong ETag, or the time of its last change."""
    etag = response.headers.get("etag", "")
    found = etag if etag.startswith('"') else response.headers.get("last-modified", "")
    return found if found.isascii() and found.isprintable() else ""


def _refuse_page(response: Response) -> None:
    """Refuse what is meant for a browser, such as a page to log in."""
    if "text/html" in response.headers.get("content-type", ""):
        place = shown(str(response.url))
        raise DownloadFailed(f"{place} is a web page, not a file: it may want you to log in")


def _disposition(header: str) -> str | None:
    """The file's name in a Content-Disposition, RFC 6266's extended form too."""
    message = Message()
    message["Content-Disposition"] = "".join(filter(str.isprintable, header[:1000]))
    return message.get_filename()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
