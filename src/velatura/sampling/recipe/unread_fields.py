"""Fields of infotext that a recipe does not hold: which of them leave the picture as it is, and what others mean."""

import re
from collections.abc import Mapping

from velatura.errors import warn

# Fields of A1111, Forge, SD.Next, Fooocus, Civitai and extensions that do not change the picture, or repeat the prompt
IGNORED_FIELDS = re.compile(
    r"Model|Lora weights|.* hash|.* hashes|Hashes|VAE|User|Version|Script|(Fixed )?. (Type|Values)|Hypernet( strength)?"
    r"|Grid (negative )?prompt|Batch( size| pos|-\d)?|Index|Created Date|Date|Time( taken)?|Comment|Notes?"
    r"|Civitai metadata"
    r"|App|Backend|Pipeline|Operations?|Parser|Extra networks|LoRA networks|Styles?|Template|Negative Template"
    r"|Wildcard (negative )?prompt|Style Selector .*|Raw (negative )?prompt|Metadata scheme|Created by"
    r"|Cache FP16 weight for LoRA"
)
# Values with which a field leaves the picture as it is
NEUTRAL_VALUES = {
    "Mask mode": "Inpaint masked",
    "FP8 weight": "Disable",
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "Hires checkpoint": "Use same checkpoint",
    "Hires schedule type": "Use same scheduler",
    "Hires Module 1": "Use same choices",
    "Diffusion in Low Bits": "Automatic",
    "CFG end": "1.0",
    "CFG rescale": "0.0",
    "Token merging ratio": "0.0",
    "Token merging ratio hr": "0.0",
    "Detailer": "False",
    "HDR": "False",
    "Freeu": "False",
}
# Fields that leave the picture as it is where they repeat another field
REPEATED_FIELDS = {
    "Hires CFG Scale": "CFG scale",
    "Hires CFG scale": "CFG scale",
    "Hires schedule type": "Schedule type",
    "Hires checkpoint": "Model",
}
# Switches that move a picture less than one sees at first, and their value when they are off
SMALL_SWITCHES = {
    "Downcast alphas_cumprod": "False",  # the noise levels are rounded to half precision
    "Pad conds": "False",  # acts only if the prompts have different numbers of 75 tokens
    "Pad conds v0": "False",
}
# What the fields of a kind mean; the first part of a name that is not listed here stands for itself
FIELD_MEANINGS = {
    "ADetailer": "ADetailer repainted faces or other details afterwards",
    "AddNet": "Additional Networks attached LoRAs that are not in the prompt",
    "ControlNet": "ControlNet guided it by another image",
    "Detailer": "the detailer repainted faces or other details afterwards",
    "FreeU": "FreeU changed the UNet's skip connections",
    "freeu": "FreeU changed the UNet's skip connections",
    "Module": "another VAE or text encoder was loaded",
    "Postprocess": "it was changed afterwards",
    "Refiner": "another model made the last steps",
    "RP": "Regional Prompter gave regions their own prompts",
    "Tiled Diffusion": "it was made in tiles",
    "Token merging": "token merging simplified attention",
    "Ultimate SD upscale": "it was upscaled in tiles afterwards",
}
TITLE_HASH = re.compile(r" \[[0-9a-fA-F]+\]$")  # behind the name of a checkpoint
MAX_ENTRIES = 2  # of fields of one kind that a warning shows
MAX_KINDS = 20  # that a warning shows; A1111 with many extensions writes about fifteen
MAX_VALUE_LENGTH = 80


def warn_of_unread_fields(fields: Mapping[str, str], others: Mapping[str, str]) -> None:
    """Warn once of all fields that would change the picture and are not supported.

    Args:
        fields: The fields that no recipe holds.
        others: All fields, some of which these may repeat.
    """
    unread = {key: value for key, value in fields.items() if not _is_harmless(key, value, others)}
    small = {key: unread.pop(key) for key in SMALL_SWITCHES if key in unread}
    if small:
        shown = ", ".join(f"{key}: {value[:MAX_VALUE_LENGTH]}" for key, value in small.items())
        warn(f"not supported: {shown}; details of the picture may differ")
    if not unread:
        return
    kinds: dict[str, list[str]] = {}
    for key, value in unread.items():
        kinds.setdefault(_kind_of(key), []).append(f"{key}: {value[:MAX_VALUE_LENGTH]}")
    described = [_shorten_entries(entries) for entries in kinds.values()]
    shown = ", ".join(described[:MAX_KINDS])
    if len(described) > MAX_KINDS:
        shown += f" and {len(described) - MAX_KINDS} others"
    meanings = "; ".join(dict.fromkeys(FIELD_MEANINGS[kind] for kind in kinds if kind in FIELD_MEANINGS))
    warn(f"not supported: {shown}; the picture will be different" + (f" ({meanings})" if meanings else ""))


def _is_harmless(key: str, value: str, others: Mapping[str, str]) -> bool:
    repeated = others.get(REPEATED_FIELDS.get(key, ""))
    if repeated is not None and _is_same(TITLE_HASH.sub("", value), repeated):
        return True
    neutral = NEUTRAL_VALUES.get(key, SMALL_SWITCHES.get(key))
    return IGNORED_FIELDS.fullmatch(key) is not None or (neutral is not None and _is_same(value, neutral))


def _is_same(value: str, neutral: str) -> bool:
    try:
        return float(value) == float(neutral)
    except ValueError:
        return value.strip().lower() == neutral.lower()


def _kind_of(key: str) -> str:
    return next((kind for kind in FIELD_MEANINGS if re.match(rf"{kind}(?![a-z])", key)), key)


def _shorten_entries(entries: list[str]) -> str:
    others = len(entries) - MAX_ENTRIES
    return ", ".join(entries[:MAX_ENTRIES]) + (f" and {others} more of the kind" if others > 0 else "")
