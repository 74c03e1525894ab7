"""Check metadata of files: values that are none of their kind, and claims that the tensors contradict.

Tensors count more than metadata. Metadata that contradict the tensors, or have a value of the wrong kind, are named
once and change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from velatura.base.families import FAMILIES, FAMILY_BY_CROSS_WIDTH
from velatura.errors import warn
from velatura.files import is_path_outside
from velatura.formats.check_texts import MAX_NAME_LENGTH, has_hidden_text, mixes_scripts, shorten_keys, shorten_text
from velatura.formats.loras.layer_bounds import families_of_layers
from velatura.formats.metadata import EMPTY_VALUES, STATED_FAMILIES, Metadata, stated_model
from velatura.formats.metadata import VELATURA_VERSION_PREFIX as OWN_VERSION_PREFIX
from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, as_dict

OWN_ARCHITECTURE_PREFIX = "velatura-"
VERSION_KEY, V2_KEY, ARCHITECTURE_KEY, FORMAT_KEY = "ss_base_model_version", "ss_v2", "modelspec.architecture", "format"
KIND_BY_MODEL_SPEC_WORD = {"lora": "lora", "textual-inversion": "embedding", "hypernetwork": "hypernet"}
OWN_FORMAT = "pt"  # of tensors laid out as torch has them

DATE_KEYS = ("modelspec.date",)  # ISO 8601
HASH_PATTERNS = {  # hex digits; LyCORIS and ModelSpec put 0x before them
    "sshs_model_hash": re.compile(r"(0x)?[0-9a-f]{64}", re.IGNORECASE),
    "sshs_legacy_hash": re.compile(r"[0-9a-f]{8}", re.IGNORECASE),
    "ss_sd_model_hash": re.compile(r"[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{64}", re.IGNORECASE),
    "ss_new_sd_model_hash": re.compile(r"[0-9a-f]{64}", re.IGNORECASE),
    "ss_vae_hash": re.compile(r"[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{64}", re.IGNORECASE),
    "ss_new_vae_hash": re.compile(r"[0-9a-f]{64}", re.IGNORECASE),
    "modelspec.hash_sha256": re.compile(r"(0x)?[0-9a-f]{64}", re.IGNORECASE),
    "sd_checkpoint": re.compile(r"[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{64}", re.IGNORECASE),
}
COUNT_KEYS = (
    "ss_steps",
    "ss_max_train_steps",
    "ss_epoch",
    "ss_num_epochs",
    "ss_num_train_images",
    "ss_num_reg_images",
    "ss_num_batches_per_epoch",
    "ss_clip_skip",
    "ss_gradient_accumulation_steps",
)
NUMBER_KEYS = (
    "ss_network_dim",
    "ss_network_alpha",
    "ss_seed",
    "ss_training_started_at",
    "ss_training_finished_at",
    "ss_noise_offset",
)
POSITIVE_NUMBER_KEYS = (
    "ss_learning_rate",
    "ss_unet_lr",
    "ss_text_encoder_lr",
    "ss_lr_warmup_steps",
    "ss_min_snr_gamma",
    "ss_max_grad_norm",
)
FLAG_KEYS = (V2_KEY,)
FLAGS = {"True", "False", "true", "false", "0", "1"}
# A count, and the one that it cannot exceed
ORDERED_KEYS = {
    "ss_steps": "ss_max_train_steps",
    "ss_epoch": "ss_num_epochs",
    "ss_training_started_at": "ss_training_finished_at",
}
# None and NOFILE are sd-scripts' words, Dynamic that of its resize script for ranks that differ; null is JSON's
WORDS_FOR_VALUES = EMPTY_VALUES | {"Dynamic", "NOFILE", "null"}
# [0-9], because \d also takes the digits of other scripts, which no program writes
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
NUMBERS = re.compile(rf"[\[(]?\s*{NUMBER}(?:\s*,\s*{NUMBER})*\s*,?\s*[\])]?", re.IGNORECASE)  # one, or a list of them
SINGLE_NUMBER = re.compile(NUMBER, re.IGNORECASE)
NEGATIVE_NUMBER = re.compile(r"(?<!e)-", re.IGNORECASE)  # a minus that is not an exponent's
COUNT = re.compile(r"[0-9]{1,15}(?:\.0*)?")
SIZE_KEYS = ("ss_resolution", "modelspec.resolution")
SIZE = re.compile(r"[\[(]?\s*[0-9]{1,6}(?:\s*[,xX]\s*[0-9]{1,6})?\s*[\])]?")
NAME_KEYS = ("ss_output_name", "ss_sd_model_name", "ss_vae_name", "modelspec.title", "sd_checkpoint_name", "name")
CROSS_PROJECTIONS = ("attn2_to_k", "attn2_to_v")  # whose input is as wide as the context
MARKUP = frozenset("<>")  # of HTML, and of tags in prompts
PLACEHOLDER_TOKEN = re.compile(r"<[\w .+-]+>")  # <cat-toy>, as diffusers' script calls the token of an embedding
OUTPUT_NAME_KEY = "ss_output_name"  # whose readers say what they do with markup
MAX_SHOWN_CLAIMS = 5


def warn_of_metadata(contents: Contents, kind: str, families: Iterable[str]) -> None:
    """Warn of all metadata that cannot be true, and of invisible characters in the names of tensors.

    Args:
        contents: The file; of a torch file the texts at its top are its metadata.
        kind: Kind of file that the tensors are of, such as "lora" or "checkpoint".
        families: Families that the tensors may be of; empty if they do not tell.
    """
    payload = as_dict(contents.payload) or {}
    texts = {key: value for key, value in payload.items() if isinstance(key, str) and isinstance(value, str)}
    name = texts.pop("name", "")  # its readers say what they do with it
    metadata = {**texts, **contents.metadata}
    problems = [
        *(
            ["has a name inside that mixes Latin letters with letters that look like them"]
            if mixes_scripts(name)
            else []
        ),
        *find_metadata_problems(metadata, kind),
        *find_family_conflicts(metadata, families),
        *find_kind_conflict(metadata, kind),
    ]
    hidden = [key for key in (*contents.tensors, *payload) if isinstance(key, str) and has_hidden_text(key)]
    if hidden:
        problems.append(
            f"has invisible characters in names ({shorten_keys(hidden)}): they are left out where they are shown"
        )
    for problem in problems:
        warn(f"{contents.path.name} {problem}")


def find_metadata_problems(metadata: Metadata, kind: str = "") -> Iterator[str]:
    """Yield what is wrong with metadata, each as the end of a sentence that begins with the file's name.

    Args:
        metadata: The metadata of a file.
        kind: Kind of file that the tensors are of. The name of an embedding may be a token such as <cat-toy>.
    """
    hidden = [key for key, value in metadata.items() if has_hidden_text(key) or has_hidden_text(value)]
    if hidden:
        yield (
            f"has invisible or control characters in its metadata ({shorten_keys(hidden)}): they are left out where it "
            "is shown"
        )
    yield from _find_odd_names(metadata, kind)
    outside = [key for key in NAME_KEYS if is_path_outside(_unquote(metadata.get(key, "")))]
    if outside:
        yield f"has a path in place of a name in its metadata ({shorten_keys(outside)}): it is shown, and never opened"
    yield from _find_values(metadata, DATE_KEYS, _is_date, "a date")
    yield from _find_values(metadata, HASH_PATTERNS, _is_hash, "a hash")
    yield from _find_values(metadata, COUNT_KEYS, _is_count, "a count")
    yield from _find_values(metadata, NUMBER_KEYS, _is_number, "a number")
    yield from _find_values(metadata, POSITIVE_NUMBER_KEYS, _is_positive_number, "a number of 0 or more")
    yield from _find_values(metadata, FLAG_KEYS, _is_flag, "True or False")
    yield from _find_excesses(metadata)
    yield from _find_values(metadata, SIZE_KEYS, _is_size, "a size of pictures")
    stored_format = metadata.get(FORMAT_KEY, OWN_FORMAT)
    if stored_format != OWN_FORMAT:
        shown = shorten_text(stored_format)
        yield (
            f"says that its tensors are of {shown!r} (format), not of torch (pt): they are read as torch's, so check "
            "the pictures that it makes"
        )


def find_family_conflicts(metadata: Metadata, families: Iterable[str]) -> Iterator[str]:
    """Yield where metadata name another family of bases than the tensors are of, or contradict each other.

    Args:
        metadata: The metadata of a safetensors file.
        families: Families that the tensors may be of; empty if they do not tell.
    """
    possible = set(families) & STATED_FAMILIES
    stated = stated_families(metadata)
    wrong = {key: family for key, family in stated.items() if possible and family not in possible}
    if wrong:
        claims = ", ".join(f"{key} {shorten_text(metadata[key])!r}" for key in wrong)
        yield (
            f"names another base in its metadata ({claims}) than its tensors are for "
            f"({' or '.join(sorted(possible))}): the tensors count"
        )
    elif len(set(stated.values())) > 1:
        claims = ", ".join(f"{key} {shorten_text(metadata[key])!r}" for key in stated)
        yield f"names several bases in its metadata ({claims}): the tensors count where they tell"


def find_kind_conflict(metadata: Metadata, kind: str) -> Iterator[str]:
    """Yield if ModelSpec's architecture names another kind of file, as in stable-diffusion-v1/lora."""
    architecture = metadata.get(ARCHITECTURE_KEY, "")
    stated = KIND_BY_MODEL_SPEC_WORD.get(architecture.rpartition("/")[2] if "/" in architecture else "", kind)
    if stated != kind:
        shown = shorten_text(architecture)
        yield (
            f"says in its metadata that it is of the kind {stated} ({ARCHITECTURE_KEY} {shown!r}), "
            f"but its tensors are of a {kind}: the tensors count"
        )


