"""Routes of the settings, and of loading and unloading the base."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Response
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from velatura.server.a1111.errors import PlainJson
from velatura.server.a1111.settings import (
    CHECKPOINT,
    base_of_options,
    checked_options,
    known_options,
    store_options,
)
from velatura.server.errors import ApiError
from velatura.server.jobs.base_requests import BaseRequest
from velatura.server.state import ServerState, State

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

MAX_WARNING_LENGTH = 500


@router.get("/options")
def get_options(state: State) -> PlainJson:
    """Return all settings."""
    options = known_options(state)
    title = str(options[CHECKPOINT])
    short_hash = title.rpartition("[")[2].rstrip("]") if title.endswith("]") else None
    return PlainJson({**options, "sd_checkpoint_hash": short_hash})


@router.post("/options")
def set_options(state: State, response: Response, changes: Annotated[dict[str, JsonValue], Body()]) -> None:
    """Change settings; those that do not exist here are named in the header Warning."""
    checked, unknown = checked_options(state, changes)
    store_options(state, checked)
    if unknown:
        names = ", ".join(unknown).encode("ascii", "replace").decode()
        shown = "".join(character for character in names if character.isprintable() and character not in '"\\')
        response.headers["Warning"] = f'299 velatura "settings that do not exist here: {shown[:MAX_WARNING_LENGTH]}"'


@router.post("/unload-checkpoint")
async def unload_base(state: State) -> dict[str, str]:
    """Close the base, which frees its memory until the next job needs it."""
    return await _open_or_close(state, BaseRequest(is_open=False))


@router.post("/reload-checkpoint")
async def reload_base(state: State) -> dict[str, str]:
    """Open the base that the settings choose."""
    name = await run_in_threadpool(lambda: base_of_options(state, known_options(state)))
    return await _open_or_close(state, BaseRequest(base=name))


async def _open_or_close(state: ServerState, request: BaseRequest) -> dict[str, str]:
    job = await run_in_threadpool(state.submit, request)
    job = await state.jobs.wait(job.id)
    if job.error is not None:
        raise ApiError(500 if job.error.code == "internal" else 422, job.error.code, job.error.message)
    return {}
