"""Transfer of one file: resumed if the file on the server is unchanged, limited in size, checked by its hash."""

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

from velatura.downloads.destination import is_model, safe_name
from velatura.downloads.partial_file import Digest, PartialFile, PartialFileRecord
from velatura.downloads.web_client import CONNECTION_ERRORS, MAX_TRIES, WebClient, parse_url, public_url
from velatura.errors import DownloadFailed

MAX_STARTS = 3  # downloads from the beginning, so that a server that never resumes does not keep us forever
RESUME_HINT = "the bytes so far are kept, the same command resumes the download"

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server. Name, size and digest are None if the service does not state them."""

    url: str
    name: str | None = None
    size: int | None = None
    digest: Digest | None = None
    approximate_size: int | None = None


class _ContentRange(NamedTuple):
    """Offset of an answer in the file, and total bytes of the file."""

    start: int
    total: int | None


def file_name(web: WebClient, remote_file: RemoteFile) -> str:
    """Return the file name: from its service, its URL, or the server's Content-Disposition.

    Raises:
        DownloadFailed: if that is not the name of a model file.
    """
    if remote_file.name is not None:
        return safe_name(remote_file.name)
    last = PurePosixPath(parse_url(remote_file.url).path).name
    if is_model(last):
        return safe_name(last)
    with web.stream(remote_file.url) as response:
        _refuse_page(response)
        header_name = _disposition(response.headers.get("content-disposition", ""))
        return safe_name(header_name or PurePosixPath(response.url.path).name)


def stated_size(web: WebClient, remote_file: RemoteFile) -> int | None:
    """Return the bytes that the server states for a file, or None if it states none; nothing is downloaded."""
    with web.stream(remote_file.url) as response:
        _refuse_page(response)
        return _content_range(response).total


class Transfer:
    """Download of one file into its partial file.

    Args:
        web: Client for the requests.
        remote_file: File to download.
        part: Partial file, which may have bytes of an earlier run.
        limit: Maximum bytes.
        on_bytes: Called with the bytes so far, and with the total if it is known.
    """

    def __init__(
        self, web: WebClient, remote_file: RemoteFile, part: PartialFile, *, limit: int, on_bytes: OnBytes | None = None
    ) -> None:
        self._web = web
        self._remote_file = remote_file
        self._part = part
        self._limit = limit
        self._on_bytes = on_bytes or _ignore_progress

    def run(self) -> None:
        """Download the missing bytes, until the file is complete and its hash is right.

        Raises:
            DownloadFailed: if the connection, the disk, the size or the hash fails.
        """
        self._refuse_large(self._remote_file.size or self._remote_file.approximate_size or 0)
        for start in range(MAX_STARTS):
            is_resumed = self._part.size > 0
            if not self._fetch_rest():
                continue
            if self._has_right_digest():
                return
            is_last = start == MAX_STARTS - 1
            self._discard_wrong_file(may_retry=is_resumed and not is_last)
        raise DownloadFailed(f"{self._public_url} changes during the download: try again later")

    @property
    def _public_url(self) -> str:
        return public_url(self._remote_file.url)

    def _fetch_rest(self) -> bool:
        """Download the rest through broken connections. Return True at the end of the file, False to start again."""
        failures = 0
        largest_size = self._part.size
        while True:
            try:
                with self._web.stream(self._remote_file.url, self._resume_headers()) as response:
                    return self._write_response(response)
            except CONNECTION_ERRORS as error:
                failures = 0 if self._part.size > largest_size else failures + 1
                largest_size = max(largest_size, self._part.size)
                if failures == MAX_TRIES:
                    raise DownloadFailed(
                        f"{self._public_url}: the connection broke after {self._part.size:,} bytes ({error}): "
                        f"{RESUME_HINT}"
                    ) from None
                self._web.wait(failures)
            except httpx2.HTTPError as error:
                raise DownloadFailed(f"{self._public_url} cannot be read ({error}): try again later") from None
            except OSError as error:
                raise DownloadFailed(
                    f"{self._part.path} cannot be written ({error.strerror or error}): "
                    "make room, or choose another folder; the bytes so far are kept"
                ) from None

    def _resume_headers(self) -> dict[str, str]:
        """Return the headers that request the missing bytes of the same file; clear a part that cannot be resumed."""
        record = self._part.read_record()
        if record is None or record.url != self._public_url or not (record.validator or self._remote_file.digest):
            self._part.clear()
            return {}
        unless_changed = {"If-Range": record.validator} if record.validator else {}
        return {"Range": f"bytes={self._part.size}-", **unless_changed}

    def _write_response(self, response: Response) -> bool:
        """Write the bytes of an answer. Return False if they do not continue the part, which is cleared then."""
        content_range = _content_range(response)
        if response.status_code == 416:
            if content_range.total == self._part.size > 0:
                return True
            self._part.clear()
            return False
        _refuse_page(response)
        if content_range.start != (self._part.size if response.status_code == 206 else 0):
            self._part.clear()
            return False
        self._refuse_size(content_range)
        if content_range.start == 0:
            self._part.begin(PartialFileRecord(self._public_url, _validator(response), content_range.total))
        with self._part.path.open("ab") as file:
            self._write(response, file, content_range.total)
        return self._is_complete(content_range.total)

    def _write(self, response: Response, file: IO[bytes], total: int | None) -> None:
        done = self._part.size
        max_bytes = min(limit for limit in (total, self._remote_file.size, self._limit) if limit is not None)
        for chunk in response.iter_raw():
            done += len(chunk)
            if done > max_bytes:
                self._refuse_endless(max_bytes)
            file.write(chunk)
            self._on_bytes(done, total or self._remote_file.size)

    def _is_complete(self, total: int | None) -> bool:
        """Return True; raise RemoteProtocolError if the connection ended early without an error."""
        promised = total or self._remote_file.size
        if promised is not None and self._part.size < promised:
            raise httpx2.RemoteProtocolError(f"{self._part.size:,} of {promised:,} bytes")
        return True

    def _has_right_digest(self) -> bool:
        digest = self._remote_file.digest
        return digest is None or digest.matches(self._part.path)

    def _discard_wrong_file(self, *, may_retry: bool) -> None:
        """Delete a file with a wrong hash; raise DownloadFailed unless it may be downloaded again."""
        digest = self._remote_file.digest
        assert digest is not None
        actual = digest.compute(self._part.path)
        self._part.clear()
        if not may_retry:
            raise DownloadFailed(
                f"{self._public_url} has the hash {actual[:16]}..., but its service states "
                f"{digest.value.lower()[:16]}...: the file is deleted; try again, "
                "and do not trust it if this happens again"
            )

    def _refuse_size(self, content_range: _ContentRange) -> None:
        """Refuse a wrong size, a file over the limit, and one that the disk cannot hold, before anything is written."""
        if content_range.total is None:
            return
        if self._remote_file.size not in {None, content_range.total}:
            sizes = f"{content_range.total:,} bytes, but its service states {self._remote_file.size:,}"
            raise DownloadFailed(f"{self._public_url} has {sizes}: it may be changing, try again later")
        self._refuse_large(content_range.total)
        free = shutil.disk_usage(self._part.path.parent).free
        if content_range.total - content_range.start > free:
            missing_size = _format_size(content_range.total - content_range.start)
            raise DownloadFailed(
                f"{self._public_url} needs {missing_size}, but {_format_size(free)} are free: choose another disk"
            )

    def _refuse_large(self, size: int) -> None:
        if size > self._limit:
            raise DownloadFailed(
                f"{self._public_url} has {_format_size(size)}, over the limit of {_format_size(self._limit)}: "
                "allow more with --limit"
            )

    def _refuse_endless(self, max_bytes: int) -> None:
        self._part.clear()
        bound = "the limit" if max_bytes == self._limit else "its stated size"
        raise DownloadFailed(f"{self._public_url} sends more than {_format_size(max_bytes)}, {bound}: it is deleted")


def _ignore_progress(_done: int, _total: int | None) -> None:
    """Do nothing, if the caller does not show progress."""


def _content_range(response: Response) -> _ContentRange:
    """Parse Content-Range and Content-Length. An offset of -1 means that the header is wrong."""
    if response.status_code in {206, 416}:
        header = response.headers.get("content-range", "")
        range_match = re.fullmatch(r"bytes (?:(\d{1,15})-\d{1,15}|\*)/(\d{1,15}|\*)", header)
        if range_match is None:
            return _ContentRange(-1, None)
        return _ContentRange(int(range_match[1] or -1), None if range_match[2] == "*" else int(range_match[2]))
    length = response.headers.get("content-length", "")
    return _ContentRange(0, int(length[:19]) if length.isdecimal() else None)


def _validator(response: Response) -> str:
    """Return the header by which the server recognises the same file: a strong ETag, or Last-Modified, or ""."""
    etag = response.headers.get("etag", "")
    validator = etag if etag.startswith('"') else response.headers.get("last-modified", "")
    return validator if validator.isascii() and validator.isprintable() else ""


def _refuse_page(response: Response) -> None:
    """Raise DownloadFailed for a web page, such as a login page."""
    if "text/html" in response.headers.get("content-type", ""):
        url = public_url(str(response.url))
        raise DownloadFailed(f"{url} is a web page, not a file: it may need a login")


def _disposition(header: str) -> str | None:
    """Return the file name in a Content-Disposition header, in RFC 6266's extended form too."""
    message = Message()
    message["Content-Disposition"] = "".join(filter(str.isprintable, header[:1000]))
    return message.get_filename()


def _format_size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
