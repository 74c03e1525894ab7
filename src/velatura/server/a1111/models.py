"""Routes of files of weights: bases, VAEs and overlays of the library; refresh; notes and previews of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from velatura.errors import BadFile, UnknownName
from velatura.library.entry import LibraryEntry
from velatura.server.a1111.errors import PlainJson, a1111_not_found
from velatura.server.a1111.settings import CHECKPOINT, checkpoint_title, known_options, own_stem
from velatura.server.errors import not_found
from velatura.server.models import TINY
from velatura.server.state import ReadyState, ServerState
from velatura.tiny import TINY_HASH

router = APIRouter(tags=["a1111"])

OUTLINE = re.compile(r"(\d+) vectors? of ([\d+, x]+)")
PAGE_KINDS = {
    "checkpoints": "checkpoint",
    "hypernetworks": "hypernet",
    "lora": "lora",
    "textual inversion": "embedding",
    "textual_inversion": "embedding",
}
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
MAX_METADATA_BYTES = 2**20


@router.get("/sdapi/v1/sd-models")
def list_checkpoints(state: ReadyState) -> list[dict[str, str | None]]:
    """List the bases: the server's own, the tiny one, and those of the library."""
    models = [_model(TINY, TINY_HASH, None, TINY)]
    entries = state.library.of_kind("checkpoint")
    for entry in entries:
        hashes = entry.hashes
        models.append(
            _model(entry.name, hashes and hashes.sha256[:10], hashes and hashes.sha256, shown_path(state, entry.path))
        )
    own = checkpoint_title(state, state.settings.base)
    if own not in {model["title"] for model in models}:
        models.insert(0, _model(own_stem(state.settings.base), None, None, own))
    return models


@router.get("/sdapi/v1/sd-vae")
def list_vaes(state: ReadyState) -> list[dict[str, str]]:
    """List the VAEs."""
    return [
        {"model_name": entry.path.name, "filename": shown_path(state, entry.path)}
        for entry in state.library.of_kind("vae")
    ]


@router.get("/sdapi/v1/hypernetworks")
def list_hypernetworks(state: ReadyState) -> list[dict[str, str]]:
    """List the hypernetworks."""
    return [{"name": entry.name, "path": shown_path(state, entry.path)} for entry in state.library.of_kind("hypernet")]


@router.get("/sdapi/v1/loras")
def list_loras(state: ReadyState) -> PlainJson:
    """List the LoRAs with their metadata."""
    return PlainJson(
        [
            {
                "name": entry.name,
                "alias": next(iter(entry.info.aliases), entry.name),
                "path": shown_path(state, entry.path),
                "metadata": _metadata(entry),
            }
            for entry in state.library.of_kind("lora")
        ]
    )


@router.get("/sdapi/v1/embeddings")
def list_embeddings(state: ReadyState) -> dict[str, dict[str, Any]]:
    """List the embeddings, those for another family of bases than the chosen one as skipped."""
    family = base_family(state)
    answer: dict[str, dict[str, Any]] = {"loaded": {}, "skipped": {}}
    for entry in state.library.of_kind("embedding"):
        fits = not entry.error and (not family or entry.family in {"", family})
        answer["loaded" if fits else "skipped"][entry.name] = _embedding(entry)
    return answer


@router.post("/sdapi/v1/refresh-checkpoints")
@router.post("/sdapi/v1/refresh-vae")
@router.post("/sdapi/v1/refresh-loras")
@router.post("/sdapi/v1/refresh-embeddings")
def refresh(state: ReadyState) -> None:
    """Read new and changed files now; every list looks for them anyway."""
    state.library.refresh()
    state.library.entries()


@router.get("/sd_extra_networks/metadata")
def get_metadata(
    state: ReadyState,
    page: Annotated[str, Query(max_length=100)] = "",
    item: Annotated[str, Query(max_length=300)] = "",
) -> dict[str, str]:
    """Return the metadata of a file as JSON in a text."""
    entry = _find(state, page, item)
    if entry is None:
        return {}
    return {"metadata": json.dumps(_metadata(entry), indent=4)}


