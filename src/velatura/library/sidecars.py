"""Read the notes beside a file of weights (A1111's .json, Civitai's .civitai.info, a .txt), and write A1111's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from pathlib import Path
from re import sub
from typing import cast

from pydantic import BaseModel, ConfigDict

from velatura.card import LongText, ShortText
from velatura.errors import BadFile
from velatura.files import atomic_write, parse_json

MAX_SIDECAR_BYTES = 2**21
MAX_STRENGTH = 100  # larger preferred weights are ignored
A1111_NOTES = {  # the fields of A1111's user metadata
    "description",
    "sd version",
    "activation text",
    "preferred weight",
    "negative text",
    "notes",
    "vae",
}
NOTE_FIELDS = {  # by our names
    "description": "description",
    "family": "sd version",
    "activation": "activation text",
    "strength": "preferred weight",
    "negative": "negative text",
    "notes": "notes",
    "vae": "vae",
}
CIVITAI_HASHES = {"SHA256", "AutoV1", "AutoV2", "AutoV3"}  # Civitai gives CRC32 and BLAKE3 too
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
    """Notes beside a file.

    Attributes:
        description: What the file is.
        activation: Text to add to a prompt, by the file's owner.
        negative: Text to add to a negative prompt.
        strength: The strength to start with.
        family: The family of bases that it is for, such as SD1.
        vae: The name of the VAE that a checkpoint wants.
        title: The model's name on Civitai.
        trigger_words: The trigger words that Civitai lists.
        hashes: The hashes that Civitai lists, in lower case.
        unread: The sidecars that could not be read, with the reasons.
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
    """Read all sidecars of a file; if several have a field, the first one wins: A1111's .json, by the file's owner."""
    fields: dict[str, object] = {}
    unread: list[str] = []
    for path in paths:
        try:
            parse = next(parse for suffix, parse in READERS.items() if path.name.endswith(suffix))
            notes = parse(_read_text(path))
            unknown = cast("list[str]", notes.pop("unknown", []))
            if unknown:
                unread.append(f"{path.name}: unknown fields {', '.join(unknown)}")
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what its name says"
            unread.append(f"{path.name}: {reason}")
            continue
        fields = {**{key: value for key, value in notes.items() if value}, **fields}
    return Notes.model_validate({**fields, "unread": unread})


def write_a1111_notes(path: Path, changes: Mapping[str, str | float]) -> Path:
    """Change fields of A1111's notes beside a file, NAME.json, and keep its other fields.

    Args:
        path: The file of weights.
        changes: New values by the names in NOTE_FIELDS; an empty text or 0 takes a value away.

    Returns:
        The path of the notes.

    Raises:
        BadFile: There is a file of this name that is something else, or it cannot be written.
    """
    notes_path = path.with_name(f"{path.name if path.is_dir() else path.stem}.json")
    try:
        fields = dict(_parse_json(_read_text(notes_path))) if notes_path.exists() else {}
    except (OSError, ValueError, RecursionError):
        raise BadFile(f"{notes_path} is not what its name says, and is left as it is: move it away") from None
    fields |= {NOTE_FIELDS[name]: value for name, value in changes.items()}
    with atomic_write(notes_path) as temporary:
        temporary.write_text(json.dumps(fields, indent=4, ensure_ascii=False), "utf-8")
    return notes_path


def _read_text(path: Path) -> str:
    if not path.is_file():  # reading a pipe would wait forever
        raise ValueError
    with path.open("rb") as file:
        data = file.read(MAX_SIDECAR_BYTES + 1)
    if len(data) > MAX_SIDECAR_BYTES:
        raise ValueError
    return data.decode("utf-8-sig")


def _as_object(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _parse_a1111(text: str) -> dict[str, object]:
    """Read A1111's user metadata."""
    metadata = _parse_json(text)
    texts = {"activation": "activation text", "negative": "negative text", "vae": "vae"}
    return {
        "unknown": [key for key in metadata if key not in A1111_NOTES],
        **{field: metadata[key] for field, key in texts.items() if isinstance(metadata.get(key), str)},
        "description": _join(metadata.get("description"), metadata.get("notes")),
        "strength": _parse_strength(metadata.get("preferred weight")),
        "family": _parse_family(metadata.get("sd version")),
    }


def _parse_strength(value: object) -> float | None:
    """Return the preferred strength, None if there is none, which A1111 stores as 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < abs(value) <= MAX_STRENGTH:
        return None
    return float(value)


def _parse_civitai(text: str) -> dict[str, object]:
    """Read Civitai's API response about a version of a model, as download helpers save it."""
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
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError
    return _as_object(cast("object", value))


def _join(*texts: object) -> str:
    return " ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _strip_html(markup: str) -> str:
    """Return the text of HTML."""
    return unescape(sub(r"<[^<>]*>", " ", markup)).strip()


def _parse_family(version: object) -> str:
    text = version if isinstance(version, str) else ""
    return next((family for word, family in FAMILY_BY_VERSION.items() if text.startswith(word)), "")


# the longer suffixes first
READERS: Mapping[str, Callable[[str], dict[str, object]]] = {
    ".civitai.info": _parse_civitai,
    ".json": _parse_a1111,
    ".txt": _parse_txt,
}
