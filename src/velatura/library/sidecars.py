"""Read the notes beside a file of weights (A1111's .json, Civitai's .civitai.info, a .txt), and write A1111's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict

from velatura.card import LongText, ShortText
from velatura.errors import BadFile
from velatura.files import atomic_write, is_unset, parse_json
from velatura.formats.check_texts import shorten_keys, shorten_text

MAX_SIDECAR_BYTES = 2**21
MAX_STRENGTH = 100  # larger preferred weights are ignored
A1111_TEXTS = ("description", "sd version", "activation text", "negative text", "notes", "vae")
A1111_STRENGTH = "preferred weight"
# What Civitai's helpers add to A1111's notes, without an effect on a picture
HELPERS_FIELDS = "extensions sha256 modelId modelVersionId tags creator url preview_url"
# Fields of a version of a model in Civitai's API, and what its helpers add to them
CIVITAI_FIELDS = (
    "id modelId name index description status availability nsfwLevel air baseModel baseModelType trainedWords files "
    "images model stats createdAt updatedAt publishedAt downloadUrl uploadType usageControl requireAuth canDownload "
    "earlyAccessTimeFrame earlyAccessEndsAt earlyAccessConfig earlyAccessDeadline trainingStatus trainingDetails "
    "donationGoal monetization covered supportsGeneration generationCoverage inaccurate vaeId clipSkip steps epochs "
    "settings recommendedResources creator tags extensions"
)
# Of those, the ones that are read, with what they should be
CIVITAI_TYPES: Mapping[str, tuple[type, str]] = {
    "trainedWords": (list, "a list"),
    "files": (list, "a list"),
    "model": (dict, "an object"),
    "baseModel": (str, "a text"),
    "description": (str, "a text"),
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
NO_FAMILY = {"", "Unknown", "Other"}  # A1111's and Civitai's words for a base that nobody named
CIVITAI_HASHES = {"SHA256", "AutoV1", "AutoV2", "AutoV3"}  # Civitai gives CRC32 and BLAKE3 too
FAMILY_BY_VERSION = {
    "SD 1": "SD1",
    "SD1": "SD1",
    "SD 2": "SD2",
    "SD2": "SD2",
    "SDXL": "SDXL",
    "Pony": "SDXL",
    "Illustrious": "SDXL",
    "NoobAI": "SDXL",
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
        version: Civitai's number of the model's version.
        trigger_words: The trigger words that Civitai lists.
        hashes: The hashes that Civitai lists, in lower case.
        unread: What could not be read: sidecars with the reasons, and their fields that are unknown or not what they
            should be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: LongText = ""
    activation: LongText = ""
    negative: LongText = ""
    strength: float | None = None
    family: ShortText = ""
    vae: ShortText = ""
    title: ShortText = ""
    version: ShortText = ""
    trigger_words: tuple[ShortText, ...] = ()
    hashes: tuple[ShortText, ...] = ()
    unread: tuple[LongText, ...] = ()


def read_notes(paths: Iterable[Path]) -> Notes:
    """Read all sidecars of a file; if several have a field, the first one wins: A1111's .json, by the file's owner."""
    fields: dict[str, object] = {}
    unread: list[str] = []
    for path in paths:
        try:
            parse = next(parse for suffix, parse in READERS.items() if path.name.endswith(suffix))
            notes = parse(_read_text(path))
            problems = cast("list[str]", notes.pop("problems", []))
            if problems:
                unread.append(f"{path.name}: {'; '.join(problems)}")
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what its name says"
            unread.append(f"{path.name}: {reason}")
            continue
        fields = {**{key: value for key, value in notes.items() if value}, **fields}
    return Notes.model_validate({**fields, "unread": unread})


def read_a1111_notes(path: Path) -> dict[str, str | float]:
    """Return what A1111's notes beside a file say, NAME.json, by the names in NOTE_FIELDS; what is unset is left out.

    Args:
        path: The file of weights.

    Raises:
        BadFile: There is a file of this name that is something else.
    """
    fields = _read_a1111_fields(_a1111_notes_path(path))
    texts = {name: fields.get(key) for name, key in NOTE_FIELDS.items() if name != "strength"}
    notes: dict[str, str | float] = {name: text for name, text in texts.items() if isinstance(text, str) and text}
    strength = _parse_strength(fields.get(A1111_STRENGTH))
    return notes if strength is None else notes | {"strength": strength}


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
    notes_path = _a1111_notes_path(path)
    fields = _read_a1111_fields(notes_path)
    fields |= {NOTE_FIELDS[name]: value for name, value in changes.items()}
    with atomic_write(notes_path) as temporary:
        temporary.write_text(json.dumps(fields, indent=4, ensure_ascii=False), "utf-8")
    return notes_path


def _a1111_notes_path(path: Path) -> Path:
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.json")


def _read_a1111_fields(notes_path: Path) -> dict[str, object]:
    try:
        return dict(_parse_json(_read_text(notes_path))) if notes_path.exists() else {}
    except (OSError, ValueError, RecursionError):
        raise BadFile(f"{notes_path} is not what its name says, and is left as it is: move it away") from None


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
        "problems": [
            *_describe_unknown(metadata, {*A1111_TEXTS, A1111_STRENGTH, *HELPERS_FIELDS.split()}),
            *(f"its {key} is not a text: it is ignored" for key in A1111_TEXTS if not _is_text(metadata.get(key))),
            *_describe_strength(metadata.get(A1111_STRENGTH)),
            *_describe_family("sd version", metadata.get("sd version")),
        ],
        **{field: metadata[key] for field, key in texts.items() if isinstance(metadata.get(key), str)},
        "description": _join(metadata.get("description"), metadata.get("notes")),
        "strength": _parse_strength(metadata.get(A1111_STRENGTH)),
        "family": _parse_family(metadata.get("sd version")),
    }


def _parse_strength(value: object) -> float | None:
    """Return the preferred strength, None if there is none, which A1111 stores as 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < abs(value) <= MAX_STRENGTH:
        return None
    return float(value)


