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
from velatura.base.words import ROOM
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats.fill import checked, warn_of_oddities
from velatura.formats.said import said_family
from velatura.overlays.embedding import ALONE, PAIR, Embedding
from velatura.overlays.overlay import Card, Overlay
from velatura.tensors import Contents, as_dict, open_tensors, write_torch

TERMS = {"string_to_param", "string_to_token"}
PAIRS = (PAIR, ("text_encoders_0", "text_encoders_1"))
SECOND = "_2"  # behind the stem of diffusers' file for the second tower
SYNTAX = re.compile(r"[()\[\]<>{}:|,/\\]|[^\S ]")  # a prompt or a path would take it for something else
MOST_STEPS = 2**53


def sniff_a1111(contents: Contents) -> bool:
    """Whether the file is a dict with the webui's names for terms and their vectors."""
    return contents.container != "picture" and bool(TERMS & (as_dict(contents.payload) or {}).keys())


def sniff_picture(contents: Contents) -> bool:
    """Whether the file is a picture with an embedding in it."""
    return contents.container == "picture"


def sniff_kohya(contents: Contents) -> bool:
    """Whether the tensors are called as sd-scripts calls vectors, for one text tower or for both of an SDXL."""
    names = set(_plain(contents))
    return names == {*ALONE} or (bool(names) and names <= {*PAIR})


def sniff_diffusers(contents: Contents) -> bool:
    """Whether the file holds the vectors of one token under that token, or those of both towers by their numbers."""
    plain = _plain(contents)
    if set(plain) == {*PAIRS[1]}:
        return True
    return len(plain) == 1 and all(
        isinstance(each, Tensor) and each.ndim in {1, 2} and not name.endswith((".weight", ".bias", ".alpha"))
        for name, each in plain.items()
    )


def read(contents: Contents) -> Embedding:
    """Read an embedding in any of these forms, in float32.

    Its name is that of the file, as in the webui; a picture may have another one inside.
    """
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    called, found = _vectors(contents)
    vectors = [_rows(name, key, each) for key, each in found.items()]
    if len({len(each) for each in vectors}) > 1:
        counts = " and ".join(str(len(each)) for each in vectors)
        raise BadFile(f"{name} has {counts} vectors for its two text towers: it is damaged, as both are to be as many")
    card = Card(kind=Embedding.kind).but(**_said(payload))
    own = _name(contents, payload)
    widths = tuple(each.shape[1] for each in vectors)
    family = next((each.name for each in FAMILIES.values() if each.cross_width == sum(widths)), "")
    _warn(name, dict(zip(found, vectors, strict=True)), widths, family)
    note = f"diffusers' token: {called}" if called else ""
    return Embedding.of(*vectors, card=card.but(name=own, family=family or said_family(contents.metadata), note=note))


def write(overlay: Overlay, path: Path) -> None:
    """Write the webui's .pt, its fields in its order; of an SDXL's, which have no terms there, both tensors alone."""
    assert isinstance(overlay, Embedding)
    vectors = [each.detach().float().cpu().clone() for each in overlay.vectors]
    if len(vectors) > 1:
        write_torch(path, dict(zip(overlay.names, vectors, strict=True)))
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


def checksum(vectors: Tensor) -> str:
    """Four digits by which the webui tells whether an optimizer's state (.optim) belongs to an embedding."""
    digest = 0
    whole = (vectors.detach().float().cpu().flatten() * 100).to(torch.int64)
    for value in cast("list[int]", whole.tolist()):  # pyright: ignore[reportUnknownMemberType]
        digest = (digest * 281 ^ value * 997) & 0xFFFFFFFF
    return f"{digest & 0xFFFF:04x}"


def _plain(contents: Contents) -> Mapping[str, object]:
    """What stands at the top of a file under names: the tensors of safetensors, or what a torch file's dict holds."""
    if contents.container == "safetensors":
        return contents.tensors
    return {key: each for key, each in (as_dict(contents.payload) or {}).items() if isinstance(key, str)}


