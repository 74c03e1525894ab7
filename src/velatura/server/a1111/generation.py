"""txt2img and img2img: a request becomes paint jobs, and the answer waits for their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastapi import APIRouter
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from velatura.errors import VelaturaError, ignore_warnings
from velatura.sampling.recipe.expand import draw_missing_seed, increment_seeds
from velatura.sampling.recipe.recipe import Recipe
from velatura.server.a1111.answers import check_finished, grid_image, picture_info, read_base64
from velatura.server.a1111.errors import PlainJson, a1111_not_found
from velatura.server.a1111.lists import read_library_styles
from velatura.server.a1111.progress import remember_task
from velatura.server.a1111.recipes import fill_from_infotext, make_recipe
from velatura.server.a1111.schemas import (
    MAX_NAMED_FIELDS,
    Img2ImgRequest,
    PictureRequest,
    PicturesAnswer,
    Txt2ImgRequest,
)
from velatura.server.a1111.scripts import find_script
from velatura.server.a1111.settings import (
    FACE_RESTORER,
    OWN_VAE,
    VAE,
    base_of_options,
    checked_options,
    known_options,
    store_options,
)
from velatura.server.errors import ApiError
from velatura.server.inputs import DATA_URL
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.pictures import StoredPicture
from velatura.server.jobs.requests import JobRequest, PaintRequest, PictureEnding
from velatura.server.state import ReadyState, ServerState

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])


class Assignment(NamedTuple):
    """What a request comes to.

    Attributes:
        request: The request with what its infotext filled in.
        jobs: The jobs to be run.
        options: The settings that it was made with.
        recipe: Its first recipe.
        warnings: What it asks for and does not get.
        has_grid_first: The first picture is a grid of the others.
    """

    request: PictureRequest
    jobs: Sequence[JobRequest]
    options: Mapping[str, JsonValue]
    recipe: Recipe
    warnings: Sequence[str]
    has_grid_first: bool = False


@router.post("/txt2img", response_model=PicturesAnswer)
async def txt2img(state: ReadyState, request: Txt2ImgRequest) -> PlainJson:
    """Make pictures from a prompt."""
    return await _make_pictures(state, request)


@router.post("/img2img", response_model=PicturesAnswer)
async def img2img(state: ReadyState, request: Img2ImgRequest) -> PlainJson:
    """Make pictures that begin from an image."""
    if not request.init_images:
        raise a1111_not_found("Init image not found")
    return await _make_pictures(state, request)


async def _make_pictures(state: ServerState, request: PictureRequest) -> PlainJson:
    assignment, jobs = await run_in_threadpool(_submit, state, request)
    ended: list[ServerJob] = []
    for job in jobs:
        ended.append(await state.jobs.wait(job.id))
        if ended[-1].state == "cancelled":  # interrupted: the jobs behind it belong to the same request
            for other in jobs[len(ended) :]:
                state.jobs.cancel(other.id)
    return await run_in_threadpool(_answer, state, assignment, ended)


def _submit(state: ServerState, request: PictureRequest) -> tuple[Assignment, list[ServerJob]]:
    """Put the jobs of a request into the queue, all of them or none."""
    assignment, jobs = _assign(state, request), list[ServerJob]()
    try:
        for job in assignment.jobs:
            jobs.append(state.submit(job, list(assignment.warnings)))
    except (ApiError, VelaturaError):
        for submitted in jobs:
            state.jobs.cancel(submitted.id)
        raise
    if request.force_task_id:
        remember_task(state, request.force_task_id, jobs)
    return assignment, jobs


def _assign(state: ServerState, request: PictureRequest) -> Assignment:
    """Turn a request into jobs.

    Raises:
        ApiError: The request is beyond a limit, or names something that does not exist.
        VelaturaError: A field is out of range.
    """
    idle_scripts = _check_scripts(request.alwayson_scripts)
    if request.picture_count > state.settings.max_pictures:
        message = f"{request.picture_count} pictures are asked for: ask for {state.settings.max_pictures} or fewer"
        raise ApiError(413, "too_many_pictures", message, "n_iter")
    with ignore_warnings():  # of an infotext, whose fields the recipe warns of again
        filled, infotext_options = fill_from_infotext(request)
    restorer = infotext_options.pop(FACE_RESTORER, None)  # not checked: the job warns of a file that is not here
    overrides, unknown = checked_options(state, infotext_options | (request.override_settings or {}))
    options = known_options(state) | ({} if restorer is None else {FACE_RESTORER: restorer}) | overrides
    has_mask = isinstance(filled, Img2ImgRequest) and filled.mask is not None
    recipe, warnings = make_recipe(filled, options, read_library_styles(state), has_mask=has_mask)
    if idle_scripts:
        warnings.append(f"always-on scripts that are not here do nothing without arguments: {', '.join(idle_scripts)}")
    if unknown:
        warnings.append(f"override_settings has settings that do not exist here: {', '.join(unknown)[:500]}")
    job, has_grid_first = _paint_request(state, filled, options, recipe), False
    if filled.script_name:
        script = find_script(filled.script_name)
        jobs: Sequence[JobRequest] = [script.make_job(job, filled.script_args, warnings)]
        has_grid_first = True
    else:
        jobs = _split_by_image(state, filled, job)
    if not request.override_settings_restore_afterwards:
        store_options(state, overrides)
    return Assignment(filled, jobs, options, recipe, warnings, has_grid_first)


def _check_scripts(scripts: Mapping[str, JsonValue]) -> list[str]:
    """Refuse scripts that run beside every picture, as an A1111 without them does, and return those without arguments.

    Clients send a script without arguments for an extension that the picture does not use: it changes no picture.
    """
    for name, script in sorted(scripts.items()):
        if script.get("args") if isinstance(script, Mapping) else script:
            raise ApiError(422, "unknown_script", f"always on script {name[:80]} not found", "alwayson_scripts")
    return [name[:80] for name in sorted(scripts)[:MAX_NAMED_FIELDS]]


def _paint_request(
    state: ServerState, request: PictureRequest, options: Mapping[str, JsonValue], recipe: Recipe
) -> PaintRequest:
    """Return the job of all pictures of a request, which begin from its first image if it has one."""
    ending: PictureEnding = "png"
    if options["samples_format"] in {"jpg", "webp"}:
        ending = "jpg" if options["samples_format"] == "jpg" else "webp"
    job = PaintRequest(
        recipes=(recipe,),
        count=request.picture_count,
        base=base_of_options(state, options),
        vae=None if options[VAE] in OWN_VAE else state.library.named(str(options[VAE]), "vae").name,
        lenient=True,
        ending=ending,
        previews=bool(options["live_previews_enable"]),
    )
    if not isinstance(request, Img2ImgRequest):
        return job
    assert request.init_images
    return job.model_copy(
        update={
            "image": _store_image(state, request.init_images[0], "init_images"),
            "mask": None if request.mask is None else _store_image(state, request.mask, "mask"),
            "mask_inverted": bool(request.inpainting_mask_invert),
        }
    )


def _store_image(state: ServerState, text: str, field: str) -> str:
    """Store an image of a request and return its reference.

    Raises:
        ApiError: It is not an image, or an address: the server does not ask other machines.
    """
    if text.startswith(("http://", "https://")):
        message = "images by their addresses are not fetched: send the file's bytes as base64"
        raise ApiError(422, "address_refused", message, field)
    text = "".join(text.split()) if not DATA_URL.match(text) else text
    return state.inputs.add_text(text, field)


def _split_by_image(state: ServerState, request: PictureRequest, job: PaintRequest) -> list[PaintRequest]:
    """Return a job for each init image; of several there is one for each picture of a batch.

    Raises:
        ApiError: There are neither one nor as many as pictures in a batch.
    """
    images = (request.init_images or []) if isinstance(request, Img2ImgRequest) else []
    if len(images) < 2:
        return [job]
    if len(images) != request.batch_size:
        message = f"{len(images)} init images are given: give one, or as many as batch_size says"
        raise ApiError(422, "bad_init_images", message, "init_images")
    recipes = list(increment_seeds(draw_missing_seed(job.recipes[0]), request.picture_count))
    return [
        job.model_copy(
            update={
                "image": _store_image(state, image, "init_images"),
                "recipes": tuple(recipes[number :: len(images)]),
                "count": 1,
            }
        )
        for number, image in enumerate(images)
    ]


def _answer(state: ServerState, assignment: Assignment, jobs: Sequence[ServerJob]) -> PlainJson:
    """Return the pictures of jobs that are over.

    Raises:
        ApiError: A job failed.
    """
    for job in jobs:
        check_finished(job)
    request = assignment.request
    pictures = _in_batch_order([state.pictures.of_job(job.id) for job in jobs])
    files = [state.pictures.path(picture) for picture in pictures]
    images = [read_base64(file) for file in files] if request.send_images else []
    has_grid_first = assignment.has_grid_first
    saves_grid = request.save_images and assignment.options["return_grid"]
    if not has_grid_first and saves_grid and len(pictures) > 1:
        images = [grid_image(files), *images] if request.send_images else images
        has_grid_first = True
    warnings = list(dict.fromkeys(warning for job in jobs for warning in job.warnings))
    info = picture_info(state, request, pictures, warnings, recipe=assignment.recipe, has_grid_first=has_grid_first)
    if request.do_not_save_samples and not request.save_images:
        for picture in pictures:
            state.pictures.delete(picture)
    return PlainJson({"images": images, "parameters": _echo(request), "info": info})


def _in_batch_order(pictures_of_jobs: Sequence[Sequence[StoredPicture]]) -> list[StoredPicture]:
    """Return the pictures of jobs for the images of a batch in the order of their seeds."""
    longest = max((len(pictures) for pictures in pictures_of_jobs), default=0)
    return [pictures[number] for number in range(longest) for pictures in pictures_of_jobs if number < len(pictures)]


def _echo(request: PictureRequest) -> dict[str, object]:
    """Return the request as the answer repeats it: without images, unless they are asked for."""
    fields = request.model_dump(exclude=set(request.model_extra or {}))
    if isinstance(request, Img2ImgRequest) and not request.include_init_images:
        fields |= {"init_images": None, "mask": None}
    return fields