def stated_families(metadata: Metadata) -> dict[str, str]:
    """Return the families that metadata name, by the key; of another known model its own name.

    Words that name no model known here are left out: they contradict nothing.
    """
    families: dict[str, str] = {}
    version = metadata.get(VERSION_KEY, "")
    if version not in EMPTY_VALUES and not version.startswith(OWN_VERSION_PREFIX):
        families[VERSION_KEY] = stated_model(version)
    if metadata.get(V2_KEY) == "True":
        families[V2_KEY] = "SD2"
    architecture = metadata.get(ARCHITECTURE_KEY, "")
    if architecture not in EMPTY_VALUES and not architecture.startswith(OWN_ARCHITECTURE_PREFIX):
        families[ARCHITECTURE_KEY] = stated_model(architecture)
    return {key: family for key, family in families.items() if family}


def families_of(overlay: Overlay) -> set[str]:
    """Return the families of bases that an overlay's tensors may be for, empty if they do not tell."""
    if isinstance(overlay, Lora):
        shapes = (delta.weight_shape for name, delta in overlay.layers.items() if name.endswith(CROSS_PROJECTIONS))
        by_width = {FAMILY_BY_CROSS_WIDTH.get(shape[1], "") for shape in shapes} - {""}
        return by_width if len(by_width) == 1 else families_of_layers(overlay.layers)
    if isinstance(overlay, Embedding):
        return {FAMILY_BY_CROSS_WIDTH.get(sum(overlay.structure.widths), "")} - {""}
    if isinstance(overlay, Hypernetwork):
        widths = set(overlay.structure.widths)
        return {family.name for family in FAMILIES.values() if family.cross_width in widths}
    return set()