def _vectors(contents: Contents) -> tuple[str, dict[str, object]]:
    """The token that diffusers' files call vectors by, and the vectors for each text tower."""
    name, payload, plain = contents.path.name, as_dict(contents.payload) or {}, _plain(contents)
    if TERMS & payload.keys():
        terms = as_dict(payload.get("string_to_param")) or {}
        if len(terms) != 1:
            raise BadFile(f"{name} has vectors for {len(terms)} terms, not for one: keep one in a file of its own")
        return "", {str(key): each for key, each in terms.items()}
    for pair in PAIRS:
        if set(pair) <= plain.keys():
            return "", {ours: plain[theirs] for ours, theirs in zip(PAIR, pair, strict=True)}
    if missing := set(PAIR) - plain.keys() if set(PAIR) & plain.keys() else set[str]():
        raise BadFile(f"{name} lacks {min(missing)}: it is for an SDXL, whose two text towers both need vectors")
    if contents.container == "picture":
        raise BadFile(f"{name} is a picture without an embedding in it: take one that was made to share one")
    [(token, vectors)] = plain.items()
    return "" if token in ALONE else token[:80], {token: vectors, **_second(contents, vectors)}


def _second(contents: Contents, first: object) -> dict[str, object]:
    """The vectors for an SDXL's second tower, which diffusers keeps in a file beside that of the first."""
    beside = contents.path.with_name(f"{contents.path.stem}{SECOND}{contents.path.suffix}")
    wide = FAMILIES["SDXL"].cross_width
    if not isinstance(first, Tensor) or not first.ndim or not beside.is_file():
        return {}
    others = [each for each in _plain(open_tensors(beside)).values() if isinstance(each, Tensor) and each.ndim]
    fits = len(others) == 1 and first.shape[-1] + others[0].shape[-1] == wide
    return {PAIR[1]: others[0]} if fits else {}


def _rows(name: str, key: str, vectors: object) -> Tensor:
    """Vectors as they should be, (count, width); one vector may be written without the first."""
    shape = vectors.shape if isinstance(vectors, Tensor) else torch.Size([1, 1])
    if len(shape) not in {1, 2} or not shape.numel():
        raise BadFile(f"{name} has vectors of shape {tuple(shape)}, not (count, width): it is damaged or no embedding")
    return checked(name, repr(key[:80]), vectors, shape).float().view(-1, shape[-1])


def _said(payload: Mapping[object, object]) -> dict[str, object]:
    """What is said of the training beside the vectors."""
    steps = payload.get("step")
    texts = {"base": "sd_checkpoint_name", "base_hash": "sd_checkpoint"}
    said = {ours: payload[theirs] for ours, theirs in texts.items() if isinstance(payload.get(theirs), str)}
    return {**said, "steps": steps if type(steps) is int and 0 <= steps < MOST_STEPS else 0}


def _name(contents: Contents, payload: Mapping[object, object]) -> str:
    """What it is called: by its file, or, of a picture, by what is in it."""
    inside = payload.get("name")
    if isinstance(inside, str) and SYNTAX.search(inside):
        _say(contents.path.name, f"has the name {inside[:40]!r} inside, which no prompt can say", "its file's is taken")
        return contents.path.stem
    return inside if contents.container == "picture" and isinstance(inside, str) and inside else contents.path.stem


def _warn(name: str, vectors: Mapping[str, Tensor], widths: tuple[int, ...], family: str) -> None:
    """Warn of what loads but fits nothing that is known."""
    warn_of_oddities(name, vectors)
    count = len(next(iter(vectors.values())))
    if not family:
        _say(name, f"has vectors of {' and '.join(map(str, widths))} features", "no text encoder known here reads such")
    if count > ROOM:
        _say(name, f"has {count} vectors", f"a prompt has room for up to {ROOM} of one embedding")


def _say(name: str, what: str, so: str) -> None:
    warnings.warn(f"{name} {what}: {so}", VelaturaWarning, stacklevel=4)
