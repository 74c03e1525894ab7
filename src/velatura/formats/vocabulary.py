"""The vocabulary of a base that came in one file: its own in the header, one beside it, or CLIP's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import CLIPTokenizer

from velatura.base.text_encoder import CONTEXT_LENGTH
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.clip_vocabulary import BOS_TOKEN, CLIP_VOCAB_SIZE, EOS_TOKEN, load_clip_vocabulary
from velatura.tensors import DAMAGED_FILE_ERRORS

TOKENIZER_KEY = "velatura.tokenizer"
OPEN_CLIP_PAD = "!"  # its id is 0
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

_tokenizer_class: Any = CLIPTokenizer  # whose factories say nothing of what they return


def tokenizer_metadata(tokenizer: CLIPTokenizer) -> dict[str, str]:
    """What a header must hold for a tokenizer to be built again: nothing, where it is CLIP's."""
    untyped: Any = tokenizer
    if len(untyped) == CLIP_VOCAB_SIZE:
        return {}
    model = json.loads(untyped.backend_tokenizer.to_str())["model"]
    stored = {
        "vocab": model["vocab"],
        "merges": model["merges"],
        **{name: getattr(untyped, name) for name in SPECIAL_TOKENS},
    }
    return {TOKENIZER_KEY: json.dumps(stored)}


def find_tokenizer(path: Path, metadata: Mapping[str, str], vocab_size: int, *, pads_with_zero: bool) -> CLIPTokenizer:
    """The file's own tokenizer, or the one in the folder tokenizer/ beside it, or CLIP's.

    count: of the words that the text tower knows. pads_with_zero: as OpenCLIP does, whatever the tokenizer says.
    """
    if TOKENIZER_KEY in metadata:
        return _build_from_header(path.name, metadata[TOKENIZER_KEY], vocab_size)
    if tokenizer := _open_beside(path.parent / "tokenizer", vocab_size, pads_with_zero=pads_with_zero):
        return tokenizer
    if vocab_size >= CLIP_VOCAB_SIZE:  # more where words were added, which no prompt calls by these ids
        return clip_tokenizer(pads_with_zero=pads_with_zero)
    raise UnsupportedBase(
        f"{path.name} has a text tower of {vocab_size} words, not CLIP's {CLIP_VOCAB_SIZE}: put its folder tokenizer/ beside it"
    )


def clip_tokenizer(*, pads_with_zero: bool) -> CLIPTokenizer:
    """CLIP's tokenizer as Stable Diffusion's folders hold it; there it pads with zero where the tower is OpenCLIP's."""
    vocabulary = load_clip_vocabulary()
    special = dict(
        zip(
            SPECIAL_TOKENS,
            (BOS_TOKEN, EOS_TOKEN, OPEN_CLIP_PAD if pads_with_zero else EOS_TOKEN, EOS_TOKEN),
            strict=True,
        )
    )
    return _tokenizer_class(
        vocab=vocabulary.vocabulary, merges=vocabulary.merges, model_max_length=CONTEXT_LENGTH, **special
    )


def _open_beside(folder: Path, vocab_size: int, *, pads_with_zero: bool) -> CLIPTokenizer | None:
    """The tokenizer in a folder, if there is one and it has that many words."""
    if not folder.is_dir():
        return None
    padding = {"pad_token": OPEN_CLIP_PAD} if pads_with_zero else {}
    try:
        tokenizer = _tokenizer_class.from_pretrained(folder, local_files_only=True, **padding)
    except (OSError, *DAMAGED_FILE_ERRORS):
        return None
    return tokenizer if len(tokenizer) == vocab_size else None


def _build_from_header(name: str, text: str, vocab_size: int) -> CLIPTokenizer:
    """Build a tokenizer from a header, refusing one that would give ids which the text tower has no vectors for."""
    stored = cast("dict[str, Any]", json.loads(text))
    vocabulary = cast("dict[str, int]", stored["vocab"])
    merges = [(str(first), str(second)) for first, second in stored["merges"]]
    special = {name: str(stored[name]) for name in SPECIAL_TOKENS}
    used_words = {*special.values(), *(part for pair in merges for part in (*pair, "".join(pair)))}
    if sorted(vocabulary.values()) != list(range(vocab_size)) or not used_words <= vocabulary.keys():
        raise BadFile(f"{name} has a vocabulary that does not fit its text tower: save the base again")
    return _tokenizer_class(vocab=vocabulary, merges=merges, **special)
