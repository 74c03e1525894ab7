"""Embeddings as other programs keep them: the webui's .pt, sd-scripts' safetensors, diffusers' files, and pictures."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from velatura.base.families import FAMILIES
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats.load_state import check_tensor, warn_of_suspicious_weights
from velatura.formats.metadata import family_from_metadata
from velatura.overlays.embedding import SDXL_KEYS, SINGLE_KEYS, Embedding
from velatura.overlays.overlay import Card, Overlay
from velatura.prompts.chunks import CHUNK_LENGTH
from velatura.tensors import Contents, as_dict, open_tensors, write_torch

A1111_KEYS = {"string_to_param", "string_to_token"}
SDXL_KEY_PAIRS = (SDXL_KEYS, ("text_encoders_0", "text_encoders_1"))
SECOND_FILE_SUFFIX = "_2"  # behind the stem of diffusers' file for the second tower
PROMPT_SYNTAX = re.compile(r"[()\[\]<>{}:|,/\\]|[^\S ]")  # a prompt or a path would take it for something else
MAX_STEPS = 2**53


def sniff_a1111(contents: Contents) -> bool:
    """Whether the file is a dict with the webui's names for terms and their vectors."""
    return contents.container != "picture" and bool(A1111_KEYS & (as_dict(contents.payload) or {}).keys())


def sniff_picture(contents: Contents) -> bool:
    """Whether the file is a picture with an embedding in it."""
    return contents.container == "picture"


def sniff_kohya(contents: Contents) -> bool:
    """Whether the tensors are called as sd-scripts calls vectors, for one text tower or for both of an SDXL."""
    names = set(_named_entries(contents))
    return names == {*SINGLE_KEYS} or (bool(names) and names <= {*SDXL_KEYS})


def sniff_diffusers(contents: Contents) -> bool:
    """Whether the file holds the vectors of one token under that token, or those of both towers by their numbers."""
    entries = _named_entries(contents)
    if set(entries) == {*SDXL_KEY_PAIRS[1]}:
        return True
    return len(entries) == 1 and all(
        isinstance(value, Tensor) and value.ndim in {1, 2} and not name.endswith((".weight", ".bias", ".alpha"))
        for name, value in entries.items()
    )


def read(contents: Contents) -> Embedding:
    """Read an embedding in any of these forms, in float32.

    Its name is that of the file, as in the webui; a picture may have another one inside.
    """
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    token, tensors = _find_vectors(contents)
    vectors = [_check_vectors(name, key, tensor) for key, tensor in tensors.items()]
    if len({len(rows) for rows in vectors}) > 1:
        counts = " and ".join(str(len(rows)) for rows in vectors)
        raise BadFile(f"{name} has {counts} vectors for its two text towers: it is damaged, as both are to be as many")
    card = Card(kind=Embedding.kind).replace(**_training_fields(payload))
    embedding_name = _embedding_name(contents, payload)
    widths = tuple(rows.shape[1] for rows in vectors)
    family = next((candidate.name for candidate in FAMILIES.values() if candidate.cross_width == sum(widths)), "")
    _warn_of_misfits(name, dict(zip(tensors, vectors, strict=True)), widths, family)
    note = f"diffusers' token: {token}" if token else ""
    return Embedding.from_vectors(
        *vectors,
        card=card.replace(name=embedding_name, family=family or family_from_metadata(contents.metadata), note=note),
    )


def write_a1111(overlay: Overlay, path: Path) -> None:
    """Write the webui's .pt, its fields in its order; of an SDXL's, which have no terms there, both tensors alone."""
    assert isinstance(overlay, Embedding)
    vectors = [tensor.detach().float().cpu().clone() for tensor in overlay.vectors]
    if len(vectors) > 1:
        write_torch(path, dict(zip(overlay.tensor_names, vectors, strict=True)))
        return
    write_torch(path, a1111_payload(overlay, vectors[0], path.stem))


def a1111_payload(overlay: Embedding, vectors: Tensor, stem: str) -> dict[str, object]:
    """What the webui keeps of an embedding."""
    return {
        "string_to_token": {"*": 265},  # the asterisk's, which nobody reads
        "string_to_param": {"*": vectors},
        "name": overlay.name or stem,
        "step": overlay.card.steps,
        "sd_checkpoint": overlay.card.base_hash or None,
        "sd_checkpoint_name": overlay.card.base or None,
    }


