"""Routes that create and train embeddings and hypernetworks, by the fields of A1111's Train tab."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from velatura.datasets.templates import TEMPLATES
from velatura.errors import BadArgument, UnknownName, VelaturaError
from velatura.server.a1111.answers import check_finished
from velatura.server.a1111.progress import remember_task
from velatura.server.a1111.schemas import A1111Request
from velatura.server.a1111.settings import base_of_options, known_options
from velatura.server.errors import ApiError, describe_error, join_place
from velatura.server.jobs.base_requests import CreateRequest
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.training_requests import EmbeddingOptions, HypernetOptions, TrainRequest
from velatura.server.state import ReadyState, ServerState

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

LATENTS = {"once": "once", "deterministic": "mean", "random": "draw"}
MAX_NAME_LENGTH = 100
CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # A1111 writes XavierNormal


class CreateEmbeddingRequest(A1111Request):
    """A new embedding."""

    name: str
    num_vectors_per_token: int = Field(default=1, ge=1, le=75)
    overwrite_old: bool = False
    init_text: str = "*"


class CreateHypernetworkRequest(A1111Request):
    """A new hypernetwork; without sizes it changes all contexts of the base."""

    name: str
    enable_sizes: list[str | int] | None = None
    overwrite_old: bool = False
    layer_structure: str | list[float] | None = "1, 2, 1"
    activation_func: str | None = "linear"
    weight_init: str | None = "Normal"
    add_layer_norm: bool = False
    use_dropout: bool = False
    dropout_structure: str | list[float] | None = None


class TrainRequestFields(A1111Request):
    """What the trainings of both kinds have in common; the defaults are those of A1111's window."""

    id_task: str | None = None
    learn_rate: str | float = "0.005"
    batch_size: int = 1
    gradient_step: int = 1
    data_root: str
    log_directory: str = ""
    training_width: int = 512
    training_height: int = 512
    varsize: bool = False
    steps: int = 100000
    clip_grad_mode: Literal["disabled", "value", "norm"] = "disabled"
    clip_grad_value: str | float = "0.1"
    shuffle_tags: bool = False
    tag_drop_out: float = 0
    latent_sampling_method: Literal["once", "deterministic", "random"] = "once"
    use_weight: bool = False
    create_image_every: int = 500
    template_filename: str = "style_filewords.txt"
    preview_from_txt2img: bool = False
    preview_prompt: str = ""
    preview_negative_prompt: str = ""
    preview_steps: int = 20
    preview_sampler_name: str | int = "Euler a"
    preview_cfg_scale: float = 7
    preview_seed: int = -1
    preview_width: int = 512
    preview_height: int = 512


class TrainEmbeddingRequest(TrainRequestFields):
    """A training of an embedding that was created before."""

    embedding_name: str
    save_embedding_every: int = 500
    save_image_with_stored_embedding: bool = True


class TrainHypernetworkRequest(TrainRequestFields):
    """A training of a hypernetwork that was created before."""

    hypernetwork_name: str
    learn_rate: str | float = "0.00001"
    save_hypernetwork_every: int = 500


InfoAnswer = Annotated[dict[str, str], "what was done, as a text"]


@router.post("/create/embedding")
async def create_embedding(state: ReadyState, request: CreateEmbeddingRequest) -> InfoAnswer:
    """Write a new embedding into the folder of models."""
    vectors, initial = request.num_vectors_per_token, request.init_text[:1000]
    overlay = EmbeddingOptions(kind="embedding", vectors=vectors, initial=initial)
    job = CreateRequest(
        overlay=overlay, name=_name(request.name), overwrite=request.overwrite_old, base=await _base(state)
    )
    return await _create(state, job, "embedding", request.unknown_fields())


