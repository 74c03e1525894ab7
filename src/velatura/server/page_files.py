"""Serve the page: its files, and the headers by which a browser keeps them and runs nothing else."""

from __future__ import annotations

import gzip
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

from velatura.server.errors import not_found

PAGE_FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests only from here, none of them inline; data: and blob: for previews and dropped pictures
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-src 'self'",  # reports of studies, which run nothing
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again: an update of velatura must not meet old modules
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
}


def page_router() -> APIRouter:
    """Build the routes of the page: / is its document, /page/NAME are its other files."""
    router = APIRouter(tags=["page"], include_in_schema=False)
    paths = {path.relative_to(PAGE_FOLDER).as_posix(): path for path in PAGE_FOLDER.rglob("*") if _is_served(path)}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def get_index(request: Request) -> Response:
        return _answer(paths[INDEX], request)

    @router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
    async def get_page_file(name: str, request: Request) -> Response:
        if name not in paths:
            raise not_found("file of the page")
        return _answer(paths[name], request)

    return router


def _is_served(path: Path) -> bool:
    return path.is_file() and path.suffix in MEDIA_TYPES


def _answer(path: Path, request: Request) -> Response:
    """Return a file, or 304 without it to a browser that has it as it is."""
    is_packed = "gzip" in request.headers.get("accept-encoding", "")
    content, etag = _read(path, path.stat().st_mtime_ns, is_packed=is_packed)
    headers = {**HEADERS, "ETag": etag, "Vary": "Accept-Encoding"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if is_packed:
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=MEDIA_TYPES[path.suffix], headers=headers)


@lru_cache(maxsize=256)  # the page has some forty files, each packed and not
def _read(path: Path, _changed: int, *, is_packed: bool) -> tuple[bytes, str]:
    """Return what is sent of a file that was changed at a time, and its tag: a first visit asks for twenty at once."""
    content = path.read_bytes()
    etag = f'"{sha256(content).hexdigest()[:32]}{"-gzip" if is_packed else ""}"'
    return gzip.compress(content, mtime=0) if is_packed else content, etag
