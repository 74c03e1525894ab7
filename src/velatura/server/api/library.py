"""Routes of the library: list, search, a file's page, its thumbnail, notes in its sidecar; and the bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from velatura.base.families import FAMILIES
from velatura.errors import BadFile
from velatura.files import atomic_write
from velatura.library.entry import FILE_KINDS, LibraryEntry
from velatura.library.sidecars import read_a1111_notes, write_a1111_notes
from velatura.server.api.pictures import find_picture
from velatura.server.errors import ApiError, hide_paths, not_found
from velatura.server.jobs.requests import ImageText
from velatura.server.library_view import entry_id
from velatura.server.state import ReadyState, ServerState, State
from velatura.server.thumbnails import thumbnail_of

if TYPE_CHECKING:
    from PIL.Image import Image

router = APIRouter(prefix="/api", tags=["library"])

MAX_PAGE = 1000
PREVIEW_PIXELS = 768
WEBP_HEADERS = {"Cache-Control": "private, max-age=60"}


class LibraryFile(BaseModel):
    """A file of the library, as a card shows it."""

    id: str
    name: str
    kind: str
    family: str
    place: str
    summary: str
    bytes: int | None
    trigger_words: tuple[str, ...]
    strength: float | None
    has_preview: bool
    error: str | None = None


class LibraryPage(BaseModel):
    """Files of the library, sorted by name, and how many there are in all."""

    files: list[LibraryFile]
    total: int


class ProgramAnswer(BaseModel):
    """Whether a program opens a file, with the reason or the restrictions."""

    opens: bool
    why: str


class LibraryFilePage(LibraryFile):
    """Page of a file, with all that is known about it.

    `opens` says which programs open a hypernetwork, `notes` what A1111's notes beside the file say, and `unread` which
    notes could not be read.
    """

    outline: str
    base: str
    base_hash: str
    steps: int
    parameters: int
    precisions: tuple[str, ...]
    opens: dict[str, ProgramAnswer]
    notes: dict[str, str | float]
    unread: tuple[str, ...]

    aliases: tuple[str, ...]
    negative: str
    vae: str
    description: str
    hashes: dict[str, str]
    tag: str | None
    details: dict[str, Any]
    warnings: tuple[str, ...]


class NotesChange(BaseModel):
    """Changes of the notes beside a file; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    description: Annotated[str, Field(max_length=10000)] | None = None
    activation: Annotated[str, Field(max_length=10000)] | None = Field(default=None, description="trigger words")
    negative: Annotated[str, Field(max_length=10000)] | None = None
    notes: Annotated[str, Field(max_length=10000)] | None = None
    vae: Annotated[str, Field(max_length=300)] | None = None
    family: Annotated[str, Field(max_length=50)] | None = None
    strength: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] | None = None


class ThumbnailChoice(BaseModel):
    """The picture that becomes a file's preview: one of the history, or an image."""

    model_config = ConfigDict(extra="forbid")

    picture: int | None = None
    image: ImageText | None = None


class BaseInfo(BaseModel):
    """A base that requests may name; `pixels` is the side of the pictures that it was trained on, if that is known."""

    name: str
    family: str
    pixels: int | None
    is_open: bool
    is_default: bool


@router.get("/library")
def list_library(
    state: ReadyState,
    *,
    kind: Annotated[str | None, Query(max_length=50)] = None,
    family: Annotated[str | None, Query(max_length=50)] = None,
    search: Annotated[str | None, Query(max_length=300)] = None,
    start: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 200,
) -> LibraryPage:
    """List the files of the library, those of a kind, of a family of bases, or with a text in their names and words."""
    found = [
        entry
        for entry in _entries(state).values()
        if kind in {None, entry.kind}
        and (family is None or entry.family.casefold() == family.casefold())
        and (search is None or entry.mentions(search))
    ]
    files = [_describe(state, entry) for entry in found[start : start + limit]]
    return LibraryPage(files=files, total=len(found))


@router.post("/library/refresh", status_code=204)
def refresh_library(state: State) -> None:
    """Search the folders again at the next request."""
    state.library.refresh()


@router.get("/library/{file_id}")
def get_library_file(state: ReadyState, file_id: str) -> LibraryFilePage:
    """Return all that is known about a file, with its hashes."""
    return _describe_whole(state, _find(state, file_id))


@router.patch("/library/{file_id}")
def change_notes(state: ReadyState, file_id: str, change: NotesChange) -> LibraryFilePage:
    """Change the notes beside a file, in the sidecar that A1111 and others read."""
    entry = _find(state, file_id)
    write_a1111_notes(entry.path, change.model_dump(exclude_none=True))
    state.library.refresh()
    return _describe_whole(state, _find(state, file_id))


@router.get("/library/{file_id}/thumbnail", response_class=FileResponse)
def get_thumbnail(state: ReadyState, file_id: str) -> FileResponse:
    """Return the preview of a file as a small WebP."""
    path = state.library.preview_path(_find(state, file_id))
    if path is None:
        raise not_found("preview")
    return FileResponse(thumbnail_of(path, state.folders.out), media_type="image/webp", headers=WEBP_HEADERS)


