"""Routes of datasets: create, upload, list, problems, crop boxes, captions, delete."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from velatura.datasets.check import check_folder
from velatura.datasets.crop import CropOptions, find_crop_boxes
from velatura.datasets.pictures import PICTURE_SUFFIXES
from velatura.datasets.review import CaptionEditor
from velatura.errors import AlreadyExists, BadDataset, ignore_warnings
from velatura.files import atomic_write
from velatura.server.errors import ApiError, not_found
from velatura.server.folders import check_name, resolve_inside
from velatura.server.inputs import check_picture
from velatura.server.state import ServerState, State
from velatura.server.thumbnails import thumbnail_of
from velatura.server.views.datasets import describe_report
from velatura.tiny import DATA_FOLDER, bundled_picture_sets

router = APIRouter(prefix="/api/datasets", tags=["datasets"])

MAX_PICTURE_BYTES = 256 * 2**20
MAX_CAPTION_BYTES = 2**16
MAX_FILES = 1000  # of an upload
MAX_STEM_LENGTH = 80
UNSAFE_LETTERS = re.compile(r"[^\w .()+=,@-]+")


class DatasetInfo(BaseModel):
    """A dataset; bundled ones cannot be changed."""

    name: str
    pictures: int
    is_bundled: bool


class NewDataset(BaseModel):
    """Request for a new dataset."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]


class DatasetFile(BaseModel):
    """A picture of a dataset and its caption."""

    file: str
    caption: str


class DatasetPage(DatasetInfo):
    """A dataset with its pictures and captions."""

    files: list[DatasetFile]


class UploadResult(BaseModel):
    """Result of an upload: the names that files got, and why others were refused."""

    files: list[str]
    refused: dict[str, str]


class CropBoxes(BaseModel):
    """What a crop keeps of a picture: boxes as left, top, right and bottom, in pixels of the upright picture."""

    width: int
    height: int
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)]]


class CaptionChanges(BaseModel):
    """New captions, by the files' names."""

    model_config = ConfigDict(extra="forbid")

    captions: dict[str, Annotated[str, Field(min_length=1, max_length=10000)]] = Field(min_length=1, max_length=10000)


@router.get("")
def list_datasets(state: State) -> list[DatasetInfo]:
    """List the datasets, and the bundled sets of pictures."""
    own = sorted(path.name for path in state.folders.datasets.iterdir() if path.is_dir() and path.name[0] != ".")
    bundled = [name for name in bundled_picture_sets() if name not in own]
    return [_describe(state, name) for name in (*own, *bundled)]


@router.post("", status_code=201)
def create_dataset(state: State, dataset: NewDataset) -> DatasetInfo:
    """Create an empty dataset."""
    try:
        (state.folders.datasets / check_name(dataset.name)).mkdir()
    except FileExistsError:
        raise AlreadyExists(f"a dataset is called {dataset.name} already: choose another name") from None
    return _describe(state, dataset.name)


@router.get("/{name}")
def get_dataset(state: State, name: str) -> DatasetPage:
    """Return a dataset with its pictures and captions."""
    folder, info = state.folders.dataset(name), _describe(state, name)
    files: list[DatasetFile] = []
    if info.pictures:
        with ignore_warnings():
            editor = CaptionEditor.from_folder(folder)
        files = [
            DatasetFile(file=path.relative_to(folder).as_posix(), caption=editor.captions[number])
            for number, path in enumerate(editor.paths)
        ]
    return DatasetPage(**info.model_dump(), files=files)


@router.delete("/{name}", status_code=204)
def delete_dataset(state: State, name: str) -> None:
    """Delete a dataset with all its files."""
    shutil.rmtree(_own_folder(state, name))


@router.post("/{name}/files")
def upload_files(state: State, name: str, files: list[UploadFile]) -> UploadResult:
    """Add pictures (PNG, JPEG, WebP) and their captions (NAME.txt) to a dataset, under names made plain."""
    folder = _own_folder(state, name)
    if len(files) > MAX_FILES:
        raise ApiError(413, "too_large", f"{len(files)} files are sent: send {MAX_FILES} or fewer at once", "files")
    result = UploadResult(files=[], refused={})
    for file in files:
        given_name = Path((file.filename or "picture").replace("\\", "/")).name
        try:
            result.files.append(_store(folder, given_name, file))
        except ApiError as error:
            result.refused[given_name[:200]] = error.detail.message
    return result


