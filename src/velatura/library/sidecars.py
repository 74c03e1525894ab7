"""What people and programs write beside a file of weights: A1111's .json, Civitai's .civitai.info, a description."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from pathlib import Path
from re import sub
from typing import cast

from pydantic import BaseModel, ConfigDict

from velatura.card import LongText, ShortText

MAX_SIDECAR_BYTES = 2**21
MAX_STRENGTH = 100  # of a strength
CIVITAI_HASHES = {"SHA256", "AutoV1", "AutoV2", "AutoV3"}  # of those that Civitai gives
FAMILY_BY_VERSION = {
    "SD 1": "SD1",
    "SD1": "SD1",
    "SD 2": "SD2",
    "SD2": "SD2",
    "SDXL": "SDXL",
    "Pony": "SDXL",
    "Illustrious": "SDXL",
}


class Notes(BaseModel):
    """What stands beside a file: trigger words and a text to add to a prompt, a strength to begin with, a description.

    unread names files that could not be read, with the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: LongText = ""
    activation: LongText = ""
    negative: LongText = ""
    strength: float | None = None
    family: ShortText = ""
    vae: ShortText = ""
    title: ShortText = ""
    trigger_words: tuple[ShortText, ...] = ()
    hashes: tuple[ShortText, ...] = ()
    unread: tuple[ShortText, ...] = ()


def read_notes(paths: Iterable[Path]) -> Notes:
    """Read all that stands beside a file; of what several say the first wins: what its owner wrote in A1111."""
    fields: dict[str, object] = {}
    unread: list[str] = []
    for path in paths:
        try:
            notes = next(parse for ending, parse in READERS.items() if path.name.endswith(ending))(_read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what its name says"
            unread.append(f"{path.name}: {reason}")
            continue
        fields = {**{key: value for key, value in notes.items() if value}, **fields}
    return Notes.model_validate({**fields, "unread": unread})


def _read_text(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError
    with path.open("rb") as file:
        data = file.read(MAX_SIDECAR_BYTES + 1)
    if len(data) > MAX_SIDECAR_BYTES:
        raise ValueError
    return data.decode("utf-8-sig")


def _as_object(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _parse_a1111(text: str) -> dict[str, object]:
    """A1111's user metadata."""
    metadata = _parse_json(text)
    texts = {"activation": "activation text", "negative": "negative text", "vae": "vae"}
    return {
        **{field: metadata[key] for field, key in texts.items() if isinstance(metadata.get(key), str)},
        "description": _join(metadata.get("description"), metadata.get("notes")),
        "strength": _parse_strength(metadata.get("preferred weight")),
        "family": _parse_family(metadata.get("sd version")),
    }


def _parse_strength(value: object) -> float | None:
    """A strength that somebody prefers: the webui keeps 0 where nobody does."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < abs(value) <= MAX_STRENGTH:
        return None
    return float(value)


def _parse_civitai(text: str) -> dict[str, object]:
    """An answer of Civitai's about a version of a model, as its helpers and downloads leave it."""
    version = _parse_json(text)
    words, model, files = version.get("trainedWords"), _as_object(version.get("model")), version.get("files")
    hash_tables = (
        [_as_object(_as_object(file).get("hashes")) for file in cast("list[object]", files)]
        if isinstance(files, list)
        else []
    )
    word_list = cast("list[object]", words) if isinstance(words, list) else []
    return {
        "trigger_words": [word for word in word_list if isinstance(word, str)][:100],
        "family": _parse_family(version.get("baseModel")),
        "title": _join(model.get("name")),
        "description": _strip_html(_join(version.get("description"))),
        "hashes": [
            digits.lower()
            for hashes in hash_tables[:1]
            for name, digits in hashes.items()
            if name in CIVITAI_HASHES and isinstance(digits, str)
        ],
    }


def _parse_txt(text: str) -> dict[str, object]:
    return {"description": text.strip()}


def _parse_json(text: str) -> Mapping[str, object]:
    value: object = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return _as_object(cast("object", value))


def _join(*texts: object) -> str:
    return " ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _strip_html(markup: str) -> str:
    """The words of a text in HTML."""
    return unescape(sub(r"<[^<>]*>", " ", markup)).strip()


def _parse_family(version: object) -> str:
    text = version if isinstance(version, str) else ""
    return next((family for word, family in FAMILY_BY_VERSION.items() if text.startswith(word)), "")


# the longer endings first
READERS: Mapping[str, Callable[[str], dict[str, object]]] = {
    ".civitai.info": _parse_civitai,
    ".json": _parse_a1111,
    ".txt": _parse_txt,
}
