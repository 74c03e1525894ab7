"""What people and programs write beside a file of weights: A1111's .json, Civitai's .civitai.info, a description."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from pathlib import Path
from re import sub
from typing import cast

from pydantic import BaseModel, ConfigDict

from velatura.card import Line, Paragraph

MOST_BYTES = 2**21
LARGEST = 100  # of a strength
HASHES = {"SHA256", "AutoV1", "AutoV2", "AutoV3"}  # of those that Civitai gives
VERSIONS = {
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

    description: Paragraph = ""
    activation: Paragraph = ""
    negative: Paragraph = ""
    strength: float | None = None
    family: Line = ""
    vae: Line = ""
    title: Line = ""
    trigger_words: tuple[Line, ...] = ()
    hashes: tuple[Line, ...] = ()
    unread: tuple[Line, ...] = ()


def read_notes(paths: Iterable[Path]) -> Notes:
    """Read all that stands beside a file; of what several say the first wins: what its owner wrote in A1111."""
    fields: dict[str, object] = {}
    unread: list[str] = []
    for path in paths:
        try:
            found = next(read for ending, read in READERS.items() if path.name.endswith(ending))(_text(path))
        except (OSError, ValueError, RecursionError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not what its name says"
            unread.append(f"{path.name}: {said}")
            continue
        fields = {**{key: each for key, each in found.items() if each}, **fields}
    return Notes.model_validate({**fields, "unread": unread})


def _text(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError
    return data.decode("utf-8-sig")


def _object(found: object) -> Mapping[str, object]:
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _of_a1111(text: str) -> dict[str, object]:
    """A1111's user metadata."""
    said = _parsed(text)
    texts = {"activation": "activation text", "negative": "negative text", "vae": "vae"}
    return {
        **{ours: said[theirs] for ours, theirs in texts.items() if isinstance(said.get(theirs), str)},
        "description": _joined(said.get("description"), said.get("notes")),
        "strength": _strength(said.get("preferred weight")),
        "family": _family(said.get("sd version")),
    }


def _strength(found: object) -> float | None:
    """A strength that somebody prefers: the webui keeps 0 where nobody does."""
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < abs(found) <= LARGEST:
        return None
    return float(found)


def _of_civitai(text: str) -> dict[str, object]:
    """An answer of Civitai's about a version of a model, as its helpers and downloads leave it."""
    said = _parsed(text)
    words, model, files = said.get("trainedWords"), _object(said.get("model")), said.get("files")
    named = (
        [_object(_object(each).get("hashes")) for each in cast("list[object]", files)]
        if isinstance(files, list)
        else []
    )
    listed = cast("list[object]", words) if isinstance(words, list) else []
    return {
        "trigger_words": [each for each in listed if isinstance(each, str)][:100],
        "family": _family(said.get("baseModel")),
        "title": _joined(model.get("name")),
        "description": _plain(_joined(said.get("description"))),
        "hashes": [
            each.lower() for one in named[:1] for name, each in one.items() if name in HASHES and isinstance(each, str)
        ],
    }


def _of_text(text: str) -> dict[str, object]:
    return {"description": text.strip()}


def _parsed(text: str) -> Mapping[str, object]:
    found: object = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError
    return _object(cast("object", found))


def _joined(*texts: object) -> str:
    return " ".join(each.strip() for each in texts if isinstance(each, str) and each.strip())


def _plain(markup: str) -> str:
    """The words of a text in HTML."""
    return unescape(sub(r"<[^<>]*>", " ", markup)).strip()


def _family(version: object) -> str:
    text = version if isinstance(version, str) else ""
    return next((family for word, family in VERSIONS.items() if text.startswith(word)), "")


# the longer endings first
READERS: Mapping[str, Callable[[str], dict[str, object]]] = {
    ".civitai.info": _of_civitai,
    ".json": _of_a1111,
    ".txt": _of_text,
}
