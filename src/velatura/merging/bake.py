"""Overlays into the weights of a copy of a base, so that they cost nothing more and any program can use them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.merging.chain import Laid, chains, laid_on, refuse_laid_over
from velatura.merging.fold import LayerChange, fits, mapped_layers, relative
from velatura.merging.record import OnStep, Record, record
from velatura.merging.report import BakeReport, WidthFit
from velatura.overlays.layers import attention_layers
from velatura.overlays.overlay import Overlay

STEPS = 10


@torch.no_grad()
def bake(
    base: Base,
    overlays: Iterable[tuple[Overlay, float]],
    *,
    prompts: Sequence[str] | None = None,
    steps: int = STEPS,
    on_step: OnStep | None = None,
) -> tuple[Base, BakeReport]:
    """Put hypernetworks into the weights of a copy of a base; the base itself stays as it is.

    Where all activations are linear the copy is the same but for rounding. Elsewhere an affine map is fitted to what
    the networks make of the contexts that the base reads while it paints the prompts, of which a fourth is held out;
    the report tells what is lost on those. prompts: at least four, built-in ones by default.
    """
    laid = laid_on(base, list(overlays))
    refuse_laid_over(base)
    by_width = chains(base, laid)
    to_fit = {width: chain for width, chain in by_width.items() if not chain.is_exact}
    heard = record(base, laid, to_fit, prompts=prompts, steps=steps, on_step=on_step)
    mapped = mapped_layers(base, by_width, heard, shifted=True)
    changes = [LayerChange.of(name, layer, source, *maps) for name, layer, source, maps in mapped]
    name = " + ".join([base.name, *(f"{overlay.card.name or overlay.kind}:{strength:g}" for overlay, strength in laid)])
    baked = changed_copy(base, name, changes)
    return baked, report(base, baked, laid=laid, widths=fits(by_width, changes, heard), heard=heard, steps=steps)


def changed_copy(base: Base, name: str, changes: Iterable[LayerChange]) -> Base:
    """A base of its own whose attention layers are changed, that came from no file."""
    untyped: Any = type(base.unet)
    with torch.device("meta"):
        unet = untyped.from_config(base.unet.config)
    unet.load_state_dict({key: each.clone() for key, each in base.unet.state_dict().items()}, assign=True)
    layers = dict(attention_layers(unet))
    for change in changes:
        change.write(layers[change.name])
    return Base(name, base.family, unet=unet, vae=deepcopy(base.vae), text=base.text.copied(), schedule=base.schedule)


@torch.no_grad()
def report(
    base: Base,
    made: Base,
    *,
    laid: Sequence[Laid],
    widths: Sequence[WidthFit],
    heard: Record,
    steps: int,
    rank: int | None = None,
) -> BakeReport:
    """Compare what a base with weights of its own predicts with what the overlays made the base predict."""
    lost = changed = whole = 0.0
    for step in heard.steps:
        wanted, read = step.prediction.double(), (step.latents, step.timestep, step.said)
        lost += _energy(made.predict(*read) - wanted)
        changed += _energy(base.predict(*read) - wanted)
        whole += _energy(wanted)
    return BakeReport(
        base=base.name,
        base_hash=base.hash,
        strengths=tuple((overlay.card.name or overlay.kind, strength) for overlay, strength in laid),
        rank=rank,
        widths=tuple(widths),
        output=relative(lost, whole),
        output_missed=relative(lost, changed),
        fitted_prompts=heard.prompts["fit"] + heard.prompts["choose"],
        held_out_prompts=heard.prompts["held out"],
        steps=steps,
    )


def _energy(difference: Tensor) -> float:
    return float(difference.double().square().sum())
