"""Settle requests before they are queued: draw seeds, store images, reserve names, check limits."""

from __future__ import annotations

from itertools import count, product
from math import prod
from pathlib import Path
from typing import NamedTuple

from velatura.base.families import FAMILIES
from velatura.errors import AlreadyExists, BadPlan, ignore_warnings
from velatura.sampling.recipe.expand import draw_missing_seed, increment_seeds
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sizes import Resolution, compute_hires_target
from velatura.server.errors import ApiError
from velatura.server.folders import Folders, check_name, resolve_inside
from velatura.server.inputs import InputStore
from velatura.server.jobs.base_requests import BaseRequest, CreateRequest, DescribeRequest
from velatura.server.jobs.dataset_requests import CaptionRequest, CheckRequest, CropRequest
from velatura.server.jobs.requests import GridRequest, PaintRequest
from velatura.server.jobs.training_requests import (
    AestheticOptions,
    CompareRequest,
    EstimateRequest,
    LoraOptions,
    ResumeRequest,
    TrainingFields,
    TrainRequest,
    TuneRequest,
)
from velatura.server.jobs.weights_requests import (
    BakeRequest,
    ConvertRequest,
    ExtractRequest,
    MergeRequest,
    PullRequest,
)
from velatura.server.settings import ServerSettings
from velatura.training.plan import Plan

PULL_SOURCES = ("civitai:", "hub:")
DEFAULT_SIDE = 512  # pixels, where a recipe leaves the size to a base that is not open yet
SIZE_FIELDS = frozenset({"width", "height", "hires_scale", "hires_size"})
MAX_COUNTED_BARS = 30  # of a prompt matrix, whose pictures are as many as two to the power of its bars


class PreparationContext(NamedTuple):
    """Limits, folders and the place for images, by which requests are settled."""

    settings: ServerSettings
    folders: Folders
    inputs: InputStore


def prepare_paint(request: PaintRequest, preparation: PreparationContext) -> PaintRequest:
    """Return a request with one recipe for each picture, each with its seed, and with its images stored."""
    picture_count, most = request.count * len(request.recipes), preparation.settings.max_pictures
    if picture_count > most:
        message = f"{picture_count} pictures are asked for: ask for {most} or fewer in a job"
        raise ApiError(413, "too_many_pictures", message, "count")
    recipes = [
        draw_missing_seed(seeded) for recipe in request.recipes for seeded in increment_seeds(recipe, request.count)
    ]
    for recipe in recipes:
        check_size(recipe, preparation.settings)
    images = _stored_images(request, preparation.inputs)
    return request.model_copy(update={"recipes": tuple(recipes), "count": 1, **images})


def prepare_grid(request: GridRequest, preparation: PreparationContext) -> GridRequest:
    """Return a request for a grid with its seed drawn, and with its images stored."""
    axes = [axis for axis in (request.x, request.y, request.z) if axis]
    cells = str(prod(len(axis.values) for axis in axes))
    if request.matrix:
        bars = request.recipe.prompt.count("|")
        cells = f"2^{bars}" if bars > MAX_COUNTED_BARS else str(2**bars)
    if "^" in cells or int(cells) > preparation.settings.max_pictures:
        message = f"the grid has {cells} pictures: ask for {preparation.settings.max_pictures} or fewer"
        raise ApiError(413, "too_many_pictures", message, "x")
    check_grid_sizes(request, preparation.settings)
    recipe = draw_missing_seed(request.recipe)
    return request.model_copy(update={"recipe": recipe, **_stored_images(request, preparation.inputs)})


def check_grid_sizes(request: GridRequest, settings: ServerSettings, default_side: int = DEFAULT_SIDE) -> None:
    """Refuse a grid with a picture of more pixels than the server makes.

    Args:
        request: The request for the grid.
        settings: The limits.
        default_side: Width and height in pixels of a recipe without them.

    Raises:
        ApiError: A picture would be too large, by its axes together.
        BadRecipe: A value of an axis is not a size.
    """
    axes = [axis for axis in (request.x, request.y, request.z) if axis and axis.name in SIZE_FIELDS]
    for values in product(*(axis.values for axis in axes)):
        sizes = {axis.name: value for axis, value in zip(axes, values, strict=True)}
        check_size(request.recipe.replace(**sizes), settings, default_side)