@router.get("/sd_extra_networks/thumb", response_class=FileResponse)
def get_thumb(state: ReadyState, filename: Annotated[str, Query(max_length=1000)] = "") -> FileResponse:
    """Return the preview image of a file in the library, by the path that the lists have."""
    for entry in state.library.entries().values():
        for preview in entry.file.previews:
            if shown_path(state, preview) == filename and preview.suffix.lower() in MEDIA_TYPES:
                if not _is_in_library(state, preview):
                    break
                return FileResponse(preview, media_type=MEDIA_TYPES[preview.suffix.lower()])
    raise a1111_not_found("File not found")


@router.get("/sd_extra_networks/get-single-card")
def get_card(
    state: ReadyState,
    page: Annotated[str, Query(max_length=100)] = "",
    tabname: Annotated[str, Query(max_length=100)] = "",
    name: Annotated[str, Query(max_length=300)] = "",
) -> dict[str, str]:
    """Return a card of a file: its name and description, without the page that A1111 puts it in."""
    from html import escape

    del tabname
    entry = _find(state, page, name)
    if entry is None:
        raise a1111_not_found("Card not found")
    description = escape(entry.notes.description or entry.info.card.note)
    return {"html": f'<div class="card"><span class="name">{escape(entry.name)}</span><p>{description}</p></div>'}


@router.get("/file={path:path}", response_class=FileResponse)
def get_file(state: ReadyState, path: str) -> FileResponse:
    """Return a picture that the server made, by its path below the folder of pictures."""
    from velatura.server.folders import resolve_inside

    found = resolve_inside(state.folders.pictures, path, "picture")
    if not found.is_file() or found.suffix.lower() not in MEDIA_TYPES:
        raise not_found("picture")
    return FileResponse(found, media_type=MEDIA_TYPES[found.suffix.lower()])


def base_family(state: ServerState) -> str:
    """Return the family of the chosen base, "" if it is not known."""
    title = str(known_options(state)[CHECKPOINT])
    if title.startswith(f"{TINY} ["):
        return TINY
    try:
        return state.library.named(title, "checkpoint").family
    except UnknownName:
        return ""


def shown_path(state: ServerState, path: Path) -> str:
    """Return a path as answers have it: below its folder of the library, whose own place is nobody's business."""
    for folder in state.folders.library:
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _is_in_library(state: ServerState, path: Path) -> bool:
    """Return False for a link that leads out of the library."""
    resolved = path.resolve()
    return any(resolved.is_relative_to(folder) for folder in state.folders.library)


def _find(state: ServerState, page: str, name: str) -> LibraryEntry | None:
    kind = PAGE_KINDS.get(page.lower())
    if kind is None:
        return None
    return next((entry for entry in state.library.of_kind(kind) if entry.name == name), None)


def _model(name: str, short_hash: str | None, sha256: str | None, filename: str) -> dict[str, str | None]:
    title = f"{name} [{short_hash}]" if short_hash else name
    fields = {"hash": short_hash, "sha256": sha256, "filename": filename, "config": None}
    return {"title": title, "model_name": name, **fields}


def _embedding(entry: LibraryEntry) -> dict[str, int | str | None]:
    """Return what A1111 says of an embedding: training steps, base, width and number of vectors."""
    card = entry.info.card
    outline = OUTLINE.match(card.outline)
    widths = [int(width) for width in re.findall(r"\d+", outline[2])] if outline else []
    return {
        "step": card.steps or None,
        "sd_checkpoint": card.base_hash or None,
        "sd_checkpoint_name": card.base or None,
        "shape": sum(widths),
        "vectors": int(outline[1]) if outline else 0,
    }


def _metadata(entry: LibraryEntry) -> Mapping[str, object]:
    """Return the metadata in a file's header; values that are JSON are objects, as in A1111."""
    from velatura.tensors import open_meta

    if entry.path.suffix != ".safetensors" or entry.error:
        return {}
    try:
        metadata = open_meta(entry.path).metadata
    except (BadFile, OSError):
        return {}
    texts = {key: value for key, value in metadata.items() if len(value) <= MAX_METADATA_BYTES}
    return {key: _parsed(value) for key, value in texts.items()}


def _parsed(text: str) -> object:
    if text[:1] != "{":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
