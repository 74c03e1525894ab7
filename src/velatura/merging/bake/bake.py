"""Bake overlays into the weights of a copy of a base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from os import PathLike
from typing import Any

import torch

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.pipeline import freeze_models
from velatura.errors import warn
from velatura.formats.open import open_base, open_overlay
from velatura.merging.bake.calibration import (
    CALIBRATION_STEPS,
    Calibration,
    OnCalibrationStep,
    calibrate,
    cfg_conditioning,
)
from velatura.merging.bake.fold import LayerChange, fit_layers, measure_fits
from velatura.merging.bake.hypernet_maps import hypernet_maps
from velatura.merging.bake.inputs import check_no_overlays_attached, prepare_overlays
from velatura.merging.bake.report import BakedLayers, BakeReport, WidthFit
from velatura.merging.bake.weight_deltas import add_deltas, unet_strength
from velatura.merging.checkpoints.weights import ModelSource
from velatura.merging.measures import relative_error, squared_norm
from velatura.overlays.attention_layers import attention_layers
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength
from velatura.tensors import StrPath


@torch.no_grad()
@freeze_models
@check_arguments()
def bake(
    base: ModelSource,
    overlays: Iterable[tuple[Overlay | StrPath, float | Strength]],
    *,
    prompts: Sequence[str] | None = None,
    steps: int = CALIBRATION_STEPS,
    on_step: OnCalibrationStep | None = None,
) -> tuple[Base, BakeReport]:
    """Bake overlays into the weights of a copy of a base; the base itself stays unchanged.

    LoRAs, LyCORIS and differences are added, whatever their place in the order. Hypernetworks act in their order on
    the contexts that those layers read. If all their activations are linear, the copy differs by rounding only.
    Otherwise an affine map is fitted to their effect on the contexts that the base reads while it denoises the
    prompts. A quarter of the prompts is held out, and the report tells the errors on those.

    Args:
        base: The base, with nothing attached to it, or what `open_base` opens: the path of a checkpoint or of a folder.
        overlays: Overlays, or their paths, with their strengths, for the whole base or for text encoders and UNet.
        prompts: At least four calibration prompts; built-in ones by default.
        steps: Steps of each calibration picture.
        on_step: Called after each step with how many are done, and how many there are.

    Returns:
        The baked copy, and a report of its errors.

    Raises:
        BadFile: A path is not that of a base or of an overlay.
        BadOverlay: An overlay, such as an embedding, is not a change of weights.
        WrongBase: An overlay does not fit the base.
        NoEffect: No overlay has a strength other than 0.
        BadRecipe: There are fewer than four prompts.
        UnsupportedBase: Overlays are attached to the base, or it lacks a bias that an overlay changes.
    """
    if not isinstance(base, Base):
        base = open_base(base)  # a path, or a pipeline
    overlay_strengths = [
        (open_overlay(overlay) if isinstance(overlay, str | PathLike) else overlay, strength)
        for overlay, strength in overlays
    ]
    inputs = prepare_overlays(base, overlay_strengths)
    check_no_overlays_attached(base)
    _warn_of_bundled_embeddings([overlay for overlay, _ in overlay_strengths])
    strengths = [f"{name}:{strength:g}" for name, strength in _named_strengths(inputs.overlays)]
    baked = copy_base(base, " + ".join([base.name, *strengths]))
    add_deltas(base, baked, inputs.weight_deltas)
    maps_by_width = hypernet_maps(baked, inputs.hypernetworks)
    maps_to_fit = {width: hypernet_map for width, hypernet_map in maps_by_width.items() if not hypernet_map.is_affine}
    calibration = calibrate(
        base, inputs.overlays, maps_to_fit, prompts=prompts, steps=steps, on_step=on_step, text_base=baked
    )
    fits = fit_layers(baked, maps_by_width, calibration, fit_intercept=True)
    changes = [LayerChange.from_fit(fit) for fit in fits]
    widths = measure_fits(maps_by_width, changes, calibration)
    _write_changes(baked, changes)
    report = measure_bake(
        base,
        baked,
        overlays=inputs.overlays,
        added=[deltas.report_row() for deltas in inputs.weight_deltas],
        widths=widths,
        calibration=calibration,
        steps=steps,
    )
    return baked, report


def _warn_of_bundled_embeddings(overlays: Iterable[Overlay]) -> None:
    """Warn of embeddings that are bundled with LoRAs, as a checkpoint cannot store them."""
    for overlay in overlays:
        if isinstance(overlay, Lora) and overlay.bundled_embeddings:
            names = ", ".join(overlay.bundled_embeddings)[:100]
            message = f"{overlay.card.name or 'a LoRA'} brings embeddings ({names})"
            warn(f"{message}, which a checkpoint cannot store: keep its file for them")


def copy_with_changes(base: Base, name: str, changes: Iterable[LayerChange]) -> Base:
    """Return a copy of a base whose attention layers are changed."""
    base_copy = copy_base(base, name)
    _write_changes(base_copy, changes)
    return base_copy


def copy_base(base: Base, name: str) -> Base:
    """Return a copy of a base with weights of its own, and without hooks or overlays of the original."""
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
    added: Sequence[BakedLayers] = (),
    rank: int | None = None,
) -> BakeReport:
    """Compare the predictions of a baked base with those of the base under its overlays, on the held-out prompts.

    Args:
        base: The base without overlays.
        baked: The copy with the overlays in its weights.
        overlays: The overlays, with the strengths at which they are baked.
        widths: The errors of K and V by context width.
        calibration: The recorded steps of the base under its overlays.
        steps: Steps of each calibration picture.
        added: The rows of overlays whose changes were added exactly.
        rank: The rank of a LoRA; None if whole weights are written.
    """
    squared_error = squared_change = squared_output = 0.0
    conds: dict[tuple[tuple[str, ...], str], Conditioning] = {}
    for step in calibration.held_out_steps:
        for model in (baked, base):
            if (step.prompts, model.name) not in conds:
                conds[step.prompts, model.name] = cfg_conditioning(model, step.prompts)
        target = step.prediction.double()
        baked_prediction = baked.predict(step.latents, step.timestep, conds[step.prompts, baked.name])
        base_prediction = base.predict(step.latents, step.timestep, conds[step.prompts, base.name])
        squared_error += squared_norm(baked_prediction - target)
        squared_change += squared_norm(base_prediction - target)
        squared_output += squared_norm(target)
    return BakeReport(
        base=base.name,
        base_hash=base.hash,
        strengths=tuple(_named_strengths(overlays)),
        rank=rank,
        added=tuple(added),
        widths=tuple(widths),
        output=relative_error(squared_error, squared_output),
        output_missed=relative_error(squared_error, squared_change),
        fitted_prompts=calibration.prompt_counts["fit"] + calibration.prompt_counts["choose"],
        held_out_prompts=calibration.prompt_counts["held out"],
        steps=steps,
    )


def _named_strengths(overlays: Iterable[tuple[Overlay, float | Strength]]) -> list[tuple[str, float]]:
    """Return the names of overlays, with their strengths in the UNet."""
    return [(overlay.card.name or overlay.kind, unet_strength(strength)) for overlay, strength in overlays]
