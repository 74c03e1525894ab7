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
CIVITAI_MODEL_FIELDS = (
    "id name type nsfw nsfwLevel poi minor sfwOnly mode status availability description tags creator stats userId "
    "checkpointType uploadType cosmetic supportsGeneration allowNoCredit allowCommercialUse allowDerivatives "
    "allowDifferentLicense"
)
CIVITAI_FILE_FIELDS = (
    "id name type format sizeKB sizeKb metadata hashes primary isPrimary url downloadUrl visibility modelVersionId "
    "scannedAt pickleScanResult pickleScanMessage virusScanResult virusScanMessage exists requiresAuth"
)
# Of the version's fields, the ones that are read, with what they should be
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
KIND_BY_TYPE = {  # Civitai's types of models that velatura opens
    **dict.fromkeys(("LORA", "LoCon", "LyCORIS", "DoRA"), "lora"),
    "TextualInversion": "embedding",
    "Hypernetwork": "hypernet",
    "AestheticGradient": "aesthetic",
    "Checkpoint": "checkpoint",
    "VAE": "vae",
    "Upscaler": "upscaler",
}
NO_FAMILY = {"", "Unknown", "Other"}  # A1111's and Civitai's words for a base that nobody named
CIVITAI_HASHES = {"SHA256", "AutoV1", "AutoV2", "AutoV3"}  # by which files are found here
CIVITAI_OTHER_HASHES = {"CRC32", "BLAKE3"}
HEX_DIGITS = re.compile(r"[0-9a-fA-F]{8,64}")
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
        kind: The kind of the file by Civitai's data.
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
    kind: ShortText = ""
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


def _as_list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _parse_a1111(text: str) -> dict[str, object]:
    """Read A1111's user metadata."""
    metadata = _parse_json(text)
    texts = {"activation": "activation text", "negative": "negative text", "vae": "vae"}
    return {
        "problems": [
            *_describe_unknown(metadata, {*A1111_TEXTS, A1111_STRENGTH, *HELPERS_FIELDS.split()}),
            *(_ignored(key, "a text") for key in A1111_TEXTS if not _is_text(metadata.get(key))),
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


def _describe_unknown(fields: Mapping[str, object], known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield one clause that names the fields that velatura does not know.

    Args:
        fields: An object.
        known: The fields that velatura knows.
        prefix: The path of the object, for the message.
    """
    unknown = [prefix + key for key, value in fields.items() if key not in known and not is_unset(value)]
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
    model, files = _as_object(version.get("model")), _as_list(version.get("files"))
    words = _as_list(version.get("trainedWords"))
    return {
        "problems": [
            *_describe_unknown(version, CIVITAI_FIELDS.split()),
            *(
                _ignored(key, expected)
                for key, (kind, expected) in CIVITAI_TYPES.items()
                if not is_unset(version.get(key)) and not isinstance(version[key], kind)
            ),
            *_describe_family("baseModel", version.get("baseModel")),
            *_describe_model(model),
            *_describe_files(files),
            *([] if all(isinstance(word, str) for word in words) else [_ignored("trainedWords", "a list of texts")]),
        ],
        "trigger_words": [word for word in words if isinstance(word, str)][:100],
        "family": _parse_family(version.get("baseModel")),
        "title": _join(model.get("name")),
        "version": str(version["id"]) if isinstance(version.get("id"), int) else "",
        "description": _strip_html(_join(version.get("description"))),
        "kind": KIND_BY_TYPE.get(str(model.get("type")), ""),
        "hashes": [
            digits.lower()
            for file in files[:1]
            for name, digits in _as_object(_as_object(file).get("hashes")).items()
            if name in CIVITAI_HASHES and isinstance(digits, str) and HEX_DIGITS.fullmatch(digits)
        ],
    }


def _describe_model(model: Mapping[str, object]) -> Iterator[str]:
    """Yield what is not understood in Civitai's data about the model."""
    yield from _describe_unknown(model, CIVITAI_MODEL_FIELDS.split(), "model.")
    for key in ("name", "type"):
        if not _is_text(model.get(key)):
            yield _ignored(f"model.{key}", "a text")
    stated = model.get("type")
    if isinstance(stated, str) and stated and stated not in KIND_BY_TYPE:
        yield f"its model.type {shorten_text(stated)!r} is not a kind that velatura opens"


def _describe_files(files: Iterable[object]) -> Iterator[str]:
    """Yield what is not understood in Civitai's data about the files of a version, once for all of them."""
    problems: dict[str, None] = {}
    for file in files:
        fields = _as_object(file)
        hashes = _as_object(fields.get("hashes"))
        if not isinstance(file, dict):
            problems[_ignored("files", "a list of objects")] = None
        if not is_unset(fields.get("hashes")) and not hashes:
            problems[_ignored("files.hashes", "an object")] = None
        wrong = [name for name in sorted(CIVITAI_HASHES) if not _is_hash(hashes.get(name, ""))]
        problems |= dict.fromkeys(
            [
                *_describe_unknown(fields, CIVITAI_FILE_FIELDS.split(), "files."),
                *_describe_unknown(hashes, CIVITAI_HASHES | CIVITAI_OTHER_HASHES, "files.hashes."),
                *(_ignored(f"files.hashes.{name}", "a hash") for name in wrong),
            ]
        )
    yield from problems


def _ignored(key: str, expected: str) -> str:
    return f"its {key} is not {expected}: it is ignored"


def _is_hash(value: object) -> bool:
    return is_unset(value) or (isinstance(value, str) and HEX_DIGITS.fullmatch(value) is not None)


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
