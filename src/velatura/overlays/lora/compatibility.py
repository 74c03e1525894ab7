"""Whether a LoRA fits what it is to be laid over, and what is said where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

from velatura.base.families import guess_family_name
from velatura.card import Card
from velatura.errors import BadStrength, VelaturaWarning, WrongBase
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.lora.kohya_names import UNET_PREFIX, kohya_names
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

MAX_NAMES_SHOWN, MAX_NAME_LENGTH = 3, 120  # layers that are named of many, and letters of their names


class HasDeltas(Protocol):
    """What has a card, and deltas by the names that kohya's files have for their layers."""

    card: Card

    @property
    def layers(self) -> Mapping[str, Delta]:
        """Its deltas."""
        ...


def outline(deltas: Iterable[Delta]) -> str:
    """What a LoRA is, in a few words: its algorithms, its ranks and how many layers it has."""
    all_deltas = list(deltas)
    algorithms = ", ".join(sorted({delta.algorithm for delta in all_deltas}))
    ranks = sorted({rank for delta in all_deltas if (rank := delta.rank) is not None})
    rank_text = "" if not ranks else f" rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    algorithms_text = "" if algorithms == "lora" and ranks else algorithms  # which its kind says already
    return f"{algorithms_text}{rank_text}, {len(all_deltas)} layer{'s' * (len(all_deltas) != 1)}".strip()


def check_compatible(lora: HasDeltas, target: Target, deltas: Mapping[str, Delta]) -> None:
    """Refuse a LoRA for another base than the target; warn of layers that the target lacks, where they are few.

    found: what fits by its name, under the name that the target has for it.
    """
    for name, delta in deltas.items():
        weight = cast("Layer", target.layer(name)).weight
        if not delta.is_compatible(weight):
            message = f"{name} has a weight of {tuple(weight.shape)}, and {_display_name(lora)} changes another"
            raise WrongBase(f"{message} of {delta.weight_shape}: {_advice(lora)}")
    known_names, layers = kohya_names(target).keys(), lora.layers
    expected = [name for name in layers if name.startswith(UNET_PREFIX) or target.text_encoders]
    missing = [name for name in expected if name not in known_names]
    if not deltas or 2 * len(missing) > len(expected):
        raise WrongBase(f"{_display_name(lora)} has {len(missing)} layers that {target.name} lacks: {_advice(lora)}")
    if missing:
        examples = ", ".join(name[:MAX_NAME_LENGTH] for name in missing[:MAX_NAMES_SHOWN]) + (
            ", ..." if len(missing) > MAX_NAMES_SHOWN else ""
        )
        _warn(
            f"{_display_name(lora)} has {len(missing)} layers that {target.name} lacks ({examples}): those do nothing"
        )
    if unused_count := len(layers) - len(expected):
        _warn(
            f"{_display_name(lora)} has {unused_count} layers for text encoders, of which {target.name} has none: those do nothing"
        )


def _warn(message: str) -> None:
    warnings.warn(message, VelaturaWarning, stacklevel=6)


def check_side(target: Target, deltas: Mapping[str, Delta], strength: LiveStrength) -> None:
    """Refuse to act on one half of a guided batch in text towers that are not told which half they read."""
    has_text_deltas = any(not name.startswith("unet.") for name in deltas)
    if has_text_deltas and strength.side != "both" and target.text is None and strength.text.number != 0:
        raise BadStrength(
            f"{target.name} does not tell its text encoders which prompts are negative, so nothing acts "
            f"there on={strength.side!r}: give Strength(text=0, unet=...)"
        )


def _display_name(lora: HasDeltas) -> str:
    return lora.card.name or f"the {'LoRA' if lora.card.kind == 'lora' else lora.card.kind}"


def _advice(lora: HasDeltas) -> str:
    """For which family a LoRA was made, by the contexts that its cross-attention reads."""
    context_widths = {
        delta.weight_shape[1] for name, delta in lora.layers.items() if name.endswith(("attn2_to_k", "attn2_to_v"))
    }
    return f"it was made for {lora.card.family or guess_family_name(context_widths)}, so open a base of that family"
