"""The vocabulary of a base that came in one file: its own in the header, or CLIP's from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import CLIPTokenizer

from velatura.errors import BadFile, UnsupportedBase
from velatura.tensors import UNREADABLE

KEY = "velatura.tokenizer"
CLIP_WORDS = 49408  # of every public Stable Diffusion 1 and 2
CLIP_NAME = "openai/clip-vit-large-patch14"
OPEN_CLIP_PAD = "!"  # its id is 0
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

_untyped: Any = CLIPTokenizer  # whose factories say nothing of what they return


def told(tokenizer: CLIPTokenizer) -> dict[str, str]:
    """What a header must hold for a tokenizer to be built again: nothing, where it is CLIP's."""
    untyped: Any = tokenizer
    if len(untyped) == CLIP_WORDS:
        return {}
    model = json.loads(untyped.backend_tokenizer.to_str())["model"]
    words = {"vocab": model["vocab"], "merges": model["merges"], **{each: getattr(untyped, each) for each in SPECIAL}}
    return {KEY: json.dumps(words)}


def found(path: Path, metadata: Mapping[str, str], count: int, *, pads_with_zero: bool) -> CLIPTokenizer:
    """The file's own tokenizer, or the one in the folder tokenizer/ beside it, or CLIP's from the hub's cache.

    count: of the words that the text tower knows. pads_with_zero: as OpenCLIP does, whatever the tokenizer says.
    """
    if KEY in metadata:
        return _own(path.name, metadata[KEY], count)
    padding = {"pad_token": OPEN_CLIP_PAD} if pads_with_zero else {}
    beside = path.parent / "tokenizer"
    for place in ([beside] if beside.is_dir() else []) + [CLIP_NAME]:
        try:
            tokenizer = _untyped.from_pretrained(place, local_files_only=True, **padding)
        except (OSError, *UNREADABLE):
            continue
        if len(tokenizer) == count:
            return tokenizer
    raise UnsupportedBase(
        f"{path.name} needs CLIP's vocabulary of {count} words, which is not here: "
        f"put the folder tokenizer/ of a Stable Diffusion beside it, or download {CLIP_NAME} once"
    )


def _own(name: str, text: str, count: int) -> CLIPTokenizer:
    """Build a tokenizer from a header, refusing one that would give ids which the text tower has no vectors for."""
    parts = cast("dict[str, Any]", json.loads(text))
    words = cast("dict[str, int]", parts["vocab"])
    merges = [(str(first), str(second)) for first, second in parts["merges"]]
    special = {each: str(parts[each]) for each in SPECIAL}
    known = {*special.values(), *(part for pair in merges for part in (*pair, "".join(pair)))}
    if sorted(words.values()) != list(range(count)) or not known <= words.keys():
        raise BadFile(f"{name} has a vocabulary that does not fit its text tower: save the base again")
    return _untyped(vocab=words, merges=merges, **special)