@router.post("/create/hypernetwork")
async def create_hypernetwork(state: ReadyState, request: CreateHypernetworkRequest) -> InfoAnswer:
    """Write a new hypernetwork into the folder of models."""
    fields: dict[str, Any] = {
        "kind": "hypernet",
        "layers": _numbers(request.layer_structure, "layer_structure") or (1, 2, 1),
        "activation": request.activation_func or "linear",
        "layer_norm": request.add_layer_norm,
        "init": CAPITAL.sub("_", request.weight_init or "Normal").lower(),
    }
    if request.use_dropout:
        shares = _numbers(request.dropout_structure, "dropout_structure")
        fields["dropout"] = shares or 0.3
        fields["last_layer_dropout"] = bool(shares)
    if request.enable_sizes:
        fields["widths"] = tuple(str(size) for size in request.enable_sizes)
    overlay = _validate(HypernetOptions, fields)
    job = CreateRequest(
        overlay=overlay, name=_name(request.name), overwrite=request.overwrite_old, base=await _base(state)
    )
    return await _create(state, job, "hypernetwork", request.unknown_fields())


@router.post("/train/embedding")
async def train_embedding(state: ReadyState, request: TrainEmbeddingRequest) -> InfoAnswer:
    """Train an embedding further, and answer when it is done."""
    return await _train(
        state, request, "embedding", request.embedding_name, snapshot_every=request.save_embedding_every
    )


@router.post("/train/hypernetwork")
async def train_hypernetwork(state: ReadyState, request: TrainHypernetworkRequest) -> InfoAnswer:
    """Train a hypernetwork further, and answer when it is done."""
    return await _train(
        state, request, "hypernet", request.hypernetwork_name, snapshot_every=request.save_hypernetwork_every
    )


async def _create(state: ServerState, request: CreateRequest, kind: str, warnings: list[str]) -> dict[str, str]:
    job = await run_in_threadpool(state.submit, request, warnings)
    job = await state.jobs.wait(job.id)
    state.library.refresh()
    check_finished(job)
    return {"info": f"create {kind} filename: {job.result.get('file', '')}"}


async def _train(
    state: ServerState,
    request: TrainRequestFields,
    kind: Literal["embedding", "hypernet"],
    name: str,
    *,
    snapshot_every: int,
) -> dict[str, str]:
    """Run a training; as in A1111 a mistake is told in `info`, with the status 200."""
    label = "hypernetwork" if kind == "hypernet" else "embedding"
    try:
        job = await run_in_threadpool(_submit_training, state, request, kind, name, snapshot_every)
    except ApiError as error:
        if error.status == 429:
            raise
        return {"info": f"train {label} error: {error.detail.message}"}
    except VelaturaError as error:
        return {"info": f"train {label} error: {describe_error(error, state.folders.roots).message}"}
    if request.id_task:
        remember_task(state, request.id_task, [job])
    job = await state.jobs.wait(job.id)
    state.library.refresh()
    if job.error is not None:
        return {"info": f"train {label} error: {job.error.message}"}
    check_finished(job)
    ending = "interrupted" if job.state == "cancelled" else "complete"
    warnings = f" warnings: {'; '.join(job.warnings)}" if job.warnings else ""
    file = "" if job.state == "cancelled" else f" filename: {name}.pt"
    return {"info": f"train {label} {ending}:{file} error: None{warnings}"}


def _submit_training(
    state: ServerState,
    request: TrainRequestFields,
    kind: Literal["embedding", "hypernet"],
    name: str,
    snapshot_every: int,
) -> ServerJob:
    """Put a training into the queue, which begins with the file that was created or trained before."""
    entry = state.library.named(name, kind)
    warnings = request.unknown_fields()
    plan: dict[str, Any] = {
        "steps": _remaining_steps(request.steps, entry.info.card.steps),
        "learning_rate": str(request.learn_rate),
        "batch_size": request.batch_size,
        "accumulation": request.gradient_step,
        "shuffle_tags": request.shuffle_tags,
        "tag_dropout": request.tag_drop_out,
        "latents": LATENTS[request.latent_sampling_method],
        "masks": request.use_weight,
        "preview_every": request.create_image_every,
        "snapshot_every": snapshot_every,
        "template": _template(request.template_filename),
        "gradient_norm": _gradient_norm(request, warnings),
        "optimizer": "adamw",
        "weight_decay": 0.0 if kind == "embedding" else 0.01,
        "a1111": True,
    }
    plan |= _picture_size(request, warnings)
    if request.preview_from_txt2img and request.preview_prompt:
        plan["preview_prompt"] = request.preview_prompt
    start: dict[str, Any] = {"kind": kind, "start": name}
    job = TrainRequest.model_validate(
        {
            "overlay": start,
            "dataset": _dataset(state, request.data_root),
            "name": entry.name,
            "plan": plan,
            "base": base_of_options(state, known_options(state)),
            "keep_as": entry.name,
        }
    )
    return state.submit(job, warnings)