def a1111_checksum(vectors: Tensor) -> str:
    """Four digits by which the webui tells whether an optimizer's state (.optim) belongs to an embedding."""
    digest = 0
    integers = (vectors.detach().float().cpu().flatten() * 100).to(torch.int64)
    for value in cast("list[int]", integers.tolist()):  # pyright: ignore[reportUnknownMemberType]
        digest = (digest * 281 ^ value * 997) & 0xFFFFFFFF
    return f"{digest & 0xFFFF:04x}"


def _named_entries(contents: Contents) -> Mapping[str, object]:
    """What stands at the top of a file under names: the tensors of safetensors, or what a torch file's dict holds."""
    if contents.container == "safetensors":
        return contents.tensors
    return {key: value for key, value in (as_dict(contents.payload) or {}).items() if isinstance(key, str)}


def _find_vectors(contents: Contents) -> tuple[str, dict[str, object]]:
    """The token that diffusers' files call vectors by, and the vectors for each text tower."""
    name, payload, entries = contents.path.name, as_dict(contents.payload) or {}, _named_entries(contents)
    if A1111_KEYS & payload.keys():
        terms = as_dict(payload.get("string_to_param")) or {}
        if len(terms) != 1:
            raise BadFile(f"{name} has vectors for {len(terms)} terms, not for one: keep one in a file of its own")
        return "", {str(key): tensor for key, tensor in terms.items()}
    for pair in SDXL_KEY_PAIRS:
        if set(pair) <= entries.keys():
            return "", {key: entries[stored_key] for key, stored_key in zip(SDXL_KEYS, pair, strict=True)}
    if missing := set(SDXL_KEYS) - entries.keys() if set(SDXL_KEYS) & entries.keys() else set[str]():
        raise BadFile(f"{name} lacks {min(missing)}: it is for an SDXL, whose two text towers both need vectors")
    if contents.container == "picture":
        raise BadFile(f"{name} is a picture without an embedding in it: take one that was made to share one")
    [(token, vectors)] = entries.items()
    return "" if token in SINGLE_KEYS else token[:80], {token: vectors, **_find_second_vectors(contents, vectors)}


def _find_second_vectors(contents: Contents, first_vectors: object) -> dict[str, object]:
    """The vectors for an SDXL's second tower, which diffusers keeps in a file beside that of the first."""
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
    """Vectors as they should be, (count, width); one vector may be written without the first."""
    shape = vectors.shape if isinstance(vectors, Tensor) else torch.Size([1, 1])
    if len(shape) not in {1, 2} or not shape.numel():
        raise BadFile(f"{name} has vectors of shape {tuple(shape)}, not (count, width): it is damaged or no embedding")
    return check_tensor(name, repr(key[:80]), vectors, shape).float().view(-1, shape[-1])


def _training_fields(payload: Mapping[object, object]) -> dict[str, object]:
    """What is said of the training beside the vectors."""
    steps = payload.get("step")
    texts = {"base": "sd_checkpoint_name", "base_hash": "sd_checkpoint"}
    fields = {field: payload[key] for field, key in texts.items() if isinstance(payload.get(key), str)}
    return {**fields, "steps": steps if type(steps) is int and 0 <= steps < MAX_STEPS else 0}


def _embedding_name(contents: Contents, payload: Mapping[object, object]) -> str:
    """What it is called: by its file, or, of a picture, by what is in it."""
    stored_name = payload.get("name")
    if isinstance(stored_name, str) and PROMPT_SYNTAX.search(stored_name):
        _warn(
            contents.path.name,
            f"has the name {stored_name[:40]!r} inside, which no prompt can say",
            "its file's is taken",
        )
        return contents.path.stem
    return (
        stored_name
        if contents.container == "picture" and isinstance(stored_name, str) and stored_name
        else contents.path.stem
    )


def _warn_of_misfits(name: str, vectors: Mapping[str, Tensor], widths: tuple[int, ...], family: str) -> None:
    """Warn of what loads but fits nothing that is known."""
    warn_of_suspicious_weights(name, vectors)
    count = len(next(iter(vectors.values())))
    if not family:
        _warn(
            name, f"has vectors of {' and '.join(map(str, widths))} features", "no text encoder known here reads such"
        )
    if count > CHUNK_LENGTH:
        _warn(name, f"has {count} vectors", f"a prompt has room for up to {CHUNK_LENGTH} of one embedding")


def _warn(name: str, problem: str, outcome: str) -> None:
    warnings.warn(f"{name} {problem}: {outcome}", VelaturaWarning, stacklevel=4)
