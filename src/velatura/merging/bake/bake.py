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
from velatura.merging.bake.calibration import Calibration, OnCalibrationStep, calibrate, cfg_conditioning
from velatura.merging.bake.fold import LayerChange, fit_layers, measure_fits, relative_error
from velatura.merging.bake.hypernet_maps import check_no_overlays_attached, hypernet_maps, prepare_overlays
from velatura.merging.bake.report import BakeReport, WidthFit
from velatura.merging.bake.weight_deltas import add_deltas, scalar_strength
from velatura.overlays.attention_layers import attention_layers
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength

CALIBRATION_STEPS = 10


@torch.no_grad()
def bake(
    base: Base,
    overlays: Iterable[tuple[Overlay, float | Strength]],
    *,
    prompts: Sequence[str] | None = None,
    steps: int = CALIBRATION_STEPS,
    on_step: OnCalibrationStep | None = None,
) -> tuple[Base, BakeReport]:
    """Put overlays into the weights of a copy of a base; the base itself stays as it is.

    LoRAs and all that grew out of them, and differences, are added, whatever their place in the order; hypernetworks
    act in their order on what those layers read. Where all activations are linear the copy is the same but for
    rounding. Elsewhere an affine map is fitted to what the networks make of the contexts that the base reads while it
    paints the prompts, of which a fourth is held out; the report tells what is lost on those. prompts: at least four,
    built-in ones by default. What is no change of weights, such as an embedding, is refused.
    """
    overlay_strengths = list(overlays)
    inputs = prepare_overlays(base, overlay_strengths)
    check_no_overlays_attached(base)
    _warn_of_bundled_embeddings([overlay for overlay, _ in overlay_strengths])
    baked = copy_base(
        base, " + ".join([base.name, *(f"{name}:{strength:g}" for name, strength in _named_strengths(inputs.overlays))])
    )
    add_deltas(base, baked, inputs.weight_deltas)
    added = [overlay_deltas.report_row() for overlay_deltas in inputs.weight_deltas]
    maps_by_width = hypernet_maps(baked, inputs.hypernetworks)
    maps_to_fit = {width: hypernet_map for width, hypernet_map in maps_by_width.items() if not hypernet_map.is_affine}
    calibration = calibrate(
        base, inputs.overlays, maps_to_fit, prompts=prompts, steps=steps, on_step=on_step, text_base=baked
    )
    layer_fits = fit_layers(baked, maps_by_width, calibration, fit_intercept=True)
    changes = [LayerChange.from_maps(name, layer, source, *maps) for name, layer, source, maps in layer_fits]
    widths = measure_fits(maps_by_width, changes, calibration)
    _write_changes(baked, changes)
    bake_report = measure_bake(
        base, baked, overlays=inputs.overlays, widths=widths, calibration=calibration, steps=steps
    )
    return baked, bake_report.model_copy(update={"added": tuple(added)})


def _warn_of_bundled_embeddings(overlays: Iterable[Overlay]) -> None:
    """Warn of embeddings that come with LoRAs, which a checkpoint has no place for."""
    for lora in (overlay for overlay in overlays if isinstance(overlay, Lora) and overlay.bundled_embeddings):
        message = f"{lora.card.name or 'a LoRA'} brings embeddings ({', '.join(lora.bundled_embeddings)[:100]})"
        warnings.warn(f"{message}, which no checkpoint holds: keep its file for them", VelaturaWarning, stacklevel=3)


def copy_with_changes(base: Base, name: str, changes: Iterable[LayerChange]) -> Base:
    """A base of its own whose attention layers are changed, that came from no file."""
    base_copy = copy_base(base, name)
    _write_changes(base_copy, changes)
    return base_copy


def copy_base(base: Base, name: str) -> Base:
    """A base with weights of its own, and without anything that lies over the other."""
    unet_class: Any = type(base.unet)
    with torch.device("meta"):
        unet = unet_class.from_config(base.unet.config)
    unet.load_state_dict({key: tensor.clone() for key, tensor in base.unet.state_dict().items()}, assign=True)
    return Base(
        name, base.family, unet=unet, vae=deepcopy(base.vae), text=base.text.deep_copy(), schedule=base.schedule
    )


def _write_changes(base_copy: Base, changes: Iterable[LayerChange]) -> None:
    layers = dict(attention_layers(base_copy.unet))
    for change in changes:
        change.add_to(layers[change.name])


@torch.no_grad()
def measure_bake(
    base: Base,
    baked: Base,
    *,
    overlays: Sequence[tuple[Overlay, float | Strength]],
    widths: Sequence[WidthFit],
    calibration: Calibration,
    steps: int,
    rank: int | None = None,
) -> BakeReport:
    """Compare what a base with weights of its own predicts with what the overlays made the base predict."""
    squared_error = squared_change = squared_output = 0.0
    conds: dict[tuple[tuple[str, ...], str], Conditioning] = {}
    for step in calibration.held_out_steps:
        target = step.prediction.double()
        for prompts, model in ((step.prompts, baked), (step.prompts, base)):
            if (prompts, model.name) not in conds:
                conds[prompts, model.name] = cfg_conditioning(model, prompts)
        squared_error += _squared_norm(
            baked.predict(step.latents, step.timestep, conds[step.prompts, baked.name]) - target
        )
        squared_change += _squared_norm(
            base.predict(step.latents, step.timestep, conds[step.prompts, base.name]) - target
        )
        squared_output += _squared_norm(target)
    return BakeReport(
        base=base.name,
        base_hash=base.hash,
        strengths=tuple(_named_strengths(overlays)),
        rank=rank,
        widths=tuple(widths),
        output=relative_error(squared_error, squared_output),
        output_missed=relative_error(squared_error, squared_change),
        fitted_prompts=calibration.prompt_counts["fit"] + calibration.prompt_counts["choose"],
        held_out_prompts=calibration.prompt_counts["held out"],
        steps=steps,
    )


def _named_strengths(overlays: Iterable[tuple[Overlay, float | Strength]]) -> Iterator[tuple[str, float]]:
    for overlay, strength in overlays:
        unet_strength = scalar_strength(strength.unet if isinstance(strength, Strength) else strength)
        yield overlay.card.name or overlay.kind, unet_strength


def _squared_norm(difference: Tensor) -> float:
    return float(difference.double().square().sum())
