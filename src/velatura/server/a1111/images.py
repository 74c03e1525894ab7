"""Routes of images that are there: upscale, restore faces, read the recipe inside, describe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Field
from starlette.concurrency import run_in_threadpool

from velatura.errors import VelaturaError
from velatura.sampling.recipe.infotext import read_infotext
from velatura.server.a1111.answers import check_finished, encode_image
from velatura.server.a1111.errors import PlainJson, a1111_not_found
from velatura.server.a1111.infotext_parameters import infotext_parameters
from velatura.server.a1111.schemas import A1111Request
from velatura.server.a1111.settings import known_options
from velatura.server.errors import ApiError
from velatura.server.inputs import DATA_URL, ENDINGS, check_picture, decode_base64, load_picture
from velatura.server.jobs.base_requests import DescribeRequest
from velatura.server.jobs.job import ServerJob
from velatura.server.state import ReadyState, ServerState

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.sampling.resolve.faces import FaceModels

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

NO_UPSCALER = "None"
# In pictures of the largest size that the server makes
MAX_RESULT_SIZE = 4  # of an image that was upscaled
MAX_NETWORK_SIZE = 16  # of what a network makes before it is resized
MAX_BATCH_SIZE = 32  # of all images of a request
CAPTIONERS = {"clip": ("tiny", "blip"), "deepdanbooru": ("wd14", "wd14"), "deepbooru": ("wd14", "wd14")}
INFOTEXT_CHUNKS = {"parameters", "exif", "icc_profile", "xmp", "photoshop"}


class ExtrasRequest(A1111Request):
    """How images are upscaled."""

    resize_mode: int = Field(default=0, ge=0, le=1)
    show_extras_results: bool = True
    gfpgan_visibility: float = Field(default=0, ge=0, le=1)
    codeformer_visibility: float = Field(default=0, ge=0, le=1)
    codeformer_weight: float = Field(default=0, ge=0, le=1)
    upscaling_resize: float = Field(default=2, ge=1, le=8)
    upscaling_resize_w: int = Field(default=512, ge=1)
    upscaling_resize_h: int = Field(default=512, ge=1)
    upscaling_crop: bool = True
    upscaler_1: str = NO_UPSCALER
    upscaler_2: str = NO_UPSCALER
    extras_upscaler_2_visibility: float = Field(default=0, ge=0, le=1)
    upscale_first: bool = False


class ExtrasImageRequest(ExtrasRequest):
    """An image to upscale."""

    image: str = ""


class ExtrasFile(BaseModel):
    """One of several images; `image` is the name that some clients give to its data."""

    data: str = Field(validation_alias=AliasChoices("data", "image"))
    name: str = ""


class ExtrasBatchRequest(ExtrasRequest):
    """Images to upscale; `image_list` is the name that some clients give to them."""

    imageList: list[ExtrasFile] = Field(  # noqa: N815  # A1111's name
        max_length=100, validation_alias=AliasChoices("imageList", "image_list")
    )


class PngInfoRequest(A1111Request):
    """An image with a recipe inside."""

    image: str


class InterrogationRequest(A1111Request):
    """An image to describe, and by what."""

    image: str = ""
    model: str = "clip"


@router.post("/extra-single-image")
async def upscale_image(state: ReadyState, request: ExtrasImageRequest) -> PlainJson:
    """Upscale an image, and restore the faces in it."""
    async with state.upscaling.take():
        [image], warnings = await run_in_threadpool(_upscale_all, state, request, [request.image], "image")
    return PlainJson({"html_info": _html_info(warnings), "image": image})


@router.post("/extra-batch-images")
async def upscale_images(state: ReadyState, request: ExtrasBatchRequest) -> PlainJson:
    """Upscale images, and restore the faces in them."""
    texts = [file.data for file in request.imageList]
    async with state.upscaling.take():
        images, warnings = await run_in_threadpool(_upscale_all, state, request, texts, "imageList")
    return PlainJson({"html_info": _html_info(warnings), "images": images})


def _upscale_all(
    state: ServerState, request: ExtrasRequest, texts: Sequence[str], field: str
) -> tuple[list[str], list[str]]:
    """Upscale the images of a request, one after the other.

    Returns:
        The images as base64, and warnings of what the request asks for and does not get.

    Raises:
        ApiError: Together they would be too large.
    """
    warnings = request.unknown_fields()
    limit, pixels = state.settings.max_picture_pixels * MAX_BATCH_SIZE, 0
    face_models = open_face_models(request, state, warnings)
    encoded: list[str] = []
    for text in texts:
        _stop_with_server(state)
        image = upscale(read_image(text, field), request, state)
        image = restore_image_faces(image, face_models, request, state, warnings)
        pixels += image.width * image.height
        if pixels > limit:
            raise ApiError(413, "too_large", f"the images together have more than {limit:,} pixels: send fewer", field)
        encoded.append(encode_image(image))
    return encoded, warnings


@router.post("/png-info")
def read_picture_info(request: PngInfoRequest) -> PlainJson:
    """Return the recipe inside an image: as a text, and as the fields that A1111 reads from it."""
    from velatura.sampling.recipe.metadata import read_image_infotext

    if not request.image.strip():
        return PlainJson({"info": "", "items": {}, "parameters": {}})
    data = decode_base64(_without_spaces(request.image), "image")
    ending = check_picture(data, "image")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"image{ending}"
        path.write_bytes(data)
        try:
            infotext = read_image_infotext(path) or ""
        except VelaturaError:  # metadata of a program that is not read
            infotext = ""
    parameters = infotext_parameters(*read_infotext(infotext)) if infotext else {}
    return PlainJson({"info": infotext, "items": _chunks(data), "parameters": parameters})


@router.post("/interrogate")
async def interrogate(state: ReadyState, request: InterrogationRequest) -> PlainJson:
    """Describe an image in words."""
    if not request.image.strip():
        raise a1111_not_found("Image not found")
    if request.model not in CAPTIONERS:
        raise a1111_not_found("Model not found")
    job = await run_in_threadpool(_submit_interrogation, state, request)
    job = await state.jobs.wait(job.id)
    check_finished(job)
    return PlainJson({"caption": job.result.get("caption", "")})


def _submit_interrogation(state: ServerState, request: InterrogationRequest) -> ServerJob:
    of_tiny, of_others = CAPTIONERS[request.model]
    captioner = of_tiny if state.settings.base == "tiny" else of_others
    threshold = None if captioner in {"tiny", "blip"} else _threshold(state)
    job = DescribeRequest(image=_without_spaces(request.image), captioner=captioner, threshold=threshold)
    return state.submit(job, request.unknown_fields())


def _threshold(state: ServerState) -> float:
    """Return the least probability of a tag, by the settings."""
    return min(1.0, max(0.0, float(str(known_options(state)["interrogate_deepbooru_score_threshold"]))))


def read_image(text: str, field: str) -> Image:
    """Return the image that a request has as base64.

    Raises:
        ApiError: It is not an image.
    """
    from PIL import ImageOps

    if text.startswith(("http://", "https://")):
        message = "images by their addresses are not fetched: send the file's bytes as base64"
        raise ApiError(422, "address_refused", message, field)
    data = decode_base64(_without_spaces(text), field)
    with load_picture(data, field) as image:
        return ImageOps.exif_transpose(image).copy()


def upscale(image: Image, request: ExtrasRequest, state: ServerState) -> Image:
    """Return an image upscaled as a request says; with a second upscaler both are mixed.

    Raises:
        ApiError: The result would be too large.
        UnknownName: The upscaler does not exist.
    """
    from PIL import Image as PilImage

    size = image.size if request.upscaler_1 == NO_UPSCALER else _target_size(image, request)
    if size[0] * size[1] > state.settings.max_picture_pixels * MAX_RESULT_SIZE:
        raise ApiError(413, "too_large", f"the image would have {size[0] * size[1]:,} pixels: upscale it less")
    mode = "RGBA" if "A" in image.getbands() else "RGB"
    image = image.convert(mode)
    if request.upscaler_1 == NO_UPSCALER:
        return image
    upscaled = _resize(image, request.upscaler_1, size, state)
    if request.upscaler_2 != NO_UPSCALER and request.extras_upscaler_2_visibility > 0:
        second = _resize(image, request.upscaler_2, size, state)
        upscaled = PilImage.blend(upscaled, second, request.extras_upscaler_2_visibility)
    if request.resize_mode == 1 and request.upscaling_crop:
        left = (upscaled.width - request.upscaling_resize_w) // 2
        top = (upscaled.height - request.upscaling_resize_h) // 2
        box = (left, top, left + request.upscaling_resize_w, top + request.upscaling_resize_h)
        upscaled = upscaled.crop(box)
    return upscaled


def open_face_models(request: ExtrasRequest, state: ServerState, warnings: list[str]) -> list[tuple[FaceModels, float]]:
    """Open the networks that restore faces as a request says, once for all its images.

    Args:
        request: How much of each result is mixed in.
        state: Has the library.
        warnings: Are added to if a file is missing.

    Returns:
        The networks, with how much of their result is mixed in: GFPGAN, then CodeFormer, as in A1111.

    Raises:
        BadFile: A file cannot be read.
    """
    from velatura.errors import UnknownName

    models: list[tuple[FaceModels, float]] = []
    for name, visibility in (("GFPGAN", request.gfpgan_visibility), ("CodeFormer", request.codeformer_visibility)):
        if not visibility:
            continue
        try:
            files = state.library.face_files(name)
        except UnknownName as error:
            warnings.append(f"faces are not restored: {error}")
        else:
            models.append((files.open(state.models.device or "cpu"), visibility))
    return models


def restore_image_faces(
    image: Image,
    models: Sequence[tuple[FaceModels, float]],
    request: ExtrasRequest,
    state: ServerState,
    warnings: list[str],
) -> Image:
    """Return an image whose faces are restored by one network after the other.

    Args:
        image: The image, after it was upscaled.
        models: The networks, with how much of their result is mixed in.
        request: Has CodeFormer's weight.
        state: Ends the work if the server ends.
        warnings: Are added to if no face is found, or too many are.
    """
    from PIL import Image as PilImage

    from velatura.face_restoration import restore_faces
    from velatura.sampling.resolve.faces import describe_faces_left_out

    for network, visibility in models:
        restored = restore_faces(
            network.restorer,
            network.detector,
            image,
            fidelity=request.codeformer_weight,
            device=state.models.device or "cpu",
            on_face=lambda _done, _total: _stop_with_server(state),
        )
        warning = describe_faces_left_out(restored)
        if restored.face_count:
            image = PilImage.blend(image, restored.image, visibility)
        else:
            warning = "no face was found in an image: nothing is restored there"
        if warning and warning not in warnings:
            warnings.append(warning)
    return image


def _stop_with_server(state: ServerState) -> None:
    """End the work on an image if the server ends."""
    if state.jobs.is_stopping.is_set():
        raise ApiError(503, "stopping", "the server is stopping: send the request again later")


def _target_size(image: Image, request: ExtrasRequest) -> tuple[int, int]:
    """Return the size to upscale to: so many times the image's, or the least that covers the wanted one."""
    factor = request.upscaling_resize
    if request.resize_mode == 1:
        factor = max(request.upscaling_resize_w / image.width, request.upscaling_resize_h / image.height)
        return (
            (
                max(round(image.width * factor), request.upscaling_resize_w),
                max(round(image.height * factor), request.upscaling_resize_h),
            )
            if request.upscaling_crop
            else (round(image.width * factor) or 1, round(image.height * factor) or 1)
        )
    return int(image.width * factor), int(image.height * factor)


