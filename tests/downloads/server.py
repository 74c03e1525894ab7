"""A server on loopback that answers as services do, and as they should not."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the table of its server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((path, dict(self.headers)))
        reply = self.server.replies.get(path) or status(404)
        self.close_connection = True
        reply(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, code: int, body: bytes = b"", **headers: object) -> None:
        """Send a whole answer; `_` in the name of a header is a dash."""
        self.send_response(code)
        all_headers = {
            "Connection": "close",
            "Content-Length": len(body),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        for name, value in all_headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The table of answers, and what was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, Reply] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, *_: object) -> None:
        """Whoever asked has gone."""

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def ranges(self) -> list[str | None]:
        """What part of a file each request requested_range."""
        return [headers.get("Range") for _, headers in self.asked]

    def offers(self, path: str, body: bytes, **options: object) -> str:
        """Offer a file; returns its address."""
        self.replies[path] = File(body, **options)
        return self.root + path

    def says(self, path: str, answer: object) -> None:
        """Answer with JSON."""
        body = json.dumps(answer).encode()
        self.replies[path] = lambda handler: handler.answer(200, body, Content_Type="application/json")

    def has_on_civitai(self, body: bytes, name: str = "ink.safetensors", version: int = 20, **file: object) -> None:
        """Offer a model 10 of one version as Civitai does."""
        listed = {
            "name": name,
            "sizeKB": len(body) / 1024,
            "type": "Model",
            "primary": True,
            "hashes": {"SHA256": hashlib.sha256(body).hexdigest().upper(), "AutoV2": "0" * 10},
            "downloadUrl": self.offers(f"/api/download/models/{version}", body),
            **file,
        }
        answer = {"id": version, "modelId": 10, "baseModel": "SD 1.5", "trainedWords": ["ink style"], "files": [listed]}
        self.says("/api/v1/models/10", {"id": 10, "modelVersions": [{"id": version, "files": [listed]}]})
        self.says(f"/api/v1/model-versions/{version}", answer)


@dataclass
class File:
    """A file as a good server gives it, with Range and If-Range; breaks is after how many bytes each answer ends."""

    body: bytes
    etag: str | None = '"one"'
    breaks: list[int] = field(default_factory=list[int])
    headers: dict[str, object] = field(default_factory=dict[str, object])

    def __call__(self, handler: Handler) -> None:
        requested_range = handler.headers.get("Range", "")
        is_same = handler.headers.get("If-Range") in {None, self.etag}
        start = int(requested_range.removeprefix("bytes=").removesuffix("-")) if requested_range and is_same else 0
        if start >= len(self.body) > 0:
            handler.answer(416, Content_Range=f"bytes */{len(self.body)}")
            return
        headers: dict[str, object] = {"Content_Type": "application/octet-stream", "ETag": self.etag}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        rest = self.body[start:]
        sent = rest[: self.breaks.pop(0)] if self.breaks else rest
        handler.answer(206 if start else 200, sent, **{**headers, "Content_Length": len(rest), **self.headers})


def status(code: int, **headers: object) -> Reply:
    """Answer with a status and nothing else."""
    return lambda handler: handler.answer(code, b"", **headers)


def redirect(target: str, code: int = 302) -> Reply:
    """Send elsewhere."""
    return status(code, Location=target)


def in_turn(*replies: Reply) -> Reply:
    """Answer otherwise each time."""
    left = list(replies)

    def answer(handler: Handler) -> None:
        left.pop(0)(handler)

    return answer


@contextmanager
def serving() -> Iterator[Server]:
    """A server for as long as it is needed."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
