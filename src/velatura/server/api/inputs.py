"""Routes of images that jobs begin from: store one once, and name it in requests by its reference."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from velatura.server.errors import not_found
from velatura.server.inputs import REFERENCE
from velatura.server.state import ServerState, State

router = APIRouter(prefix="/api/inputs", tags=["inputs"])


class StoredInput(BaseModel):
    """An image that is stored, its reference for the fields `image` and `mask`, and its size in pixels."""

    reference: str
    width: int
    height: int


@router.post(
    "",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/png", "image/jpeg", "image/webp")
            }
        }
    },
)
async def store_input(state: State, request: Request) -> StoredInput:
    """Store an image (the bytes of a PNG, JPEG or WebP file) for jobs that begin from it."""
    return await run_in_threadpool(_store, state, await request.body())


@router.get("/{reference}", response_class=FileResponse)
def get_input(state: State, reference: str) -> FileResponse:
    """Return a stored image."""
    if not REFERENCE.fullmatch(reference) or not state.inputs.path(reference).is_file():
        raise not_found("image")
    return FileResponse(state.inputs.path(reference), headers={"Cache-Control": "private, max-age=3600"})


def _store(state: ServerState, data: bytes) -> StoredInput:
    reference = state.inputs.add(data)
    width, height = state.inputs.open(reference).size  # turned as its EXIF orientation says
    return StoredInput(reference=reference, width=width, height=height)
