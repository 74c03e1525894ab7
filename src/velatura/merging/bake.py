"""Overlays into the weights of a copy of a base, so that they cost nothing more and any program can use them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.errors import VelaturaWarning
from velatura.merging.chain import chains, overlaid, refuse_laid_over
from velatura.merging.fold import LayerChange, fits, mapped_layers, relative
from velatura.merging.record import OnStep, Record, record, said_of
from velatura.merging.report import BakeReport, WidthFit
from velatura.merging.summed import add_deltas, number
from velatura.overlays.layers import attention_layers
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength

STEPS = 10


@torch.no_grad()
def bake(
    base: Base,
    overlays: Iterable[tuple[Overlay, float | Strength]],
    *,
    prompts: Sequence[str] | None = None,
    steps: int = STEPS,
    on_step: OnStep | None = None,
) -> tuple[Base, BakeReport]:
    """Put overlays into the weights of a copy of a base; the base itself stays as it is.

    LoRAs and all that grew out of them, and differences, are added, whatever their place in the order; hypernetworks
    act in their order on what those layers read. Where all activations are linear the copy is the same but for
    rounding. Elsewhere an affine map is fitted to what the networks make of the contexts that the base reads while it
    paints the prompts, of which a fourth is held out; the report tells what is lost on those. prompts: at least four,
    built-in ones by default. What is no change of weights, such as an embedding, is refused.
    """
    given = list(overlays)
    laid = overlaid(base, given)
    refuse_laid_over(base)
    _warn_of_words([overlay for overlay, _ in given])
    baked = copied(base, " + ".join([base.name, *(f"{name}:{strength:g}" for name, strength in _strengths(laid.all))]))
    add_deltas(base, baked, laid.deltas)
    added = [each.row() for each in laid.deltas]
    by_width = chains(baked, laid.networks)
    to_fit = {width: chain for width, chain in by_width.items() if not chain.is_exact}
    heard = record(base, laid.all, to_fit, prompts=prompts, steps=steps, on_step=on_step, speaker=baked)
    mapped = mapped_layers(baked, by_width, heard, shifted=True)
    changes = [LayerChange.of(name, layer, source, *maps) for name, layer, source, maps in mapped]
    widths = fits(by_width, changes, heard)
    _write(baked, changes)
    found = report(base, baked, laid=laid.all, widths=widths, heard=heard, steps=steps)
    return baked, found.model_copy(update={"added": tuple(added)})


def _warn_of_words(overlays: Iterable[Overlay]) -> None:
    """Warn of embeddings that come with LoRAs, which a checkpoint has no place for."""
    for lora in (each for each in overlays if isinstance(each, Lora) and each.bundled):
        said = f"{lora.card.name or 'a LoRA'} brings embeddings ({', '.join(lora.bundled)[:100]})"
        warnings.warn(f"{said}, which no checkpoint holds: keep its file for them", VelaturaWarning, stacklevel=3)


def changed_copy(base: Base, name: str, changes: Iterable[LayerChange]) -> Base:
    """A base of its own whose attention layers are changed, that came from no file."""
    made = copied(base, name)
    _write(made, changes)
    return made


def copied(base: Base, name: str) -> Base:
    """A base with weights of its own, and without anything that lies over the other."""
    untyped: Any = type(base.unet)
    with torch.device("meta"):
        unet = untyped.from_config(base.unet.config)
    unet.load_state_dict({key: each.clone() for key, each in base.unet.state_dict().items()}, assign=True)
    return Base(name, base.family, unet=unet, vae=deepcopy(base.vae), text=base.text.copied(), schedule=base.schedule)


def _write(made: Base, changes: Iterable[LayerChange]) -> None:
    layers = dict(attention_layers(made.unet))
    for change in changes:
        change.write(layers[change.name])


@torch.no_grad()
def report(
    base: Base,
    made: Base,
    *,
    laid: Sequence[tuple[Overlay, float | Strength]],
    widths: Sequence[WidthFit],
    heard: Record,
    steps: int,
    rank: int | None = None,
) -> BakeReport:
    """Compare what a base with weights of its own predicts with what the overlays made the base predict."""
    lost = changed = whole = 0.0
    said: dict[tuple[tuple[str, ...], str], Conditioning] = {}
    for step in heard.steps:
        wanted = step.prediction.double()
        for prompts, model in ((step.prompts, made), (step.prompts, base)):
            if (prompts, model.name) not in said:
                said[prompts, model.name] = said_of(model, prompts)
        lost += _energy(made.predict(step.latents, step.timestep, said[step.prompts, made.name]) - wanted)
        changed += _energy(base.predict(step.latents, step.timestep, said[step.prompts, base.name]) - wanted)
        whole += _energy(wanted)
    return BakeReport(
        base=base.name,
        base_hash=base.hash,
        strengths=tuple(_strengths(laid)),
        rank=rank,
        widths=tuple(widths),
        output=relative(lost, whole),
        output_missed=relative(lost, changed),
        fitted_prompts=heard.prompts["fit"] + heard.prompts["choose"],
        held_out_prompts=heard.prompts["held out"],
        steps=steps,
    )


def _strengths(laid: Iterable[tuple[Overlay, float | Strength]]) -> Iterator[tuple[str, float]]:
    for overlay, strength in laid:
        one = number(strength.unet if isinstance(strength, Strength) else strength)
        yield overlay.card.name or overlay.kind, one


def _energy(difference: Tensor) -> float:
    return float(difference.double().square().sum())
