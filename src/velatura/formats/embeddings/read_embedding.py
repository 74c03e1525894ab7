"""Read textual inversion embeddings: A1111's .pt and pictures, sd-scripts' safetensors, and diffusers' files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from velatura.base.families import FAMILIES, FAMILY_BY_CROSS_WIDTH
from velatura.card import MAX_STEPS, Card, printable_text
from velatura.errors import BadFile, warn
from velatura.formats.check_texts import MAX_NAME_LENGTH
from velatura.formats.load_state import check_tensor, warn_of_suspicious_weights
from velatura.formats.metadata import family_from_metadata
from velatura.overlays.embedding import SDXL_KEYS, SINGLE_KEYS, Embedding
from velatura.prompts.chunks import CHUNK_LENGTH
from velatura.tensors import Contents, as_dict, open_tensors

A1111_FIELDS = {"string_to_token", "string_to_param", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}
MAX_SHOWN_LENGTH, MAX_SHOWN_FIELDS = 40, 5  # characters of a stranger's text in a message, and fields
A1111_KEYS = {"string_to_param", "string_to_token"}
DIFFUSERS_SDXL_KEYS = ("text_encoders_0", "text_encoders_1")
SDXL_TEXT_WIDTHS = (768, 1280)  # CLIP L and OpenCLIP bigG
SDXL_KEY_PAIRS = (SDXL_KEYS, DIFFUSERS_SDXL_KEYS)
SECOND_FILE_SUFFIX = "_2"  # appended to the stem of diffusers' file for the second text encoder
PROMPT_SYNTAX = re.compile(r"[()\[\]<>{}:|,/\\]|[^\S ]")  # characters with another meaning in prompts or paths
OUTPUT_SUFFIX = "_out"  # of OneTrainer's vectors that take the place of the text encoder's output
MODEL_WEIGHT_SUFFIXES = (".weight", ".bias", ".alpha")


AnyValue = TypeVar("AnyValue")


def sniff_a1111(contents: Contents) -> bool:
    """Return True if the file is a dict with A1111's fields."""
    return contents.container != "picture" and bool(A1111_KEYS & (as_dict(contents.payload) or {}).keys())


def sniff_picture(contents: Contents) -> bool:
    """Return True if the file is a picture that holds an object."""
    return contents.container == "picture"


def sniff_kohya(contents: Contents) -> bool:
    """Return True if the tensors have sd-scripts' names of vectors, for one text encoder or for SDXL's two."""
    names = set(_named_entries(contents))
    return names >= {*SINGLE_KEYS} or names >= {*SDXL_KEYS} or (bool(names) and names <= {*SDXL_KEYS})


def sniff_diffusers(contents: Contents) -> bool:
    """Return True if the file holds vectors under their token, or under the numbers of both text encoders."""
    entries = _named_entries(contents)
    if set(entries) == {*DIFFUSERS_SDXL_KEYS}:
        return True
    if len(entries) != 1:
        return False
    [(name, value)] = entries.items()
    return isinstance(value, Tensor) and value.ndim in {1, 2} and not name.endswith(MODEL_WEIGHT_SUFFIXES)


def read(contents: Contents) -> Embedding:
    """Read an embedding in any of these formats, in float32.

    Its name is the stem of the file, as in A1111; a picture may hold another name.

    Raises:
        BadFile: The vectors are missing, damaged, or of different numbers for SDXL's two text encoders.
    """
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    token, tensors = _find_vectors(contents)
    output_keys = [f"{key}{OUTPUT_SUFFIX}" for key in tensors if f"{key}{OUTPUT_SUFFIX}" in contents.tensors]
    if output_keys:
        warn(
            f"{name} has vectors for the text encoder's output ({', '.join(output_keys)}): they are ignored, so it "
            "shows "
            "less of what it learned than in OneTrainer"
        )
    _warn_of_unknown(contents, payload)
    if len({tensor.dtype for tensor in tensors.values() if isinstance(tensor, Tensor)}) > 1:
        warn(f"{name} mixes precisions: check the pictures that it makes")
    vectors = [_check_vectors(name, key, tensor) for key, tensor in tensors.items()]
    if len({len(rows) for rows in vectors}) > 1:
        counts = " and ".join(str(len(rows)) for rows in vectors)
        raise BadFile(f"{name} has {counts} vectors for its two text encoders, which need equal numbers: it is damaged")
    card = Card(kind=Embedding.kind).replace(**training_fields(payload))
    embedding_name = _embedding_name(contents, payload)
    widths = tuple(rows.shape[1] for rows in vectors)
    family = FAMILY_BY_CROSS_WIDTH.get(sum(widths), "")
    _check_sdxl_widths(name, widths)
    _warn_of_misfits(name, dict(zip(tensors, vectors, strict=True)), widths, family)
    note = f"diffusers' token: {token}" if token else ""
    return Embedding.from_vectors(
        *vectors,
        card=card.replace(name=embedding_name, family=family or family_from_metadata(contents.metadata), note=note),
    )


