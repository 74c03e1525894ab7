"""Routes of recipes: read the one inside a picture or a text, and list what its fields can be."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from velatura.errors import redirect_warnings
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sampler_names import SAMPLER_NAMES, SCHEDULER_NAMES
from velatura.server.errors import ApiError, hide_paths
from velatura.server.inputs import check_picture
from velatura.server.state import ReadyState, ServerState

router = APIRouter(prefix="/api/recipes", tags=["recipes"])


class MissingFile(BaseModel):
    """A part of a recipe that is not here: a base, a VAE, an overlay, a sampler."""

    kind: str
    name: str
    hash: str


class RecipeReading(BaseModel):
    """A recipe that was read.

    Attributes:
        recipe: Its fields that differ from their defaults.
        text: The recipe as the text that A1111 writes into pictures.
        warnings: What would change the picture and was not understood.
        missing: What is needed to make the picture again and is not here.
    """

    recipe: dict[str, Any]
    text: str
    warnings: list[str]
    missing: list[MissingFile]


class RecipeChoices(BaseModel):
    """Names that fields of a recipe can have."""

    samplers: tuple[str, ...]
    schedulers: tuple[str, ...]
    upscalers: tuple[str, ...]
    face_restorers: tuple[str, ...]


@router.get("/choices")
def list_choices(state: ReadyState) -> RecipeChoices:
    """List the names of samplers, noise schedules, upscalers and restorers of faces."""
    from velatura.sampling.hires import LATENT_UPSCALERS, PIXEL_UPSCALERS
    from velatura.sampling.resolve.faces import restorer_names

    files = [entry.name for entry in state.library.of_kind("upscaler") if not entry.error]
    return RecipeChoices(
        samplers=SAMPLER_NAMES,
        schedulers=SCHEDULER_NAMES,
        upscalers=(*LATENT_UPSCALERS, *PIXEL_UPSCALERS, *files),
        face_restorers=tuple(
            restorer_names([entry for entry in state.library.of_kind("face-restorer") if not entry.error])
        ),
    )


@router.post(
    "/read",
    openapi_extra={
        "requestBody": {
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/png", "image/jpeg", "image/webp", "text/plain")
            }
        }
    },
)
async def read_recipe(state: ReadyState, request: Request) -> RecipeReading:
    """Read the recipe inside a picture (PNG, JPEG, WebP), or in a text (Content-Type: text/plain)."""
    is_text = request.headers.get("content-type", "").startswith("text/")
    return await run_in_threadpool(_read, state, await request.body(), is_text=is_text)


def _read(state: ServerState, data: bytes, *, is_text: bool) -> RecipeReading:
    warnings: list[str] = []
    with redirect_warnings(warnings.append):
        recipe = _recipe_of_text(data) if is_text else _recipe_of_picture(data)
    from velatura.sampling.resolve.missing import find_missing

    own = frozenset({"tiny", state.models.base_name, state.models.open_base_name or "tiny"})
    return RecipeReading(
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        text=recipe.infotext(),
        warnings=[hide_paths(warning, state.folders.roots) for warning in warnings],
        missing=[MissingFile(**part._asdict()) for part in find_missing(recipe, state.library.named, own)],
    )


def _recipe_of_text(data: bytes) -> Recipe:
    try:
        return Recipe.from_text(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ApiError(422, "bad_text", "the text is not UTF-8: save it as UTF-8") from None


def _recipe_of_picture(data: bytes) -> Recipe:
    ending = check_picture(data)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"picture{ending}"
        path.write_bytes(data)
        return Recipe.from_image(path)
