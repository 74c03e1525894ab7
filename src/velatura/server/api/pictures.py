"""Routes of the history of pictures: list with filters, recipe, file, thumbnail, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel

from velatura.server.errors import not_found
from velatura.server.jobs.pictures import StoredPicture
from velatura.server.state import ServerState, State
from velatura.server.thumbnails import thumbnail_of

router = APIRouter(prefix="/api/pictures", tags=["pictures"])

MAX_PAGE = 500
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


class PictureList(BaseModel):
    """Pictures, the newest first; `next` is the `before` of the next page, if there is one."""

    pictures: list[StoredPicture]
    next: int | None = None


@router.get("")
def list_pictures(
    state: State,
    *,
    search: Annotated[str | None, Query(max_length=1000, description="text in the prompt")] = None,
    base: Annotated[str | None, Query(max_length=300)] = None,
    seed: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    job: Annotated[str | None, Query(max_length=100)] = None,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> PictureList:
    """List pictures with their recipes, the newest first."""
    pictures = state.pictures.list(search=search, base=base, seed=seed, job=job, before=before, limit=limit)
    return PictureList(pictures=pictures, next=pictures[-1].id if len(pictures) == limit else None)


@router.get("/{picture_id}")
def get_picture(state: State, picture_id: int) -> StoredPicture:
    """Return a picture's place and recipe."""
    return find_picture(state, picture_id)


@router.get("/{picture_id}/file", response_class=FileResponse)
def get_picture_file(state: State, picture_id: int) -> FileResponse:
    """Return the file of a picture, with its recipe inside."""
    path = state.pictures.path(find_picture(state, picture_id))
    if not path.is_file():
        raise not_found("picture")
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=headers)


@router.get("/{picture_id}/thumbnail", response_class=FileResponse)
def get_picture_thumbnail(state: State, picture_id: int) -> FileResponse:
    """Return a small WebP of a picture."""
    path = thumbnail_of(state.pictures.path(find_picture(state, picture_id)), state.folders.out)
    return FileResponse(path, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@router.delete("/{picture_id}", status_code=204)
def delete_picture(state: State, picture_id: int) -> None:
    """Delete a picture and its file."""
    state.pictures.delete(find_picture(state, picture_id))


def find_picture(state: ServerState, picture_id: int) -> StoredPicture:
    """Return a picture.

    Raises:
        ApiError: There is none with this id.
    """
    picture = state.pictures.get(picture_id) if 0 <= picture_id < 2**63 else None
    if picture is None:
        raise not_found("picture")
    return picture