def _warn_of_unknown(contents: Contents, payload: Mapping[object, object]) -> None:
    """Warn of what an embedding's file holds beside its vectors and A1111's fields."""
    if A1111_KEYS & payload.keys():
        unknown = {key for key in payload if key not in A1111_FIELDS}
    else:
        vector_keys = {key for keys in (SINGLE_KEYS, *SDXL_KEY_PAIRS) for key in keys}
        entries = _named_entries(contents)
        unknown = entries.keys() - vector_keys if entries.keys() & vector_keys else set[object]()
    if unknown:
        shown = ", ".join(sorted(printable_text(str(key))[:MAX_SHOWN_LENGTH] for key in unknown)[:MAX_SHOWN_FIELDS])
        warn(f"{contents.path.name} holds more than an embedding ({shown}): that is ignored")
    stored_steps = payload.get("step")
    if stored_steps is not None and not is_step_count(stored_steps):
        warn(f"{contents.path.name} has a step count that is not a whole number of 0 or more: 0 is used instead")
    odd = [key for key in ("sd_checkpoint", "sd_checkpoint_name") if not isinstance(payload.get(key), str | None)]
    if odd:
        warn(f"{contents.path.name} has fields that are not text ({', '.join(odd)}): they are ignored")


def is_step_count(value: object) -> bool:
    """Return True for a whole number that a card can hold."""
    return type(value) is int and 0 <= value < MAX_STEPS


def training_fields(payload: Mapping[object, object]) -> dict[str, object]:
    """Return the step count, the base and its hash that A1111 stores beside the vectors, as fields of a card."""
    steps = payload.get("step")
    texts = {"base": "sd_checkpoint_name", "base_hash": "sd_checkpoint"}
    fields = {field: payload[key] for field, key in texts.items() if isinstance(payload.get(key), str)}
    return {**fields, "steps": steps if is_step_count(steps) else 0}


def _named_entries(contents: Contents) -> Mapping[str, object]:
    """Return the tensors of a safetensors file, or the entries of a torch file's top dict that have string keys."""
    entries = contents.tensors if contents.container == "safetensors" else as_dict(contents.payload) or {}
    return drop_output_vectors({key: value for key, value in entries.items() if isinstance(key, str)})


def drop_output_vectors(entries: Mapping[str, AnyValue]) -> dict[str, AnyValue]:
    """Return the entries of a file without OneTrainer's output vectors beside vectors of the text encoder's input."""
    return {
        key: value
        for key, value in entries.items()
        if not (
            key.endswith(OUTPUT_SUFFIX)
            and key.removesuffix(OUTPUT_SUFFIX) in {*SINGLE_KEYS, *SDXL_KEYS} & entries.keys()
        )
    }


def _find_vectors(contents: Contents) -> tuple[str, dict[str, object]]:
    """Return the token of a diffusers file, or "", and the vectors by text encoder."""
    name, entries = contents.path.name, _named_entries(contents)
    if A1111_KEYS & (as_dict(contents.payload) or {}).keys():
        return "", _find_a1111_vectors(contents)
    for pair in SDXL_KEY_PAIRS:
        if set(pair) <= entries.keys():
            return "", {key: entries[stored_key] for key, stored_key in zip(SDXL_KEYS, pair, strict=True)}
    missing = set(SDXL_KEYS) - entries.keys()
    if len(missing) == 1:
        raise BadFile(f"{name} lacks {min(missing)}: it is for SDXL, whose two text encoders both need vectors")
    if contents.container == "picture":
        raise BadFile(f"{name} is a picture without an embedding: use one that was saved to share an embedding")
    token = next((key for key in SINGLE_KEYS if key in entries), next(iter(entries)))
    vectors = entries[token]
    return "" if token in SINGLE_KEYS else token[:80], {token: vectors, **_find_second_vectors(contents, vectors)}


