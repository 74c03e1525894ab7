"""Tokenizers of bases that are one file: from the file's metadata, from a folder beside it, or CLIP's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from velatura.base.text_encoder import CONTEXT_LENGTH
from velatura.errors import BadFile, UnsupportedBase, warn
from velatura.files import is_unset
from velatura.formats.check_texts import shorten_keys, shorten_text
from velatura.formats.clip_vocabulary import BOS_TOKEN, CLIP_VOCAB_SIZE, EOS_TOKEN, load_clip_vocabulary
from velatura.formats.json_files import read_json_object
from velatura.imports import import_model_libraries
from velatura.tensors import DAMAGED_FILE_ERRORS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZER_KEY = "velatura.tokenizer"
OPEN_CLIP_PAD = "!"  # its id is 0
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

CONFIG_NAME = "tokenizer_config.json"
# Settings of transformers' tokenizers that CLIP's has, or that do not change what it returns for a prompt
KNOWN_SETTINGS = (
    "add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens backend bos_token "
    "cache_dir chat_template clean_up_tokenization_spaces cls_token do_lower_case eos_token errors is_local legacy "
    "extra_special_tokens local_files_only mask_token max_length model_input_names model_max_length name_or_path "
    "pad_to_multiple_of pad_token pad_token_type_id padding_side processor_class revision sep_token "
    "spaces_between_special_tokens special_tokens_map_file split_special_tokens stride tokenizer_class "
    "tokenizer_file trim_offsets truncation truncation_side trust_remote_code unk_token use_fast vocab_size"
)
TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
UNLIMITED_LENGTH = 10**20  # transformers writes 10 to the power of 30 where no length is known


def open_tokenizer_folder(folder: Path, vocab_size: int) -> CLIPTokenizer:
    """Open the tokenizer in the folder of a base, and warn of settings that are unknown or have no effect.

    Args:
        folder: The folder, with vocab.json and merges.txt, or with tokenizer.json.
        vocab_size: Number of tokens in the text encoder's embedding table.

    Raises:
        BadFile: The settings are damaged, or it has tokens for which the text encoder has no vectors.
    """
    tokenizer = read_tokenizer_folder(folder)
    if len(tokenizer) > vocab_size:
        raise BadFile(
            f"{folder} has {len(tokenizer):,} tokens, and its text encoder has vectors for {vocab_size:,}: a token was "
            "added, or the folder belongs to another text encoder; download both again"
        )
    return tokenizer


def read_tokenizer_folder(folder: Path) -> CLIPTokenizer:
    """Read a tokenizer from a folder, and warn of settings that are unknown or have no effect; raises BadFile."""
    check_tokenizer_settings(folder)
    return _tokenizer_class().from_pretrained(folder, local_files_only=True)


def check_tokenizer_settings(folder: Path) -> None:
    """Warn of settings of a tokenizer that velatura does not know or does not follow, and refuse damaged ones.

    Args:
        folder: The folder of the tokenizer, with or without settings.

    Raises:
        BadFile: The settings are damaged.
    """
    if not (folder / CONFIG_NAME).is_file():
        return
    settings, place = read_json_object(folder / CONFIG_NAME), f"{folder.parent.name}/{folder.name}"
    set_names = [name for name, value in settings.items() if not is_unset(value) and not name.startswith("_")]
    unknown = [name for name in set_names if name not in KNOWN_SETTINGS.split()]
    if unknown:
        warn(
            f"{place} has settings that velatura does not know ({shorten_keys(unknown)}): they are ignored, and "
            "prompts may be read otherwise"
        )
    length = settings.get("model_max_length", CONTEXT_LENGTH)
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise BadFile(f"{folder} says that model_max_length is {str(length)[:40]!r}, not a number: download it again")
    contradictions = {
        "tokenizer_class": "it is read as CLIP's" if settings.get("tokenizer_class") not in TOKENIZER_CLASSES else "",
        "do_lower_case": "prompts are read in lower case" if settings.get("do_lower_case") is False else "",
        "model_max_length": f"prompts are read in chunks of {CONTEXT_LENGTH} tokens"
        if length != CONTEXT_LENGTH and length < UNLIMITED_LENGTH
        else "",
    }
    for name, what_happens in contradictions.items():
        if what_happens and settings.get(name) is not None:
            shown = shorten_text(str(settings[name]))
            warn(f"{place} says that {name} is {shown!r}: it is ignored, and {what_happens}")


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
