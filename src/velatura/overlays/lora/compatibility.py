"""Compatibility of LoRAs and differences with a base, and the errors and warnings about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, cast

from velatura.base.families import advise_base, check_family_name
from velatura.base.image_condition import CONDITION_BY_CHANNELS
from velatura.card import Card
from velatura.errors import BadStrength, WrongBase, choose_number, quantity, warn
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.lora.kohya_names import UNET_PREFIX, names_in_files
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

FIRST_CONVOLUTION_IN_FILES = "lora_unet_conv_in"
MAX_NAMES_SHOWN, MAX_NAME_LENGTH = 3, 120  # layers that a message names, and characters of their names


class HasDeltas(Protocol):
    """Overlay with deltas by kohya's names of their layers."""

    card: Card

    @property
    def display_name(self) -> str:
        """Return the kind and the name, for messages."""
        ...

    @property
    def layers(self) -> Mapping[str, Delta]:
        """Return its deltas."""
        ...


def outline(deltas: Iterable[Delta]) -> str:
    """Describe a LoRA in a few words: algorithms, ranks and number of layers."""
    all_deltas = list(deltas)
    algorithms = ", ".join(sorted({delta.algorithm for delta in all_deltas}))
    all_ranks = (delta.rank for delta in all_deltas)
    ranks = sorted({rank for rank in all_ranks if rank is not None})
    if not ranks:
        rank_text = ""
    elif len(ranks) == 1:
        rank_text = f" rank {ranks[0]}"
    else:
        rank_text = f" rank {ranks[0]} to {ranks[-1]}"
    algorithms_text = "" if algorithms == "lora" and ranks else algorithms  # "lora" is the kind already
    return f"{algorithms_text}{rank_text}, {len(all_deltas)} layer{'s' * (len(all_deltas) != 1)}".strip()


def warn_of_timesteps(card: Card, deltas: Iterable[Delta], result: str) -> None:
    """Warn once that changes which depend on the timestep become weights, which do not.

    Args:
        card: The overlay's.
        deltas: Its deltas.
        result: What becomes of it, in the plural: "baked weights".
    """
    if any(delta.uses_timesteps for delta in deltas):
        warn(
            f"{card} is a T-LoRA, which uses more ranks where there is less noise; {result} have all ranks at all "
            "timesteps, so pictures will differ: attach it instead, to keep the difference"
        )


def check_compatible(lora: HasDeltas, target: Target, deltas: Mapping[str, Delta]) -> None:
    """Refuse a LoRA that was made for another base; warn if the target lacks a few of its layers.

    Args:
        lora: The LoRA.
        target: The model to which it is attached.
        deltas: Deltas whose layers the target has, by the target's names.

    Raises:
        WrongBase: If a weight has another shape, or the target lacks more than half of the layers.
    """
    for name, delta in deltas.items():
        weight = cast("Layer", target.layer(name)).weight
        if not delta.is_compatible(weight):
            raise WrongBase(
                f"{name} has a weight of {tuple(weight.shape)}, and {lora.display_name} changes a weight of "
                f"{delta.weight_shape}: {_advice(lora)}"
            )
    known_names, layers = names_in_files(target).keys(), lora.layers
    expected = [name for name in layers if name.startswith(UNET_PREFIX) or target.text_encoders]
    missing = [name for name in expected if name not in known_names]
    if not deltas or 2 * len(missing) > len(expected):
        raise WrongBase(
            f"{lora.display_name} has {quantity(len(missing), 'layer')} that {target.name} lacks: {_advice(lora)}"
        )
    if missing:
        examples = [name[:MAX_NAME_LENGTH] for name in missing[:MAX_NAMES_SHOWN]]
        ellipsis = ["..."] if len(missing) > MAX_NAMES_SHOWN else []
        warn(
            f"{lora.display_name} has {quantity(len(missing), 'layer')} that {target.name} lacks "
            f"({', '.join(examples + ellipsis)}): "
            f"{choose_number(len(missing), 'it has', 'they have')} no effect here"
        )
    if unused_count := len(layers) - len(expected):
        warn(
            f"{lora.display_name} has {quantity(unused_count, 'layer')} for text encoders, of which {target.name} "
            f"has none: {choose_number(unused_count, 'it has', 'they have')} no effect here"
        )


def check_side(target: Target, deltas: Mapping[str, Delta], strength: LiveStrength) -> None:
    """Refuse on="prompt" and on="negative" in text encoders of other programs, which do not tell the side of a text."""
    has_text_deltas = any(not name.startswith("unet.") for name in deltas)
    if has_text_deltas and strength.side != "both" and target.text is None and strength.text.number != 0:
        raise BadStrength(
            f"{target.name} does not tell its text encoders which prompts are negative, so an overlay cannot act "
            f"on={strength.side!r} there: give Strength(text=0, unet=...)"
        )


def _advice(lora: HasDeltas) -> str:
    """Name the family for which a LoRA was made; if the card does not, by the width of its cross-attention."""
    context_widths = {
        delta.weight_shape[1] for name, delta in lora.layers.items() if name.endswith(("attn2_to_k", "attn2_to_v"))
    }
    purpose = "".join(
        describe_input_channels(delta) for name, delta in lora.layers.items() if name == FIRST_CONVOLUTION_IN_FILES
    )
    family = check_family_name(lora.card.family, context_widths)
    if not purpose:
        return advise_base(family)
    return f"it was made for {family or 'a model'}{purpose}, so open a base of that kind"


def describe_input_channels(delta: Delta) -> str:
    """Return " (inpainting)" or " (pix2pix)" for a change of the first convolution of such a UNet, else ""."""
    kind = CONDITION_BY_CHANNELS.get(delta.weight_shape[1])
    return f" ({kind})" if kind else ""
