"""Warnings of layers that lack what the other layers of a LoRA have, or are empty where the others are trained."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from velatura.errors import warn
from velatura.overlays.deltas.delta import Delta

# Tensors that all layers of an algorithm have or none; alpha of a plain LoRA has a warning of its own
MAGNITUDE_SUFFIX = "dora_scale"  # one of zeros makes the whole layer zero
SHARED_SUFFIXES = (
    "alpha",
    MAGNITUDE_SUFFIX,
    "rescale",
    "diff_b",
    "b_norm",
    "oft_R.scaled_oft",
    "initial_norm",
    "dora_multiplier",
)
BIAS_SUFFIXES = {"diff_b", "b_norm"}
LAYERS_WITHOUT_BIAS = ("_to_q", "_to_k", "_to_v")  # of a Stable Diffusion's UNet
SAME_ALGORITHM = {"dora": "lora", "lora-bias": "lora"}  # they differ in such a tensor only
SETTING_SUFFIXES = {"alpha", "on_input", "on_bias", "oft_terms", "oft_R.scaled_oft"}
TEXT_LAYER = re.compile(r"(lora_te[12]?_text_model_encoder_layers_)([0-9]+)_")
# Layers of zeros below that share are usual: of block weights, and of LoRAs whose smallest changes were left out
MIN_ZERO_SHARE = 0.5
MAX_SHOWN_LAYER_LENGTH = 120  # characters of a layer's name in a message


def warn_of_uneven_layers(file_name: str, layers: Mapping[str, Delta]) -> None:
    """Warn of layers that lack a tensor that others have, and of tensors that are zero in some layers only.

    Args:
        file_name: Name of the file, for messages.
        layers: The changes by kohya's names of their layers.
    """
    for problem in (*_find_missing(layers), *_find_zeros(layers)):
        warn(f"{file_name} {problem}")


def _find_missing(layers: Mapping[str, Delta]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name, delta in layers.items():
        groups.setdefault(SAME_ALGORITHM.get(delta.algorithm, delta.algorithm), []).append(name)
    for algorithm, names in groups.items():
        for suffix in SHARED_SUFFIXES:
            if suffix == "alpha" and algorithm == "lora":
                continue
            candidates = [name for name in names if _can_have(suffix, name, layers[name])]
            missing = [name for name in candidates if layers[name].raw_tensor(suffix) is None]
            if 0 < len(missing) < len(candidates):
                yield (
                    f"has no {suffix} for {_describe(missing, candidates)}, so these are not changed in the same way "
                    "as the others: check the pictures that it makes"
                )


def _find_zeros(layers: Mapping[str, Delta]) -> Iterator[str]:
    names_by_suffix: dict[str, list[str]] = {}
    zeros_by_suffix: dict[str, list[str]] = {}
    for name, delta in layers.items():
        for suffix, tensor in delta.state_dict().items():
            if suffix not in SETTING_SUFFIXES:
                names_by_suffix.setdefault(suffix, []).append(name)
                if not bool(tensor.any()):
                    zeros_by_suffix.setdefault(suffix, []).append(name)
    for suffix, zeros in zeros_by_suffix.items():
        names = names_by_suffix[suffix]
        if suffix in SHARED_SUFFIXES and suffix not in BIAS_SUFFIXES:  # a scale of 0 is never learned
            if len(zeros) < len(names) or suffix == MAGNITUDE_SUFFIX:
                described = _describe(zeros, names)
                yield f"has only zeros in {suffix} of {described}: check the pictures that it makes"
            continue
        skipped = _skipped_text_layers(names, zeros)
        empty = [name for name in zeros if name not in skipped]
        share = len(empty) / (len(names) - len(skipped) or 1)
        if MIN_ZERO_SHARE <= share < 1:
            yield f"has only zeros in {suffix} of {_describe(empty, names)}: these layers have no effect"


def _skipped_text_layers(names: Collection[str], zeros: Collection[str]) -> set[str]:
    """Return the zero layers at the end of each text encoder: with clip skip, training does not reach them."""
    trained = set(names) - set(zeros)
    last_trained: dict[str, int] = {}
    for match in filter(None, map(TEXT_LAYER.match, trained)):
        last_trained[match[1]] = max(int(match[2]), last_trained.get(match[1], -1))
    matches = {name: match for name in zeros if (match := TEXT_LAYER.match(name))}
    return {name for name, match in matches.items() if int(match[2]) > last_trained.get(match[1], -1)}


def _can_have(suffix: str, layer: str, delta: Delta) -> bool:
    """Return False for a bias where a layer has none, and for the alpha of a LoKr that has no rank."""
    if suffix in BIAS_SUFFIXES:
        return not layer.endswith(LAYERS_WITHOUT_BIAS)
    return suffix != "alpha" or delta.algorithm != "lokr" or delta.rank is not None


def _describe(layers: Collection[str], all_layers: Collection[str]) -> str:
    return f"{len(layers)} of {len(all_layers)} layers ({min(layers)[:MAX_SHOWN_LAYER_LENGTH]})"