def _find_a1111_vectors(contents: Contents) -> dict[str, object]:
    payload = as_dict(contents.payload) or {}
    terms = as_dict(payload.get("string_to_param")) or {}
    if len(terms) != 1:
        raise BadFile(
            f"{contents.path.name} has vectors for {len(terms)} terms, not for one: save every term in its own file"
        )
    return {str(key): tensor for key, tensor in terms.items()}


def _find_second_vectors(contents: Contents, first_vectors: object) -> dict[str, object]:
    """Return the vectors for SDXL's second text encoder from the file that diffusers writes beside the first."""
    second_file = contents.path.with_name(f"{contents.path.stem}{SECOND_FILE_SUFFIX}{contents.path.suffix}")
    sdxl_width = FAMILIES["SDXL"].cross_width
    if not isinstance(first_vectors, Tensor) or not first_vectors.ndim or not second_file.is_file():
        return {}
    second_vectors = [
        tensor
        for tensor in _named_entries(open_tensors(second_file)).values()
        if isinstance(tensor, Tensor) and tensor.ndim
    ]
    fits = len(second_vectors) == 1 and first_vectors.shape[-1] + second_vectors[0].shape[-1] == sdxl_width
    return {SDXL_KEYS[1]: second_vectors[0]} if fits else {}


def _check_vectors(name: str, key: str, vectors: object) -> Tensor:
    """Return vectors as (count, width) in float32; a file may hold one vector as (width,)."""
    shape = vectors.shape if isinstance(vectors, Tensor) else torch.Size([1, 1])
    if len(shape) not in {1, 2} or not shape.numel():
        raise BadFile(
            f"{name} has vectors of shape {tuple(shape)}, not (count, width): it is damaged or not an embedding"
        )
    return check_tensor(name, repr(key[:80]), vectors, shape).float().view(-1, shape[-1])


def _check_sdxl_widths(name: str, widths: tuple[int, ...]) -> None:
    """Refuse vectors for two text encoders if one of them has an SDXL's width and the pair is not that of an SDXL."""
    is_half_sdxl = len(widths) == 2 and bool(set(widths) & set(SDXL_TEXT_WIDTHS))
    if is_half_sdxl and widths != SDXL_TEXT_WIDTHS:
        expected, found = (" and ".join(map(str, pair)) for pair in (SDXL_TEXT_WIDTHS, widths))
        raise BadFile(
            f"{name} has vectors of {found} features (clip_l, clip_g), but SDXL's text encoders have {expected}: it is "
            "damaged or mixed up"
        )


def _embedding_name(contents: Contents, payload: Mapping[object, object]) -> str:
    """Return the stem of the file, or the name that a picture holds."""
    stored_name, stem = payload.get("name"), contents.path.stem
    if not isinstance(stored_name, str | None):
        warn(f"{contents.path.name} has a name that is not text: it is called {stem!r} after its file")
    if not isinstance(stored_name, str) or not stored_name:
        return stem
    is_odd = PROMPT_SYNTAX.search(stored_name) or not stored_name.isprintable()
    if is_odd or len(stored_name) > MAX_NAME_LENGTH:
        problem = f"holds the name {stored_name[:40]!r}, which a prompt cannot contain"
        warn(f"{contents.path.name} {problem}: it is called {stem!r} after its file")
        return stem
    return stored_name if contents.container == "picture" else stem


def _warn_of_misfits(name: str, vectors: Mapping[str, Tensor], widths: tuple[int, ...], family: str) -> None:
    """Warn of an embedding that can be loaded but fits no known base or prompt."""
    warn_of_suspicious_weights(name, vectors)
    count = len(next(iter(vectors.values())))
    zero_parts = [key for key, rows in vectors.items() if not bool(rows.any())]
    if zero_parts and len(zero_parts) < len(vectors):
        warn(f"{name} holds only zeros for {zero_parts[0][:80]}: that text encoder learned nothing")
    if not family:
        features = " and ".join(map(str, widths))
        warn(f"{name} has vectors of {features} features: no known text encoder has this width")
    if count > CHUNK_LENGTH:
        warn(f"{name} has {count} vectors: a prompt has room for {CHUNK_LENGTH} vectors of one embedding")