@router.get("/{name}/files/{file:path}", response_class=FileResponse)
def get_file(state: State, name: str, file: str, *, thumbnail: bool = False) -> FileResponse:
    """Return a picture of a dataset, or its thumbnail."""
    path = _picture_path(state, name, file)
    if thumbnail:
        path = thumbnail_of(path, state.folders.out)
    return FileResponse(path, headers={"Cache-Control": "private, max-age=60"})


@router.delete("/{name}/files/{file:path}", status_code=204)
def delete_file(state: State, name: str, file: str) -> None:
    """Delete a picture of a dataset and its caption."""
    _own_folder(state, name)
    path = _picture_path(state, name, file)
    path.unlink()
    path.with_suffix(".txt").unlink(missing_ok=True)


@router.get("/{name}/problems")
def get_problems(state: State, name: str, pixels: Annotated[int, Query(ge=8, le=4096)] = 512) -> dict[str, object]:
    """Return what would stop or spoil a training; a job of the kind "check" does the same for large datasets."""
    with ignore_warnings():
        return describe_report(check_folder(state.folders.dataset(name), pixels), state.folders.roots)


@router.get("/{name}/boxes/{file:path}")
def get_crop_boxes(
    state: State,
    name: str,
    file: str,
    *,
    pixels: Annotated[int, Query(ge=8, le=4096)] = 512,
    focus: Annotated[str, Query(max_length=50)] = "salient",
) -> CropBoxes:
    """Return what a job of the kind "crop" would keep of a picture."""
    path = _picture_path(state, name, file)
    with ignore_warnings():
        (width, height), boxes = find_crop_boxes(path, CropOptions(pixels, focus=focus))
    return CropBoxes(width=width, height=height, boxes=[list(box) for box in boxes])


@router.put("/{name}/captions")
def write_captions(state: State, name: str, changes: CaptionChanges) -> DatasetPage:
    """Write captions, each into the text file beside its picture."""
    folder = _own_folder(state, name)
    with ignore_warnings():
        editor = CaptionEditor.from_folder(folder)
    numbers = {path.relative_to(folder).as_posix(): number for number, path in enumerate(editor.paths)}
    for file in changes.captions:
        if file not in numbers:
            raise not_found("picture")
    for file, text in changes.captions.items():
        editor.set(numbers[file], text)
    return get_dataset(state, name)


def _describe(state: ServerState, name: str) -> DatasetInfo:
    folder = state.folders.dataset(name)
    pictures = sum(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*") if path.is_file())
    return DatasetInfo(name=name, pictures=pictures, is_bundled=folder.is_relative_to(DATA_FOLDER))


def _own_folder(state: ServerState, name: str) -> Path:
    """Return the folder of a dataset that may be changed.

    Raises:
        ApiError: There is none.
        BadDataset: It is bundled.
    """
    folder = state.folders.dataset(name)
    if folder.is_relative_to(DATA_FOLDER):
        raise BadDataset(f"{name} is a bundled set, which cannot be changed: make a dataset of your own")
    return folder


def _picture_path(state: ServerState, name: str, file: str) -> Path:
    path = resolve_inside(state.folders.dataset(name), file, "picture")
    if not path.is_file() or path.suffix.lower() not in PICTURE_SUFFIXES:
        raise not_found("picture")
    return path


def _store(folder: Path, given_name: str, file: UploadFile) -> str:
    """Store a file of an upload, and return its name.

    Raises:
        ApiError: It is neither a picture nor a caption, or is too large.
    """
    is_caption = given_name.lower().endswith(".txt")
    limit = MAX_CAPTION_BYTES if is_caption else MAX_PICTURE_BYTES
    if (file.size or 0) > limit:
        raise ApiError(413, "too_large", f"the file has more than {limit >> 10} KiB: make it smaller", "files")
    ending = _check_caption(file.file) if is_caption else check_picture(file.file, "files")
    stem = UNSAFE_LETTERS.sub("_", Path(given_name).stem).strip(" .")[:MAX_STEM_LENGTH] or "picture"
    path = folder / f"{stem}{ending}"
    file.file.seek(0)
    with atomic_write(path) as temporary, temporary.open("wb") as target:
        shutil.copyfileobj(file.file, target)
    return path.name


def _check_caption(file: BinaryIO) -> str:
    """Return the ending of a caption's file, or refuse one that is not text."""
    try:
        file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ApiError(422, "bad_caption", "the caption is not UTF-8 text: save it as UTF-8", "files") from None
    return ".txt"
