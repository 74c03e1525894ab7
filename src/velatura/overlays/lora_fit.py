"""Whether a LoRA fits what it is to be laid over, and what is said where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

from velatura.base.families import guess
from velatura.card import Card
from velatura.errors import BadStrength, VelaturaWarning, WrongBase
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.kohya import UNET, kohya_names
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

FEW, LONGEST = 3, 120  # layers that are named of many, and letters of their names


class Layered(Protocol):
    """What has a card, and deltas by the names that kohya's files have for their layers."""

    card: Card

    @property
    def layers(self) -> Mapping[str, Delta]:
        """Its deltas."""
        ...


def outline(deltas: Iterable[Delta]) -> str:
    """What a LoRA is, in a few words: its algorithms, its ranks and how many layers it has."""
    listed = list(deltas)
    algorithms = ", ".join(sorted({each.algorithm for each in listed}))
    ranks = sorted({rank for each in listed if (rank := each.rank) is not None})
    of_rank = "" if not ranks else f" rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    called = "" if algorithms == "lora" and ranks else algorithms  # which its kind says already
    return f"{called}{of_rank}, {len(listed)} layer{'s' * (len(listed) != 1)}".strip()


def refuse_misfit(lora: Layered, target: Target, found: Mapping[str, Delta]) -> None:
    """Refuse a LoRA for another base than the target; warn of layers that the target lacks, where they are few.

    found: what fits by its name, under the name that the target has for it.
    """
    for name, delta in found.items():
        weight = cast("Layer", target.layer(name)).weight
        if not delta.fits(weight):
            said = f"{name} has a weight of {tuple(weight.shape)}, and {_called(lora)} changes another"
            raise WrongBase(f"{said} of {delta.shape}: {_advice(lora)}")
    known, layers = kohya_names(target).keys(), lora.layers
    wanted = [name for name in layers if name.startswith(UNET) or target.towers]
    lacking = [name for name in wanted if name not in known]
    if not found or 2 * len(lacking) > len(wanted):
        raise WrongBase(f"{_called(lora)} has {len(lacking)} layers that {target.name} lacks: {_advice(lora)}")
    if lacking:
        named = ", ".join(each[:LONGEST] for each in lacking[:FEW]) + (", ..." if len(lacking) > FEW else "")
        _warn(f"{_called(lora)} has {len(lacking)} layers that {target.name} lacks ({named}): those do nothing")
    if idle := len(layers) - len(wanted):
        _warn(f"{_called(lora)} has {idle} layers for text encoders, of which {target.name} has none: those do nothing")


def _warn(said: str) -> None:
    warnings.warn(said, VelaturaWarning, stacklevel=6)


def refuse_sides(target: Target, found: Mapping[str, Delta], strength: LiveStrength) -> None:
    """Refuse to act on one half of a guided batch in text towers that are not told which half they read."""
    in_text = any(not name.startswith("unet.") for name in found)
    if in_text and strength.side != "both" and target.words is None and strength.text.number != 0:
        raise BadStrength(
            f"{target.name} does not tell its text encoders which prompts are negative, so nothing acts "
            f"there on={strength.side!r}: give Strength(text=0, unet=...)"
        )


def _called(lora: Layered) -> str:
    return lora.card.name or f"the {'LoRA' if lora.card.kind == 'lora' else lora.card.kind}"


def _advice(lora: Layered) -> str:
    """For which family a LoRA was made, by the contexts that its cross-attention reads."""
    crossing = {each.shape[1] for name, each in lora.layers.items() if name.endswith(("attn2_to_k", "attn2_to_v"))}
    return f"it was made for {lora.card.family or guess(crossing)}, so open a base of that family"
