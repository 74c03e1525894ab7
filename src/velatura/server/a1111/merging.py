"""A route that merges checkpoints by the fields of A1111's Checkpoint Merger, which A1111 itself has only as a page."""

from __future__ import annotations

import json
from typing import Any, Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from velatura.server.a1111.answers import check_finished
from velatura.server.a1111.progress import remember_task
from velatura.server.a1111.schemas import A1111Request
from velatura.server.a1111.settings import OWN_VAE, checkpoint_title
from velatura.server.errors import ApiError
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.weights_requests import MergeRequest
from velatura.server.models import TINY
from velatura.server.state import ReadyState, ServerState

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

MODES = {"No interpolation": "none", "Weighted sum": "weighted-sum", "Add difference": "add-difference"}
MODEL_COUNTS = {"No interpolation": 1, "Weighted sum": 2, "Add difference": 3}
CONFIG_SOURCES = ("any", "B", "C", "none")  # by A1111's numbers: A, B or C; B; C; none
NO_MODEL = {None, "", "None"}
MAX_METADATA_LENGTH = 100_000


class MergerRequest(A1111Request):
    """What the Checkpoint Merger asks for, with its defaults."""

    id_task: str | None = None
    primary_model_name: str
    secondary_model_name: str | None = None
    tertiary_model_name: str | None = None
    interp_method: Literal["No interpolation", "Weighted sum", "Add difference"] = "Weighted sum"
    multiplier: float = 0.3
    save_as_half: bool = False
    custom_name: str = ""
    checkpoint_format: Literal["ckpt", "safetensors"] = "safetensors"
    config_source: int = 0
    bake_in_vae: str = "None"
    discard_weights: str = ""
    save_metadata: bool = True
    add_merge_recipe: bool = True
    copy_metadata_fields: bool = True
    metadata_json: str = "{}"


@router.post("/checkpoint-merger")
async def merge_checkpoints(state: ReadyState, request: MergerRequest) -> dict[str, str]:
    """Merge checkpoints into a new file of the folder of models, and answer when it is done."""
    job = await run_in_threadpool(_submit, state, request)
    if request.id_task:
        remember_task(state, request.id_task, [job])
    job = await state.jobs.wait(job.id)
    state.library.refresh()
    check_finished(job)
    return {"info": f"Checkpoint saved to {job.result.get('file', '')}"}


def _submit(state: ServerState, request: MergerRequest) -> ServerJob:
    """Put a merge into the queue.

    Raises:
        ApiError: A field does not fit the others.
        UnknownName: A model is not in the library.
    """
    warnings = request.unknown_fields()
    given = (request.primary_model_name, request.secondary_model_name, request.tertiary_model_name)
    count = MODEL_COUNTS[request.interp_method]
    if any(name in NO_MODEL for name in given[:count]):
        message = f"{request.interp_method} needs {count} models: name all of them"
        raise ApiError(422, "missing_model", message, ("primary", "secondary", "tertiary")[count - 1] + "_model_name")
    if request.checkpoint_format != "safetensors":
        warnings.append("checkpoint_format ckpt is not written: the file is a .safetensors file")
    if not 0 <= request.config_source < len(CONFIG_SOURCES):
        raise ApiError(422, "bad_request", "config_source should be a number from 0 to 3", "config_source")
    names = [_model_name(state, str(name)) for name in given[:count]]
    metadata = request.save_metadata
    fields: dict[str, Any] = {
        "name": request.custom_name or _file_name(request, names),
        "models": names,
        "mode": MODES[request.interp_method],
        "strength": request.multiplier if count > 1 else None,
        "dtype": "float16" if request.save_as_half else None,
        "vae": None if request.bake_in_vae in OWN_VAE else state.library.named(request.bake_in_vae, "vae").name,
        "discard": request.discard_weights[:500],
        "config": CONFIG_SOURCES[request.config_source],
        "metadata": _parse_metadata(request.metadata_json) if metadata else {},
        "copies_metadata": metadata and request.copy_metadata_fields,
        "keeps_recipe": metadata and request.add_merge_recipe,
    }
    try:
        job = MergeRequest.model_validate(fields)
    except ValueError:
        raise ApiError(422, "bad_request", "a field of the merge is too long or out of range") from None
    return state.submit(job, warnings)


def _model_name(state: ServerState, name: str) -> str:
    """Return the name of a model that exists; the tiny base has a name of its own."""
    title = checkpoint_title(state, name)
    return TINY if title.startswith(f"{TINY} [") else title


def _file_name(request: MergerRequest, titles: list[str]) -> str:
    """Return the name of the result as A1111 makes it of the models' names, as in 0.7(A) + 0.3(B)."""
    names = [title.partition(" [")[0] for title in titles]
    strength = round(request.multiplier, 2)
    if request.interp_method == "Weighted sum":
        return f"{round(1 - request.multiplier, 2)}({names[0]}) + {strength}({names[1]})"
    if request.interp_method == "Add difference":
        return f"{names[0]} + {strength}({names[1]} - {names[2]})"
    return f"{names[0]}-merged" if request.bake_in_vae in OWN_VAE else f"{names[0]}-{request.bake_in_vae}"


def _parse_metadata(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text[:MAX_METADATA_LENGTH] or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(422, "bad_metadata", "metadata_json is not an object in JSON", "metadata_json")
    return found  # pyright: ignore[reportUnknownVariableType]
