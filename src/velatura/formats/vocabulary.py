"""The vocabulary of a base that came in one file: its own in the header, one beside it, or CLIP's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import CLIPTokenizer

from velatura.base.text import TOKENS
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.clip_words import COUNT, END, START, clip_words
from velatura.tensors import UNREADABLE

KEY = "velatura.tokenizer"
OPEN_CLIP_PAD = "!"  # its id is 0
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

_untyped: Any = CLIPTokenizer  # whose factories say nothing of what they return


def told(tokenizer: CLIPTokenizer) -> dict[str, str]:
    """What a header must hold for a tokenizer to be built again: nothing, where it is CLIP's."""
    untyped: Any = tokenizer
    if len(untyped) == COUNT:
        return {}
    model = json.loads(untyped.backend_tokenizer.to_str())["model"]
    words = {"vocab": model["vocab"], "merges": model["merges"], **{each: getattr(untyped, each) for each in SPECIAL}}
    return {KEY: json.dumps(words)}


def found(path: Path, metadata: Mapping[str, str], count: int, *, pads_with_zero: bool) -> CLIPTokenizer:
    """The file's own tokenizer, or the one in the folder tokenizer/ beside it, or CLIP's.

    count: of the words that the text tower knows. pads_with_zero: as OpenCLIP does, whatever the tokenizer says.
    """
    if KEY in metadata:
        return _own(path.name, metadata[KEY], count)
    if beside := _beside(path.parent / "tokenizer", count, pads_with_zero=pads_with_zero):
        return beside
    if count >= COUNT:  # more where words were added, which no prompt calls by these ids
        return clip_tokenizer(pads_with_zero=pads_with_zero)
    raise UnsupportedBase(
        f"{path.name} has a text tower of {count} words, not CLIP's {COUNT}: put its folder tokenizer/ beside it"
    )


def clip_tokenizer(*, pads_with_zero: bool) -> CLIPTokenizer:
    """CLIP's tokenizer as Stable Diffusion's folders hold it; there it pads with zero where the tower is OpenCLIP's."""
    words = clip_words()
    special = dict(zip(SPECIAL, (START, END, OPEN_CLIP_PAD if pads_with_zero else END, END), strict=True))
    return _untyped(vocab=words.vocabulary, merges=words.merges, model_max_length=TOKENS, **special)


def _beside(folder: Path, count: int, *, pads_with_zero: bool) -> CLIPTokenizer | None:
    """The tokenizer in a folder, if there is one and it has that many words."""
    if not folder.is_dir():
        return None
    padding = {"pad_token": OPEN_CLIP_PAD} if pads_with_zero else {}
    try:
        tokenizer = _untyped.from_pretrained(folder, local_files_only=True, **padding)
    except (OSError, *UNREADABLE):
        return None
    return tokenizer if len(tokenizer) == count else None


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
