"""Warnings of layers that lack what the other layers of a LoRA have: they change their weights by another rule."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from velatura.errors import warn
from velatura.overlays.deltas.delta import Delta

# Tensors that all layers of an algorithm have or none; alpha of a plain LoRA has a warning of its own
SHARED_SUFFIXES = (
    "alpha",
    "dora_scale",
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
MAX_SHOWN_LAYER_LENGTH = 120  # characters of a layer's name in a message


def warn_of_uneven_layers(file_name: str, layers: Mapping[str, Delta]) -> None:
    """Warn of layers that lack a tensor that others have, and of tensors that are zero in some layers only.

    Args:
        file_name: Name of the file, for messages.
        layers: The changes by kohya's names of their layers.
    """
    for problem in (*_find_missing(layers), *_find_zeros(layers)):
        warn(f"{file_name} {problem}: check the pictures that it makes")


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
                yield f"has no {suffix} for {_describe(missing, candidates)}, which then act by another rule"


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
        if len(zeros) < len(names_by_suffix[suffix]):
            yield f"has only zeros in {suffix} of {_describe(zeros, names_by_suffix[suffix])}, as before training"


def _can_have(suffix: str, layer: str, delta: Delta) -> bool:
    """Return False for a bias where a layer has none, and for the alpha of a LoKr that has no rank."""
    if suffix in BIAS_SUFFIXES:
        return not layer.endswith(LAYERS_WITHOUT_BIAS)
    return suffix != "alpha" or delta.algorithm != "lokr" or delta.rank is not None


def _describe(layers: Collection[str], all_layers: Collection[str]) -> str:
    return f"{len(layers)} of {len(all_layers)} layers ({min(layers)[:MAX_SHOWN_LAYER_LENGTH]})"