def _find_values(
    metadata: Metadata, keys: Iterable[str], is_valid: Callable[[str, str], bool], kind: str
) -> Iterator[str]:
    """Yield one clause that names all keys whose values are not of their kind."""
    values = {key: _unquote(metadata.get(key, "")) for key in keys}
    wrong = {key: text for key, text in values.items() if text not in WORDS_FOR_VALUES and not is_valid(key, text)}
    if wrong:
        claims = ", ".join(f"{key} {shorten_text(text)!r}" for key, text in list(wrong.items())[:MAX_SHOWN_CLAIMS])
        yield f"has metadata whose value is not {kind} ({claims}): they are ignored"


def _find_odd_names(metadata: Metadata, kind: str) -> Iterator[str]:
    """Yield what makes names in metadata look like something else than they are."""
    names = {key: metadata[key] for key in NAME_KEYS if key in metadata}
    mixed = [key for key, name in names.items() if mixes_scripts(name)]
    if mixed:
        yield (
            "has a name in its metadata that mixes Latin letters with letters that look like them "
            f"({shorten_keys(mixed)}): it may imitate another name"
        )
    unmarked = {
        key: name
        for key, name in names.items()
        if key == OUTPUT_NAME_KEY or (kind == "embedding" and PLACEHOLDER_TOKEN.fullmatch(_unquote(name)))
    }
    markup = [key for key, name in names.items() if key not in unmarked and MARKUP & set(name)]
    if markup:
        yield f"has < or > in a name in its metadata ({shorten_keys(markup)}): it is shown as text, and calls nothing"
    long = [key for key, name in names.items() if len(name) > MAX_NAME_LENGTH]
    if long:
        yield f"has a name of more than {MAX_NAME_LENGTH} characters in its metadata ({shorten_keys(long)}): it is cut"


def _find_excesses(metadata: Metadata) -> Iterator[str]:
    """Yield one clause that names all counts and times that lie beyond the last of their kind."""
    excesses = [
        f"{key} {shorten_text(metadata[key])}, {last_key} {shorten_text(metadata[last_key])}"
        for key, last_key in ORDERED_KEYS.items()
        if _is_above(metadata.get(key, ""), metadata.get(last_key, ""))
    ]
    if excesses:
        yield f"has metadata that contradict each other ({'; '.join(excesses)}): they have no effect"


def _is_above(text: str, last_text: str) -> bool:
    numbers = [float(value) for value in (_unquote(text), _unquote(last_text)) if SINGLE_NUMBER.fullmatch(value)]
    return len(numbers) == 2 and numbers[0] > numbers[1] > 0


def _unquote(text: str) -> str:
    """Return a text without the quotation marks that JSON puts around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _is_date(_: str, text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_hash(key: str, text: str) -> bool:
    return HASH_PATTERNS[key].fullmatch(text) is not None


def _is_count(_: str, text: str) -> bool:
    return COUNT.fullmatch(text) is not None


def _is_number(_: str, text: str) -> bool:
    return NUMBERS.fullmatch(text) is not None


def _is_positive_number(key: str, text: str) -> bool:
    return _is_number(key, text) and NEGATIVE_NUMBER.search(text) is None


def _is_flag(_: str, text: str) -> bool:
    return text in FLAGS


def _is_size(_: str, text: str) -> bool:
    return SIZE.fullmatch(text) is not None
