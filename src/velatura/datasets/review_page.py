"""The page on which captions are looked through: a small web server for one person on this machine."""

import io
import json
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from secrets import compare_digest, token_urlsafe
from string import Template
from threading import Event, Lock, Thread
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from velatura.datasets.pictures import read_upright
from velatura.datasets.review import Album
from velatura.errors import BadDataset, VelaturaError

HERE = "127.0.0.1"
SHOWN_PIXELS = 512
MOST_BYTES = 2**20  # of a change
HTML, JSON, JPEG = "text/html; charset=utf-8", "application/json", "image/jpeg"


class ReviewServer(ThreadingHTTPServer):
    """Serves an album on the loopback address, to whoever knows the token in its address."""

    daemon_threads = True

    def __init__(self, album: Album, port: int = 0) -> None:
        self.album = album
        self.token = token_urlsafe(24)
        self.nonce = token_urlsafe(16)
        self.lock = Lock()
        self._ended = Event()
        try:
            super().__init__((HERE, port), _Handler)
        except OSError as error:
            raise BadDataset(f"port {port} cannot be served ({error.strerror}); choose another") from None

    @property
    def url(self) -> str:
        """The page's address; the token in it lets change captions, so it is not for others."""
        return f"http://{HERE}:{self.server_port}/?token={self.token}"

    def wait(self) -> None:
        """Wait until it is shut down, or Ctrl-C is pressed."""
        self._ended.wait()

    def shutdown(self) -> None:
        """End the serving."""
        super().shutdown()
        self._ended.set()


@contextmanager
def serving(album: Album, port: int = 0) -> Generator[ReviewServer]:
    """Serve an album while the block runs."""
    with ReviewServer(album, port) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds

    @property
    def _review(self) -> ReviewServer:
        return cast("ReviewServer", self.server)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Say nothing: the token is in the address."""

    def do_GET(self) -> None:
        """The page, the captions, or a picture."""
        address = urlsplit(self.path)
        if not self._may_enter():
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that velatura printed, with its token")
        elif address.path == "/":
            self._send(HTML, _page(self._review).encode())
        elif address.path == "/album":
            with self._review.lock:
                self._send_json(_state(self._review.album, range(len(self._review.album.paths))))
        elif address.path.startswith("/picture/"):
            self._send_picture(address.path.removeprefix("/picture/"))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """Change captions."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the change is too long")
            return
        body = self.rfile.read(int(length))
        if not self._may_enter() or urlsplit(self.path).path != "/change":
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that velatura printed, with its token")
            return
        with self._review.lock:
            try:
                self._send_json(_state(self._review.album, _change(self._review.album, body)))
            except VelaturaError as error:
                self._refuse(HTTPStatus.CONFLICT, str(error))

    def _may_enter(self) -> bool:
        """Whether the token is right, and the host is this one: a page elsewhere whose name leads here has another."""
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        hosts = {f"{name}:{self._review.server_port}" for name in (HERE, "localhost")}
        return compare_digest(given.encode(), self._review.token.encode()) and self.headers.get("Host") in hosts

    def _send_picture(self, number: str) -> None:
        paths = self._review.album.paths
        if not number.isdecimal() or int(number) >= len(paths):
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such picture")
            return
        try:
            self._send(JPEG, _small(paths[int(number)]))
        except VelaturaError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))

    def _send_json(self, value: object) -> None:
        self._send(JSON, json.dumps(value).encode())

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(JSON, json.dumps({"error": why}).encode(), status)

    def _send(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        nonce = f"'nonce-{self._review.nonce}'"
        policy = f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src {nonce}; script-src {nonce}"
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _page(server: ReviewServer) -> str:
    page = Template((files("velatura.datasets") / "review.html").read_text("utf-8"))
    return page.substitute(nonce=server.nonce)


def _state(album: Album, numbers: Collection[int]) -> dict[str, object]:
    """The captions of some pictures, and what can be undone."""
    captions = album.captions
    pictures = [
        {"id": number, "name": album.paths[number].relative_to(album.folder).as_posix(), "caption": captions[number]}
        for number in sorted(numbers)
    ]
    folder = album.folder.absolute().name
    return {"folder": folder, "pictures": pictures, "undo": album.undo_count, "redo": album.redo_count}


def _change(album: Album, body: bytes) -> Collection[int]:
    """Do what a request asks, and return the pictures whose captions changed."""
    try:
        asked = cast("dict[str, Any]", json.loads(body))
        numbers = [int(number) for number in asked.get("ids", [])]
        action, tag, text = (str(asked.get(name, "")) for name in ("action", "tag", "text"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadDataset("the change cannot be understood; load the page again") from None
    actions: Mapping[str, Callable[[], Collection[int]]] = {
        "set": lambda: album.set(numbers[0] if numbers else -1, text),
        "add": lambda: album.add(numbers, tag),
        "add first": lambda: album.add(numbers, tag, first=True),
        "remove": lambda: album.remove(numbers, tag),
        "replace": lambda: album.replace(numbers, tag, text),
        "undo": album.undo,
        "redo": album.redo,
    }
    if action not in actions:
        raise BadDataset(f"there is no action {action!r}; load the page again")
    return actions[action]()


def _small(path: Path) -> bytes:
    picture = read_upright(path)
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=88)
    return held.getvalue()
