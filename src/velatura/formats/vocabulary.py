"""Tokenizers of bases that are one file: from the file's metadata, from a folder beside it, or CLIP's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from velatura.base.text_encoder import CONTEXT_LENGTH
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.clip_vocabulary import BOS_TOKEN, CLIP_VOCAB_SIZE, EOS_TOKEN, load_clip_vocabulary
from velatura.imports import import_model_libraries
from velatura.tensors import DAMAGED_FILE_ERRORS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZER_KEY = "velatura.tokenizer"
OPEN_CLIP_PAD = "!"  # its id is 0
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def tokenizer_metadata(tokenizer: CLIPTokenizer) -> dict[str, str]:
    """Return the metadata from which a tokenizer can be built again; empty for CLIP's, which is always at hand."""
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
    """Return the tokenizer of a base: from its metadata, from the folder tokenizer/ beside it, or CLIP's.

    Args:
        path: The checkpoint, or a file in the diffusers folder.
        metadata: Metadata of the checkpoint.
        vocab_size: Number of tokens in the text encoder's embedding table. It may be larger than CLIP's where tokens
            were added; prompts never use those.
        pads_with_zero: Pad with token 0 as OpenCLIP does, whatever the tokenizer's own settings say.

    Raises:
        UnsupportedBase: No tokenizer has that many tokens.
        BadFile: The vocabulary in the metadata does not fit the text encoder.
    """
    if TOKENIZER_KEY in metadata:
        return _build_from_header(path.name, metadata[TOKENIZER_KEY], vocab_size)
    tokenizer = _open_beside(path.parent / "tokenizer", vocab_size, pads_with_zero=pads_with_zero)
    if tokenizer is not None:
        return tokenizer
    if vocab_size >= CLIP_VOCAB_SIZE:
        return clip_tokenizer(pads_with_zero=pads_with_zero)
    raise UnsupportedBase(
        f"{path.name} has a text encoder of {vocab_size} tokens, not CLIP's {CLIP_VOCAB_SIZE}: "
        "put its folder tokenizer/ beside it"
    )


def clip_tokenizer(*, pads_with_zero: bool) -> CLIPTokenizer:
    """Return CLIP's tokenizer with the settings of Stable Diffusion's published folders.

    Args:
        pads_with_zero: Pad with token 0 ("!"), as the folders for OpenCLIP text encoders do, rather than with EOS.
    """
    vocabulary = load_clip_vocabulary()
    special = {
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": OPEN_CLIP_PAD if pads_with_zero else EOS_TOKEN,
        "unk_token": EOS_TOKEN,
    }
    return _tokenizer_class()(
        vocab=vocabulary.vocabulary, merges=vocabulary.merges, model_max_length=CONTEXT_LENGTH, **special
    )


def _open_beside(folder: Path, vocab_size: int, *, pads_with_zero: bool) -> CLIPTokenizer | None:
    """Return the tokenizer in a folder, or None if there is none, it cannot be read, or it has another size."""
    if not folder.is_dir():
        return None
    padding = {"pad_token": OPEN_CLIP_PAD} if pads_with_zero else {}
    try:
        tokenizer = _tokenizer_class().from_pretrained(folder, local_files_only=True, **padding)
    except (OSError, *DAMAGED_FILE_ERRORS):
        return None
    return tokenizer if len(tokenizer) == vocab_size else None


def _build_from_header(name: str, text: str, vocab_size: int) -> CLIPTokenizer:
    """Build a tokenizer from metadata; refuse one whose ids are not those of the text encoder's embedding table."""
    stored = cast("dict[str, Any]", json.loads(text))
    vocabulary = cast("dict[str, int]", stored["vocab"])
    merges = [(str(first), str(second)) for first, second in stored["merges"]]
    special = {name: str(stored[name]) for name in SPECIAL_TOKENS}
    used_words = {*special.values(), *(part for pair in merges for part in (*pair, "".join(pair)))}
    if sorted(vocabulary.values()) != list(range(vocab_size)) or not used_words <= vocabulary.keys():
        raise BadFile(f"{name} has a vocabulary that does not fit its text encoder: save the base again")
    return _tokenizer_class()(vocab=vocabulary, merges=merges, **special)


def _tokenizer_class() -> Any:  # Any: its factories have no return types
    import_model_libraries()
    from transformers import CLIPTokenizer

    return CLIPTokenizer
