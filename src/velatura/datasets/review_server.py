"""Web server for the page on which captions are reviewed, for one person on this machine."""

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
from velatura.datasets.review import CaptionEditor
from velatura.errors import BadDataset, VelaturaError

LOOPBACK_HOST = "127.0.0.1"
THUMBNAIL_PIXELS = 512
MAX_REQUEST_BYTES = 2**20
WRONG_TOKEN = "open the address that velatura printed, with its token"
HTML_TYPE, JSON_TYPE, JPEG_TYPE = "text/html; charset=utf-8", "application/json", "image/jpeg"


class ReviewServer(ThreadingHTTPServer):
    """HTTP server for a `CaptionEditor` on the loopback address, for clients that know the token in the URL.

    Args:
        editor: Editor of the captions.
        port: Port, or 0 for a free one.

    Raises:
        BadDataset: The port is in use.
    """

    daemon_threads = True

    def __init__(self, editor: CaptionEditor, port: int = 0) -> None:
        self.editor = editor
        self.token = token_urlsafe(24)
        self.nonce = token_urlsafe(16)
        self.lock = Lock()
        self._shutdown_event = Event()
        try:
            super().__init__((LOOPBACK_HOST, port), _RequestHandler)
        except OSError as error:
            raise BadDataset(f"port {port} cannot be used ({error.strerror}): choose another") from None

    @property
    def url(self) -> str:
        """Return the URL of the page. Its token allows changing captions, so it must not be passed on."""
        return f"http://{LOOPBACK_HOST}:{self.server_port}/?token={self.token}"

    def wait(self) -> None:
        """Wait until the server is shut down, or Ctrl-C is pressed."""
        self._shutdown_event.wait()

    def shutdown(self) -> None:
        """Stop the server."""
        super().shutdown()
        self._shutdown_event.set()


@contextmanager
def serve(editor: CaptionEditor, port: int = 0) -> Generator[ReviewServer]:
    """Run a server in a thread while the block runs."""
    with ReviewServer(editor, port) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _RequestHandler(BaseHTTPRequestHandler):
    """Handler of one request."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds

    @property
    def _review_server(self) -> ReviewServer:
        return cast("ReviewServer", self.server)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Log nothing, because the URL contains the token."""

    def do_GET(self) -> None:
        """Send the page, all captions, or a picture."""
        address = urlsplit(self.path)
        if not self._is_authorized():
            self._refuse(HTTPStatus.FORBIDDEN, WRONG_TOKEN)
        elif address.path == "/":
            self._send(HTML_TYPE, _render_page(self._review_server).encode())
        elif address.path == "/captions":
            editor = self._review_server.editor
            with self._review_server.lock:
                self._send_json(_editor_state(editor, range(len(editor.paths))))
        elif address.path.startswith("/picture/"):
            self._send_picture(address.path.removeprefix("/picture/"))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "this page does not exist")

    def do_POST(self) -> None:
        """Change captions and send those that changed."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the change is too long")
            return
        body = self.rfile.read(int(length))
        if not self._is_authorized() or urlsplit(self.path).path != "/change":
            self._refuse(HTTPStatus.FORBIDDEN, WRONG_TOKEN)
            return
        editor = self._review_server.editor
        with self._review_server.lock:
            try:
                self._send_json(_editor_state(editor, _apply_change(editor, body)))
            except VelaturaError as error:
                self._refuse(HTTPStatus.CONFLICT, str(error))

    def _is_authorized(self) -> bool:
        """Return True if the token is right and the Host header is this machine's, which prevents DNS rebinding."""
        token = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        hosts = {f"{name}:{self._review_server.server_port}" for name in (LOOPBACK_HOST, "localhost")}
        return compare_digest(token.encode(), self._review_server.token.encode()) and self.headers.get("Host") in hosts

    def _send_picture(self, number: str) -> None:
        paths = self._review_server.editor.paths
        if not number.isdecimal() or int(number) >= len(paths):
            self._refuse(HTTPStatus.NOT_FOUND, "this picture does not exist")
            return
        try:
            self._send(JPEG_TYPE, _thumbnail(paths[int(number)]))
        except VelaturaError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))

    def _send_json(self, value: object) -> None:
        self._send(JSON_TYPE, json.dumps(value).encode())

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(JSON_TYPE, json.dumps({"error": reason}).encode(), status)

    def _send(self, content_type: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        nonce = f"'nonce-{self._review_server.nonce}'"
        policy = f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src {nonce}; script-src {nonce}"
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _render_page(server: ReviewServer) -> str:
    page = Template((files("velatura.datasets") / "review.html").read_text("utf-8"))
    return page.substitute(nonce=server.nonce)


def _editor_state(editor: CaptionEditor, numbers: Collection[int]) -> dict[str, object]:
    """Return the captions of some pictures, and how many changes can be undone and redone."""
    captions = editor.captions
    pictures = [
        {"id": number, "name": editor.paths[number].relative_to(editor.folder).as_posix(), "caption": captions[number]}
        for number in sorted(numbers)
    ]
    folder = editor.folder.absolute().name
    return {"folder": folder, "pictures": pictures, "undo": editor.undo_count, "redo": editor.redo_count}


def _apply_change(editor: CaptionEditor, body: bytes) -> Collection[int]:
    """Carry out the change that a request asks for, and return the numbers of the pictures that changed."""
    try:
        request = cast("dict[str, Any]", json.loads(body))
        numbers = [int(number) for number in request.get("ids", [])]
        action, tag, text = (str(request.get(name, "")) for name in ("action", "tag", "text"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadDataset("the request cannot be read: load the page again") from None
    actions: Mapping[str, Callable[[], Collection[int]]] = {
        "set": lambda: editor.set(numbers[0] if numbers else -1, text),
        "add": lambda: editor.add(numbers, tag),
        "add first": lambda: editor.add(numbers, tag, at_start=True),
        "remove": lambda: editor.remove(numbers, tag),
        "replace": lambda: editor.replace(numbers, tag, text),
        "undo": editor.undo,
        "redo": editor.redo,
    }
    if action not in actions:
        raise BadDataset(f"the action {action!r} is unknown: load the page again")
    return actions[action]()


def _thumbnail(path: Path) -> bytes:
    picture = read_upright(path)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