def check_size(recipe: Recipe, settings: ServerSettings, default_side: int = DEFAULT_SIDE) -> None:
    """Refuse a picture of more pixels than the server makes.

    Args:
        recipe: The recipe of the picture.
        settings: The limits.
        default_side: Width and height in pixels of a recipe without them.

    Raises:
        ApiError: Width times height is too large, in the first pass or in the second.
    """
    width, height = recipe.width or default_side, recipe.height or default_side
    pixels = width * height if recipe.width or recipe.height else 0
    if recipe.has_second_pass:
        hires_size = Resolution(*(recipe.hires_size or (0, 0)))
        upscaled = compute_hires_target(Resolution(width, height), recipe.hires_scale or 1.0, hires_size).upscale_to
        pixels = max(pixels, upscaled.width * upscaled.height)
    if pixels > settings.max_picture_pixels:
        message = f"the picture would have {pixels:,} pixels: make it {settings.max_picture_pixels:,} or fewer"
        raise ApiError(413, "too_large", message, "width")


def prepare_train(request: TrainRequest, preparation: PreparationContext) -> TrainRequest:
    """Return a request for a training whose run folder is reserved, or refuse its plan."""
    name = _check_training(request, preparation)
    if request.keep_as is not None:
        check_name(request.keep_as, "keep_as")
    return request.model_copy(
        update={"name": name, "run": _reserve_folder(preparation.folders.runs, request.run or name)}
    )


def prepare_estimate(request: EstimateRequest, preparation: PreparationContext) -> EstimateRequest:
    """Return a request for an estimate, or refuse its plan."""
    return request.model_copy(update={"name": _check_training(request, preparation)})


def _check_training(request: TrainingFields, preparation: PreparationContext) -> str:
    """Refuse a dataset, a name or a plan, and return the overlay's name."""
    preparation.folders.dataset(request.dataset)
    name = check_name(request.name or request.dataset)
    if not isinstance(request.overlay, AestheticOptions):
        with ignore_warnings():  # the job warns
            _check_plan(request, preparation.folders)
    return name


def _check_plan(request: TrainingFields, folders: Folders) -> None:
    """Refuse a plan that no family of bases allows: which one the base is of is known once it is open.

    Raises:
        BadPlan: The changes contradict the preset of every family.
    """
    refusal: BadPlan | None = None
    for family in reversed(FAMILIES):
        try:
            make_plan(request, family, folders)
        except BadPlan as error:
            refusal = error
        else:
            return
    assert refusal is not None
    raise refusal


def make_plan(request: TrainingFields, family: str, folders: Folders) -> Plan:
    """Return the plan of a request: the preset for the kind of overlay and the family of bases, with its changes.

    Raises:
        BadPlan: A field is unknown or out of range.
        ApiError: The validation folder is not a dataset.
    """
    kind = request.overlay.kind
    purpose = request.purpose or ("subject" if kind == "dreambooth" else "style")
    preset = Plan.preset(kind, family, purpose)
    if request.plan.get("optimizer") == "prodigy":
        preset = preset.replace(text_rate=None, word_rate=None)  # it finds one rate for all parameters
    fields: dict[str, object] = dict(request.plan)
    if isinstance(request.overlay, LoraOptions) and request.overlay.word is not None:
        fields.setdefault("template", f"{purpose}_filewords")  # so that captions say the word
    if fields.get("validation_folder") is not None:  # a path in a plan, a dataset's name in a request
        fields["validation_folder"] = str(folders.dataset(str(fields["validation_folder"])))
    return preset.replace(**fields) if fields else preset