def _describe_strength(value: object) -> Iterator[str]:
    if not is_unset(value) and value != 0 and _parse_strength(value) is None:
        shown = shorten_text(str(value))
        yield f"its {A1111_STRENGTH} {shown!r} is not a number up to {MAX_STRENGTH}: it is ignored"


def _describe_unknown(fields: Mapping[str, object], known: Collection[str]) -> Iterator[str]:
    """Yield one clause that names the fields that velatura does not know."""
    unknown = [key for key, value in fields.items() if key not in known and not is_unset(value)]
    if unknown:
        yield f"unknown fields {shorten_keys(unknown)}: they are not read"


def _describe_family(key: str, value: object) -> Iterator[str]:
    """Yield that a file is for a base of another kind than velatura opens."""
    if isinstance(value, str) and value not in NO_FAMILY and not _parse_family(value):
        yield f"its {key} {shorten_text(value)!r} is not SD1, SD2 or SDXL: velatura may not have a base for it"


def _is_text(value: object) -> bool:
    return is_unset(value) or isinstance(value, str)


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
        "problems": [
            *_describe_unknown(version, CIVITAI_FIELDS.split()),
            *(
                f"its {key} is not {expected}: it is ignored"
                for key, (kind, expected) in CIVITAI_TYPES.items()
                if not is_unset(version.get(key)) and not isinstance(version[key], kind)
            ),
            *_describe_family("baseModel", version.get("baseModel")),
        ],
        "trigger_words": [word for word in word_list if isinstance(word, str)][:100],
        "family": _parse_family(version.get("baseModel")),
        "title": _join(model.get("name")),
        "version": str(version["id"]) if isinstance(version.get("id"), int) else "",
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
    return unescape(re.sub(r"<[^<>]*>", " ", markup)).strip()


def _parse_family(version: object) -> str:
    text = version if isinstance(version, str) else ""
    return next((family for word, family in FAMILY_BY_VERSION.items() if text.startswith(word)), "")


# the longer suffixes first
READERS: Mapping[str, Callable[[str], dict[str, object]]] = {
    ".civitai.info": _parse_civitai,
    ".json": _parse_a1111,
    ".txt": _parse_txt,
}
