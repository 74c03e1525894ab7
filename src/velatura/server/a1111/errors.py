"""Errors and answers as A1111's API has them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import cast

from fastapi.responses import Response
from pydantic import BaseModel, JsonValue

from velatura.server.errors import ApiError, ErrorDetail

INVALID_REQUEST = {"bad_request", "bad_json"}
A1111_PATHS = ("/sdapi/", "/internal/", "/sd_extra_networks/", "/file=")


class A1111ErrorAnswer(BaseModel):
    """Shape of every error of A1111's API: `detail` is a text, or FastAPI's list for a request with a wrong field."""

    error: str
    detail: str | list[dict[str, JsonValue]]
    body: str
    errors: str


def a1111_error(status: int, detail: ErrorDetail) -> dict[str, object]:
    """Return an error in A1111's shape: `detail` is a text, or FastAPI's list for a request with a wrong field."""
    if detail.code in INVALID_REQUEST:
        place = ["body", *(detail.field.split(".") if detail.field else [])]
        faults = [{"loc": place, "msg": detail.message, "type": detail.code}]
        return {"error": "RequestValidationError", "detail": faults, "body": "", "errors": detail.message}
    name = "HTTPException" if status < 500 else "RuntimeError"
    return {"error": name, "detail": detail.message, "body": "", "errors": detail.message}


def a1111_not_found(message: str) -> ApiError:
    """Return the error for a name that A1111 answers with 404."""
    return ApiError(404, "not_found", message)


class PlainJson(Response):
    """JSON in ASCII, which every client decodes, and in which NaN and infinite numbers are null."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the bytes of the answer."""
        return json.dumps(finite(content), separators=(",", ":")).encode()


def finite(value: object) -> object:
    """Return a JSON value with null in place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in cast("Sequence[object]", value)]
    return value
