"""Who may come in: the Host and Origin of every request, and its password or token."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from secrets import compare_digest
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from velatura.server.errors import ErrorAnswer, ErrorDetail
from velatura.server.settings import LOOPBACK_NAMES, ServerSettings, is_address, is_loopback

COOKIE = "velatura_token"
PING_PATH = "/internal/ping"  # tells only that a server is here
CORS_METHODS, CORS_HEADERS = "GET, POST, PUT, PATCH, DELETE", "Authorization, Content-Type, Last-Event-ID"
CORS_SECONDS = "600"
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses requests for other hosts, from other origins, or without password or token.

    A name in the Host header may be rebound by DNS to this machine, so only names that are ours count; addresses
    cannot be. A page of another origin may send requests with the browser's password, so its Origin is checked.

    Args:
        app: The application behind it.
        settings: The server's settings.
        own_names: More names of this machine.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, own_names: Iterable[str] = ()) -> None:
        self._app, self._settings = app, settings
        origin_hosts = (urlsplit(origin).hostname or "" for origin in settings.origins)
        names = {*LOOPBACK_NAMES, *own_names, *origin_hosts}
        if not is_address(settings.host):
            names.add(settings.host)
        self._names = frozenset(name.lower() for name in names)
        self._origins = frozenset(origin.lower() for origin in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        refusal = self._refuse(scope, headers, origin)
        is_preflight = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
        if refusal is None and is_preflight:
            refusal = Response(status_code=204)
        elif refusal is None and scope["path"] != PING_PATH and not self._is_known(scope, headers):
            challenge = {"WWW-Authenticate": 'Basic realm="velatura"'} if self._settings.auth else {}
            refusal = _refusal(401, "unauthorized", "give the user and password, or the token", challenge)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), scope, origin, is_preflight=is_preflight)
            await send(message)

        await (self._app if refusal is None else refusal)(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        """Return the answer to a request for another host or from another origin, None to any other one."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            return _refusal(
                403,
                "forbidden_host",
                "the Host header names another server: use this one's address, or --origin",
            )
        if origin is not None and not self._is_own_origin(origin, hosts[0]):
            return _refusal(403, "forbidden_origin", "pages of this origin may not use it: add it with --origin")
        is_cross_site = headers.get("sec-fetch-site", "") in {"cross-site", "same-site"}
        is_visit = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if origin is None and is_cross_site and not is_visit:
            return _refusal(403, "forbidden_origin", "another site may not send requests to this server")
        return None

    def _is_own_host(self, host: str) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        if is_address(name):
            return is_loopback(name) or self._settings.listen
        return name in self._names

    def _is_own_origin(self, origin: str, host: str) -> bool:
        if origin.lower() in self._origins:
            return True
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and parts.netloc == host.lower()

    def _is_known(self, scope: Scope, headers: Headers) -> bool:
        """Return True if the request has the password or the token, or neither is asked for; in constant time."""
        settings = self._settings
        if settings.auth is None and settings.token is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        known = False
        if settings.auth is not None and kind.lower() == "basic":
            known |= _equal(_decode_basic(value), settings.auth.get_secret_value().encode())
        if settings.token is not None:
            token = settings.token.get_secret_value().encode()
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=100)
            given = [value if kind.lower() == "bearer" else "", _cookie(headers), *query.get("token", [])[:1]]
            for text in given:
                known |= _equal(text.encode("utf-8", "replace"), token)
        return known

    def _add_headers(self, headers: MutableHeaders, scope: Scope, origin: str | None, *, is_preflight: bool) -> None:
        for name, value in SAFE_HEADERS.items():
            headers.setdefault(name, value)
        if origin is not None and origin.lower() in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            headers.add_vary_header("Origin")
            if is_preflight:
                headers["Access-Control-Allow-Methods"] = CORS_METHODS
                headers["Access-Control-Allow-Headers"] = CORS_HEADERS
                headers["Access-Control-Max-Age"] = CORS_SECONDS
        token = self._settings.token
        if token is not None and b"token=" in scope.get("query_string", b"") and scope["path"] == "/":
            cookie = f"{COOKIE}={token.get_secret_value()}; Path=/; HttpOnly; SameSite=Strict"
            headers.append("Set-Cookie", cookie)


def _refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    content = ErrorAnswer(error=ErrorDetail(code=code, message=message)).model_dump()
    return JSONResponse(content, status, headers=headers)


def _host_name(host: str) -> str | None:
    """Return the name or address in a Host header, None if it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        has_only_host = not (parts.path or parts.query or parts.fragment or parts.username is not None)
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if has_only_host else None


def _decode_basic(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _equal(given: bytes, expected: bytes) -> bool:
    return compare_digest(given, expected)