def _resize(image: Image, upscaler: str, size: tuple[int, int], state: ServerState) -> Image:
    from velatura.errors import UnknownName
    from velatura.sampling.hires import LATENT_UPSCALERS, PIXEL_UPSCALERS

    names = {name.lower(): name for name in PIXEL_UPSCALERS}
    if upscaler.lower() in names:
        return image.resize(size, PIXEL_UPSCALERS[names[upscaler.lower()]])
    if upscaler.lower() in map(str.lower, LATENT_UPSCALERS):
        raise UnknownName.with_suggestions("upscaler of pixels", upscaler[:100], PIXEL_UPSCALERS)

    return state.library.upscale(
        image,
        upscaler[:100],
        size,
        device=state.models.device or "cpu",
        on_tile=lambda _done, _total: _stop_with_server(state),
        max_pixels=state.settings.max_picture_pixels * MAX_NETWORK_SIZE,
    )


def _html_info(warnings: Sequence[str]) -> str:
    """Return what a page would show: what the request asks for and does not get."""
    from html import escape

    return "".join(f"<p>{escape(warning)}</p>" for warning in warnings)


def _chunks(data: bytes) -> dict[str, str]:
    """Return the texts inside an image by their names, except the recipe."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=list(ENDINGS)) as image:
        image.load()
        return {
            str(name): value
            for name, value in image.info.items()
            if isinstance(value, str) and str(name) not in INFOTEXT_CHUNKS
        }


def _without_spaces(text: str) -> str:
    """Return base64 without line breaks, which some encoders put in."""
    head = DATA_URL.match(text)
    return text if head else "".join(text.split())