@router.put("/library/{file_id}/thumbnail", status_code=204)
def choose_thumbnail(state: ReadyState, file_id: str, choice: ThumbnailChoice) -> None:
    """Write a picture of the history, or an image, as the preview of a file, beside it."""
    entry = _find(state, file_id)
    image = _open_choice(state, choice)
    name = entry.path.name if entry.file.is_folder else entry.path.stem
    with atomic_write(entry.path.with_name(f"{name}.preview.png")) as temporary:
        image.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        image.convert("RGB").save(temporary, "PNG")
    state.library.refresh()


@router.get("/bases", tags=["bases"])
def list_bases(state: ReadyState) -> list[BaseInfo]:
    """List the bases: tiny, the server's own, and the checkpoints of the library."""
    own, opened, family = state.models.base_name, state.models.open_base_name, state.models.family
    names = {"tiny": "tiny"} | {
        entry.name: entry.family for entry in _entries(state).values() if entry.kind == "checkpoint" and not entry.error
    }
    shown_own = own if own in names else hide_paths(opened or own, state.folders.roots)
    own_family = family.name if family and shown_own == opened else ""
    return [
        BaseInfo(
            name=name,
            family=family_name,
            pixels=FAMILIES[family_name].default_pixels if family_name in FAMILIES else None,
            is_open=name == opened,
            is_default=name == shown_own,
        )
        for name, family_name in ({shown_own: own_family} | names).items()
    ]


@router.get("/library-kinds")
def list_kinds() -> tuple[str, ...]:
    """List the kinds of files."""
    return FILE_KINDS


def _entries(state: ServerState) -> dict[str, LibraryEntry]:
    return state.library.entries()


def _find(state: ServerState, file_id: str) -> LibraryEntry:
    _entries(state)
    return state.library.find(file_id)


def _open_choice(state: ServerState, choice: ThumbnailChoice) -> Image:
    """Return the picture that becomes a preview.

    Raises:
        ApiError: Neither or both are given, it is gone, or it cannot be read.
    """
    from PIL import Image

    if (choice.picture is None) == (choice.image is None):
        raise ApiError(422, "bad_request", "give a picture of the history, or an image", "picture")
    if choice.image is not None:
        return state.inputs.open(state.inputs.add_text(choice.image, "image"))
    assert choice.picture is not None
    try:
        with Image.open(state.pictures.path(find_picture(state, choice.picture))) as image:
            return image.copy()
    except OSError:
        raise not_found("picture") from None


def _describe(state: ServerState, entry: LibraryEntry) -> LibraryFile:
    return LibraryFile.model_validate(_facts(state, entry))


def _facts(state: ServerState, entry: LibraryEntry) -> dict[str, object]:
    return {
        "id": entry_id(entry),
        "name": entry.name,
        "kind": entry.kind,
        "family": entry.family,
        "place": state.library.place(entry),
        "summary": str(entry.info.card),
        "bytes": None if entry.file.is_folder else entry.file.state.size,
        "trigger_words": entry.trigger_words,
        "strength": entry.strength,
        "has_preview": state.library.preview_path(entry) is not None,
        "error": hide_paths(entry.error, state.folders.roots) or None,
    }


def _describe_whole(state: ServerState, entry: LibraryEntry) -> LibraryFilePage:
    entry = state.library.whole(entry)
    hashes = {} if entry.hashes is None else {"sha256": entry.hashes.sha256, **entry.hashes.by_civitai_name()}
    tagged = {"lora", "hypernet", "aesthetic", "difference"}
    tag = f"<{entry.kind}:{entry.name}:{1 if entry.strength is None else entry.strength:g}>"
    details = {name: hide_paths(text, state.folders.roots) for name, text in entry.info.details.items()}
    card, opens = entry.info.card, entry.info.report.get("opens")
    return LibraryFilePage.model_validate(
        _facts(state, entry)
        | {
            "outline": card.outline,
            "base": card.base,
            "base_hash": card.base_hash,
            "steps": card.steps,
            "parameters": entry.info.parameters,
            "precisions": entry.info.precisions,
            "opens": opens or {},
            "notes": _notes(entry),
            "unread": tuple(hide_paths(line, state.folders.roots) for line in entry.note_problems),
            "aliases": entry.aliases,
            "negative": entry.notes.negative,
            "vae": entry.notes.vae,
            "description": entry.notes.description or entry.info.card.note,
            "hashes": hashes,
            "tag": tag if entry.kind in tagged else entry.name if entry.kind == "embedding" else None,
            "details": {"dialect": entry.info.dialect, "container": entry.info.container, **details},
            "warnings": tuple(hide_paths(warning, state.folders.roots) for warning in entry.info.warnings),
        }
    )


def _notes(entry: LibraryEntry) -> dict[str, str | float]:
    """Return A1111's notes beside a file, none if they are something else, which `unread` says."""
    try:
        return read_a1111_notes(entry.path)
    except BadFile:
        return {}
