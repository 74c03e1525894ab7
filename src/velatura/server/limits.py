"""How much may come in: the size of bodies, the time that a client takes to send one, and costly requests at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from velatura.server.errors import STATUS_WORDS, ApiError, ErrorAnswer, ErrorDetail
from velatura.server.settings import ServerSettings

UPLOAD_PATHS = ("/api/datasets/",)  # where files are streamed to disk
PART_SECONDS = 30.0  # for which the next part of a body is waited for


class BodyRefused(HTTPException):
    """A body that is too large, or that does not come."""

    @property
    def answer(self) -> JSONResponse:
        """Return the answer, for a body that is refused before a route reads it."""
        detail = ErrorDetail(code=STATUS_WORDS[self.status_code], message=self.detail)
        return JSONResponse(ErrorAnswer(error=detail).model_dump(), self.status_code)


class BodyLimit:
    """ASGI middleware that ends requests whose body is too large or too slow.

    Args:
        app: The application behind it.
        settings: The server's settings.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on and count the bytes of its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].startswith(UPLOAD_PATHS)
        limit = self._settings.max_upload_bytes if is_upload else self._settings.max_body_bytes
        too_large = BodyRefused(413, f"the body has more than {limit >> 10} KiB: send less at once")
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limit:
            await too_large.answer(scope, receive, send)
            return
        received, is_complete, has_answered = 0, False, False

        async def receive_limited() -> Message:
            nonlocal received, is_complete
            if is_complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), PART_SECONDS)
            except TimeoutError:
                raise BodyRefused(408, "the body did not come in time: send it again") from None
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received > limit:
                raise too_large
            return message

        async def send_watched(message: Message) -> None:
            nonlocal has_answered
            has_answered |= message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive_limited, send_watched)
        except BodyRefused as refusal:
            if not has_answered:
                await refusal.answer(scope, receive, send)


class RequestTurns:
    """Lets requests do costly work one at a time, in their order; while they wait, they keep no thread.

    Args:
        max_waiting: The most requests that may be here at once.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._present = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[None]:
        """Wait for a turn, and keep it for a block.

        Raises:
            ApiError: Too many requests wait.
        """
        if self._present >= self._max_waiting:
            message = f"{self._present} requests of this kind wait already: try again when some are done"
            raise ApiError(429, "too_many_requests", message)
        self._present += 1
        try:
            async with self._lock:
                yield
        finally:
            self._present -= 1
