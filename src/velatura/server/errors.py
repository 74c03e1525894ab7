"""Errors as answers: one shape, one line, and no path, traceback or secret in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from velatura.errors import AlreadyExists, VelaturaError

INTERNAL = "something went wrong inside the server: its log says what"
# An absolute path of POSIX or Windows, but not what follows a scheme or a word, as in https://a/b or and/or
PATH_PATTERN = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\":;,()\[\]]+)+(?=[/\\]?)[/\\]?")
QUOTED_PATH = re.compile(r"""(['"])(?:~|[A-Za-z]:)?[/\\][^'"]*\1""")
# What pydantic calls a member of a union that has no name of its own
UNION_MEMBER = re.compile(r"(?:function-\w+|constrained-\w+|lax-or-strict|nullable|chain|union|tuple|list|dict)\[")
MAX_MESSAGE_LENGTH = 2000
STATUS_WORDS = {
    400: "bad_body",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
}


class ErrorDetail(BaseModel):
    """Error of an answer or a job: a code for programs, one line for people, and the field that it is about."""

    code: str
    message: str
    field: str | None = None


class ErrorAnswer(BaseModel):
    """Shape of every error of our own API."""

    error: ErrorDetail


ERROR_DESCRIPTIONS = {
    400: "The body cannot be read",
    404: "What the request names does not exist",
    409: "The request contradicts what there is: a name that is taken, a job that is over",
    413: "The request, an image or a picture is too large",
    422: "A mistake in the request",
    429: "Too much waits already: try again later",
    503: "The server opens its base, or ends: try again later",
}
ErrorShape = Callable[[int, ErrorDetail], Mapping[str, object]]


def describe_errors(shape: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of the errors of a route.

    Args:
        shape: The model of their answers.
    """
    return {status: {"model": shape, "description": text} for status, text in ERROR_DESCRIPTIONS.items()}


class BatchLeftOut(Exception):
    """Nobody wants the pictures of the batch that is being made."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        code: A word for programs.
        message: One line: what was found, what was expected, what to do.
        field: The field of the request that it is about.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.detail = status, ErrorDetail(code=code, message=message, field=field)


def not_found(kind: str) -> ApiError:
    """Return the error for something that does not exist, or that a request may not see."""
    return ApiError(404, "not_found", f"no such {kind}: list them to see what there is")


def error_code(error: Exception) -> str:
    """Return the code of an error: the name of its class in small letters, as bad_recipe."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def describe_error(error: VelaturaError, roots: Iterable[Path] = ()) -> ErrorDetail:
    """Return an error of the product as an answer or as a job's one line, with its notes and without paths."""
    message = "; ".join([str(error), *getattr(error, "__notes__", [])])
    return ErrorDetail(code=error_code(error), message=hide_paths(message, roots), field=_field_at_fault(error))


def _field_at_fault(error: VelaturaError) -> str | None:
    """Return the field that pydantic found at fault, where an error of ours stands for pydantic's."""
    fault = error.__context__
    if not isinstance(fault, ValidationError):
        return None
    return join_place(fault.errors()[0]["loc"]) or None


def join_place(place: Iterable[int | str]) -> str:
    """Return where pydantic found a fault, as overlay.layers.1, without its own names for the members of a union."""
    return ".".join(str(part) for part in place if not UNION_MEMBER.match(str(part)))


def hide_paths(text: str, roots: Iterable[Path] = ()) -> str:
    """Return a text on one line in which every absolute path is cut to what follows its folder, or to its last part.

    Args:
        text: The text; spaces within a line are kept, as those between the columns of a report.
        roots: Folders whose paths are hidden.
    """
    lines = text.splitlines()
    text = (text if len(lines) == 1 else " ".join(filter(None, map(str.strip, lines))))[:MAX_MESSAGE_LENGTH].rstrip()
    for root in sorted({str(root) for root in (*roots, Path.cwd(), Path.home())}, key=len, reverse=True):
        if len(root) > 1:
            text = text.replace(f"{root}/", "").replace(root, Path(root).name)
    text = QUOTED_PATH.sub(lambda found: f"{found[1]}{_last_part(found[0][1:-1])}{found[1]}", text)
    return PATH_PATTERN.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def install_error_handlers(
    app: FastAPI, roots: Iterable[Path], shapes: Mapping[str, ErrorShape], routes: Sequence[BaseRoute]
) -> None:
    """Answer all errors of an application in one shape.

    Args:
        app: The application.
        roots: Folders whose paths are hidden in messages.
        shapes: By the start of a URL's path, how errors there look instead.
        routes: All routes, to name the methods that an address has.
    """
    roots = tuple(roots)

    def answer(request: Request, status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None):
        detail = detail.model_copy(update={"message": _encodable(detail.message), "field": _encodable(detail.field)})
        shape = next((shape for start, shape in shapes.items() if request.url.path.startswith(start)), None)
        content = shape(status, detail) if shape else ErrorAnswer(error=detail).model_dump()
        return JSONResponse(content, status, headers=dict(headers or {}))

    def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return answer(request, error.status, error.detail)

    def on_velatura_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, VelaturaError)
        return answer(request, 409 if isinstance(error, AlreadyExists) else 422, describe_error(error, roots))

    def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code, headers = STATUS_WORDS.get(error.status_code, f"http_{error.status_code}"), error.headers
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_allowed_methods(routes, request))}
        return answer(request, error.status_code, ErrorDetail(code=code, message=str(error.detail)), headers)

    def on_bad_request(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(request, 422, _first_fault(error))

    def on_crash(request: Request, error: Exception) -> JSONResponse:
        del error  # uvicorn logs it with its traceback
        return answer(request, 500, ErrorDetail(code="internal", message=INTERNAL))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(VelaturaError, on_velatura_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_request)
    app.add_exception_handler(Exception, on_crash)


def _allowed_methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """Return the methods of all routes with the address of the one that fits a request; each knows its own only."""
    path = next((_path(route) for route in routes if route.matches(request.scope)[0] != Match.NONE), None)
    same = (route for route in routes if path is not None and _path(route) == path)
    return sorted({method for route in same for method in getattr(route, "methods", None) or ()})


def _path(route: BaseRoute) -> str | None:
    return getattr(route, "path", None)


def _encodable(text: str | None) -> str | None:
    """Return a text with question marks in place of lone surrogates, which UTF-8 does not have."""
    return text and text.encode("utf-8", "replace").decode()


def _first_fault(error: RequestValidationError) -> ErrorDetail:
    """Return the first fault that pydantic found, without the value: it may be long, secret or not JSON."""
    fault = error.errors()[0]
    places = [place for place in fault["loc"] if place not in {"body", "query", "path", "header"}]
    field = join_place(_without_kinds(places, error.body)) or None
    if fault["type"] == "json_invalid":
        return ErrorDetail(code="bad_json", message="the body is not JSON: check quotes, commas and brackets")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return ErrorDetail(code="bad_request", message=f"{field or 'the request'}: {message}", field=field)


def _without_kinds(places: Iterable[int | str], body: object) -> Iterator[int | str]:
    """Yield the place of a fault as the body has it: without the kinds by which pydantic chooses a model."""
    value = body
    for place in places:
        fields = cast("dict[object, object]", value) if isinstance(value, dict) else {}
        if place == fields.get("kind") and place not in fields:
            continue
        yield place
        value = fields.get(place)
