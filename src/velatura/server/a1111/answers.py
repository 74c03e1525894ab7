"""What A1111's answers say of pictures: the JSON text `info`, pictures as base64, and a grid of all of them."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from velatura.errors import VelaturaError, ignore_warnings
from velatura.sampling.recipe.recipe import Recipe
from velatura.server.a1111.errors import finite
from velatura.server.a1111.schemas import Img2ImgRequest, PictureRequest
from velatura.server.errors import ApiError, not_found
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.pictures import StoredPicture
from velatura.server.state import ServerState

GRID_PIXELS = 2**26  # of a grid of all pictures at most
# Fields of infotext that `info` has under names of its own
NAMED_FIELDS = {
    "Steps",
    "Sampler",
    "CFG scale",
    "Seed",
    "Face restoration",
    "Size",
    "Model hash",
    "Model",
    "VAE hash",
    "VAE",
    "Variation seed",
    "Variation seed strength",
    "Seed resize from",
    "Denoising strength",
    "Clip skip",
    "Version",
}


def picture_info(
    state: ServerState,
    request: PictureRequest,
    pictures: Sequence[StoredPicture],
    warnings: Sequence[str],
    *,
    recipe: Recipe,
    has_grid_first: bool = False,
) -> str:
    """Return `info`: JSON as a text that says how pictures were made.

    Args:
        state: Finds the files of the pictures.
        request: The request.
        pictures: The pictures.
        warnings: What velatura warned of.
        recipe: What was asked for, if no picture was made.
        has_grid_first: The first image of the answer is a grid.
    """
    recipes = [Recipe.model_validate(picture.recipe) for picture in pictures] or [recipe]
    infotexts = [infotext_of(state, picture, made) for picture, made in zip(pictures, recipes, strict=False)]
    if request.script_name and infotexts:  # a grid has the recipe of all its pictures, and the infotext of the first
        with ignore_warnings():
            recipes[0] = Recipe.from_infotext(infotexts[0])
    first = recipes[0]
    if has_grid_first and infotexts and len(infotexts) == len(pictures) > 1:
        infotexts = [infotexts[0], *infotexts]
    seed_size = first.seed_size or (-1, -1)
    info: dict[str, object] = {
        "prompt": first.prompt,
        "all_prompts": [made.prompt for made in recipes],
        "negative_prompt": first.negative,
        "all_negative_prompts": [made.negative for made in recipes],
        "seed": first.seed,
        "all_seeds": [made.seed for made in recipes],
        "subseed": _subseed(request, first),
        "all_subseeds": [_subseed(request, made, number) for number, made in enumerate(recipes)],
        "subseed_strength": first.variation_strength,
        "width": first.width,
        "height": first.height,
        "sampler_name": first.sampler,
        "cfg_scale": first.guidance,
        "steps": first.steps,
        "batch_size": request.batch_size,
        "restore_faces": first.restore_faces,
        "face_restoration_model": first.face_restorer,
        "sd_model_name": first.base,
        "sd_model_hash": first.base_hash,
        "sd_vae_name": first.vae,
        "sd_vae_hash": first.vae_hash,
        "seed_resize_from_w": seed_size[0],
        "seed_resize_from_h": seed_size[1],
        "denoising_strength": first.denoising,
        "extra_generation_params": {key: value for key, value in first.fields().items() if key not in NAMED_FIELDS},
        "index_of_first_image": int(has_grid_first),
        "infotexts": infotexts,
        "styles": request.styles or [],
        "job_timestamp": datetime.now(UTC).astimezone().strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": isinstance(request, Img2ImgRequest) and request.mask is not None,
        "version": first.version,
        "warnings": list(warnings),
    }
    return json.dumps(finite(info))


def check_finished(job: ServerJob) -> None:
    """Raise the error of a job that failed, or of one that the server's end puts off.

    Raises:
        ApiError: The job has no result.
    """
    if job.error is not None:
        status = 500 if job.error.code == "internal" else 422
        raise ApiError(status, job.error.code, job.error.message, job.error.field)
    if not job.has_ended:
        message = "the server ends: the job goes on when it is started again"
        raise ApiError(503, "server_ends", message)


def infotext_of(state: ServerState, picture: StoredPicture, recipe: Recipe) -> str:
    """Return the infotext inside a picture's file, which for a grid says more than its recipe."""
    from velatura.sampling.recipe.metadata import read_image_infotext

    try:
        return read_image_infotext(state.pictures.path(picture)) or recipe.infotext()
    except VelaturaError:
        return recipe.infotext()


def read_base64(path: Path) -> str:
    """Return the bytes of a picture's file as base64.

    Raises:
        ApiError: It was deleted meanwhile.
    """
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError:
        raise not_found("picture") from None


def grid_image(files: Sequence[Path]) -> str:
    """Return a grid of pictures without labels as base64 of a PNG: as many rows as make it nearly square."""
    from PIL import Image

    images: list[Image.Image] = []
    for file in files:
        with Image.open(file) as image:
            images.append(image.convert("RGB"))
    rows = max(1, round(math.sqrt(len(images))))
    columns = math.ceil(len(images) / rows)
    width, height = images[0].size
    shrink = min(1.0, math.sqrt(GRID_PIXELS / (width * height * rows * columns)))
    width, height = max(1, int(width * shrink)), max(1, int(height * shrink))
    grid = Image.new("RGB", (columns * width, rows * height))
    for number, image in enumerate(images):
        grid.paste(image.resize((width, height)), (number % columns * width, number // columns * height))
    return encode_image(grid)


def encode_image(image: object) -> str:
    """Return an image as base64 of a PNG."""
    from PIL.Image import Image

    assert isinstance(image, Image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _subseed(request: PictureRequest, recipe: Recipe, number: int = 0) -> int:
    """Return the seed of the variation; -1 if there is none."""
    if recipe.variation_seed is not None:
        return recipe.variation_seed
    return request.subseed + number if request.subseed >= 0 else -1