def prepare_compare(request: CompareRequest, preparation: PreparationContext) -> CompareRequest:
    """Refuse a missing dataset, and strength 0; name the study, so that an interrupted job finds it again."""
    preparation.folders.dataset(request.dataset)
    if request.steps is not None and request.minutes is not None:
        raise ApiError(422, "bad_plan", "steps and minutes both give the budget: give one of them", "steps")
    if request.together is not None and not request.together.strength:
        message = f"{request.together.name} has strength 0, where it does nothing: give another strength"
        raise ApiError(422, "bad_strength", message, "together.strength")
    return request.model_copy(update={"study": check_name(request.study or request.dataset, "study")})


def prepare_tune(request: TuneRequest, preparation: PreparationContext) -> TuneRequest:
    """Refuse a dataset that does not exist."""
    if request.dataset is not None:
        preparation.folders.dataset(request.dataset)
    return request


def prepare_resume(request: ResumeRequest, preparation: PreparationContext) -> ResumeRequest:
    """Refuse a run that does not exist."""
    resolve_inside(preparation.folders.runs, request.run, "run")
    return request


def prepare_pull(request: PullRequest, preparation: PreparationContext) -> PullRequest:  # noqa: ARG001  # as all of them
    """Refuse addresses: a request must not make the server ask machines that only it can reach."""
    if not request.source.startswith(PULL_SOURCES):
        message = "the source is not civitai:ID or hub:OWNER/NAME: other addresses are for `velatura pull`"
        raise ApiError(422, "bad_source", message, "source")
    return request


FileRequest = MergeRequest | BakeRequest | ExtractRequest | ConvertRequest


def prepare_file(request: FileRequest, preparation: PreparationContext) -> FileRequest:
    """Refuse the name of a new file that is taken, or is not plain."""
    ending = request.ending if isinstance(request, ConvertRequest) else "safetensors"
    if (preparation.folders.models / f"{check_name(request.name)}.{ending}").exists():
        raise AlreadyExists(f"a model is called {request.name} already: choose another name")
    return request


def prepare_create(request: CreateRequest, preparation: PreparationContext) -> CreateRequest:
    """Refuse the name of a new overlay that is taken, or is not plain."""
    if (preparation.folders.models / f"{check_name(request.name)}.pt").exists() and not request.overwrite:
        raise AlreadyExists(f"a model is called {request.name} already: choose another name")
    return request


def prepare_describe(request: DescribeRequest, preparation: PreparationContext) -> DescribeRequest:
    """Return a request with its image stored."""
    return request.model_copy(update={"image": preparation.inputs.add_text(request.image, "image")})


def prepare_base(request: BaseRequest, preparation: PreparationContext) -> BaseRequest:  # noqa: ARG001  # as all of them
    """Return a request as it is."""
    return request


def prepare_crop(request: CropRequest, preparation: PreparationContext) -> CropRequest:
    """Refuse a dataset that does not exist, and the name of a new one that is taken."""
    preparation.folders.dataset(request.dataset)
    if (preparation.folders.datasets / check_name(request.name)).exists():
        raise AlreadyExists(f"a dataset is called {request.name} already: choose another name")
    return request


def prepare_dataset(
    request: CheckRequest | CaptionRequest, preparation: PreparationContext
) -> CheckRequest | CaptionRequest:
    """Refuse a dataset that does not exist."""
    preparation.folders.dataset(request.dataset)
    return request


def _stored_images(request: PaintRequest | GridRequest, inputs: InputStore) -> dict[str, str]:
    """Return references to the images of a request, which are stored."""
    if request.mask is not None and request.image is None:
        raise ApiError(422, "bad_recipe", "a mask is given without an image: give the image too", "mask")
    images = {"image": request.image, "mask": request.mask}
    return {field: inputs.add_text(text, field) for field, text in images.items() if text is not None}


def _reserve_folder(parent: Path, name: str) -> str:
    """Make a new, empty folder, with a number behind its name if that is taken, and return its name."""
    check_name(name, "run")
    for number in count(1):
        free_name = name if number == 1 else f"{name}-{number}"
        try:
            (parent / free_name).mkdir()
        except FileExistsError:
            continue
        return free_name
    raise AssertionError