def _remaining_steps(steps: int, done: int) -> int:
    """Return how many steps are left: A1111 counts from the beginning of the overlay.

    Raises:
        ApiError: None is left.
    """
    if steps <= done:
        message = f"steps is {steps}, and {done} are done already: give a larger number"
        raise ApiError(422, "bad_plan", message, "steps")
    return steps - done


def _template(filename: str) -> str:
    """Return the name of a built-in template.

    Raises:
        UnknownName: There is none of this name.
    """
    name = filename.removesuffix(".txt")
    if name not in TEMPLATES:
        raise UnknownName.with_suggestions("template", name[:100], TEMPLATES)
    return name


def _gradient_norm(request: TrainRequestFields, warnings: list[str]) -> float | None:
    """Return the norm that gradients are clipped to, None for no clipping."""
    if request.clip_grad_mode == "disabled":
        return None
    if request.clip_grad_mode == "value":
        warnings.append("clip_grad_mode value is not supported: gradients are clipped by their norm")
    text = str(request.clip_grad_value).split(",")[0].split(":")[0]
    try:
        return float(text)
    except ValueError:
        raise ApiError(422, "bad_plan", "clip_grad_value is not a number", "clip_grad_value") from None


def _picture_size(request: TrainRequestFields, warnings: list[str]) -> dict[str, Any]:
    """Return the size that pictures are trained at: A1111 stretches them, here they are cropped."""
    if request.training_width == request.training_height and not request.varsize:
        return {"pixels": request.training_width, "shape": "square"}
    warnings.append("pictures of several sizes are cropped to the nearest of several sizes of the same area")
    side = round((request.training_width * request.training_height) ** 0.5 / 8) * 8
    return {"pixels": side, "shape": "buckets"}


def _dataset(state: ServerState, data_root: str) -> str:
    """Return the name of a dataset, which a request may also call by its path.

    Raises:
        ApiError: It is not one of the server's.
    """
    try:
        path = Path(data_root)
        if path.is_absolute():
            return path.resolve().relative_to(state.folders.datasets).as_posix()
    except (ValueError, OSError, RuntimeError):
        message = "data_root is not a folder of the server's datasets: upload the pictures, and give the dataset's name"
        raise ApiError(404, "not_found", message, "data_root") from None
    return data_root.strip("/\\ ") or "."


async def _base(state: ServerState) -> str | None:
    return await run_in_threadpool(lambda: base_of_options(state, known_options(state)))


def _name(text: str) -> str:
    """Return a name of a file as A1111 makes it: letters, digits, dots, dashes and spaces of it.

    Raises:
        ApiError: Nothing is left.
    """
    name = "".join(character for character in text if character.isalnum() or character in "._- ")
    name = name.strip(" .")[:MAX_NAME_LENGTH]
    if not name:
        raise ApiError(422, "bad_name", "the name has no letters: choose another", "name")
    return name


def _numbers(value: str | list[float] | None, field: str) -> tuple[float, ...]:
    """Return the numbers of a list, or of a text with commas."""
    if value is None:
        return ()
    parts = value if isinstance(value, list) else [part for part in value.split(",") if part.strip()]
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        raise ApiError(422, "bad_overlay", f"{field} is not a list of numbers: write 1, 2, 1", field) from None


def _validate(model: type[HypernetOptions], fields: dict[str, Any]) -> HypernetOptions:
    from pydantic import ValidationError

    try:
        return model.model_validate(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        raise BadArgument(f"{join_place(fault['loc'])}: {fault['msg']}") from None
