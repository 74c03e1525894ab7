"""Find out what a merge predicts, noise or velocity, if its parents predict different things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from velatura.base.families import PREDICTION_WORDS, Prediction
from velatura.errors import warn
from velatura.formats.checkpoints.ldm_families import V_MARKER, ZERO_SNR_MARKER
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX
from velatura.formats.checkpoints.ldm_text import OPEN_CLIP_PREFIX
from velatura.formats.checkpoints.prediction import read_prediction, read_yaml_prediction
from velatura.merging.checkpoints.lazy_merge import LazyMerge
from velatura.merging.checkpoints.modes import FormulaOptions, Parents
from velatura.merging.checkpoints.weights import ModelWeights


@dataclass(frozen=True)
class MergedPrediction:
    """Prediction of a merge, and the noise schedule that it needs.

    Attributes:
        prediction: What the larger share of its UNet predicts; None if only a trial step can tell (SD2).
        zero_snr: True if the larger share was trained on a schedule to zero terminal SNR.
        is_mixed: True if the models predict different things, so that the file has to declare the result.
    """

    prediction: Prediction | None
    zero_snr: bool
    is_mixed: bool = False


def find_prediction(model: ModelWeights) -> Prediction | None:
    """Return what a model predicts: by its file, by the .yaml beside it, otherwise noise, as usual files do not say it.

    An SD2 that says nothing may predict either: None.
    """
    stated = read_prediction(model.contents)
    if stated is None and model.path is not None:
        stated = read_yaml_prediction(model.path)
    if stated is None and not _is_sd2(model):
        return "epsilon"
    return stated


def merge_predictions(merge: LazyMerge) -> MergedPrediction:
    """Find out what a merge predicts, and warn if its parents differ.

    The merge's own formula, applied to 0 for noise and 1 for velocity at the mean strength of the UNet, tells the share
    of velocity in the result.
    """
    predictions: list[Prediction | None] = [find_prediction(model) for model in merge.models]
    schedules = [ZERO_SNR_MARKER in model for model in merge.models]
    stated: list[Prediction] = [stated for stated in predictions if stated is not None]
    prediction: Prediction | None = predictions[0] or (stated[0] if stated else None)
    zero_snr = schedules[0]
    strength = _unet_strength(merge)
    if len(set(stated)) > 1:
        is_velocity = _is_in_larger_share(
            merge, [(item or stated[0]) == "v_prediction" for item in predictions], strength
        )
        prediction = "v_prediction" if is_velocity else "epsilon"
        _warn_of_mix(
            merge.models, [item or "what it does not say" for item in predictions], PREDICTION_WORDS[prediction]
        )
    if len(set(schedules)) > 1:
        zero_snr = _is_in_larger_share(merge, schedules, strength)
        if len(set(stated)) == 1:
            names = {True: "a noise schedule to zero SNR", False: "the usual noise schedule"}
            listed = _list_models(merge.models, "has", [names[schedule] for schedule in schedules])
            warn(
                f"{listed}: the merge is saved with {names[zero_snr]}; try zero_snr= (--zero-snr) if pictures are grey"
            )
    return MergedPrediction(prediction, zero_snr, len(set(stated)) > 1)


def _is_in_larger_share(merge: LazyMerge, is_in_model: Sequence[bool], strength: float) -> bool:
    """Return True if the larger share of the merge comes from models in which something is true; A decides a draw."""
    values = [torch.tensor([float(value)]) for value in is_in_model]
    first, second = values[0], values[1]
    parents = Parents(first, second, values[2] if len(values) > 2 else first)
    share = float(merge.mode.formula(parents, FormulaOptions(strength, seed=merge.options.seed)))
    return is_in_model[0] if share == 0.5 else share > 0.5


def _unet_strength(merge: LazyMerge) -> float:
    """Return the mean strength of the UNet's weights."""
    if not merge.block_strengths:
        return merge.options.strength
    total = weighted = 0.0
    for key in merge.mixed_keys:
        if key.startswith(UNET_PREFIX):
            count = merge.first.meta_tensor(key).numel()
            total, weighted = total + count, weighted + count * merge.tensor_strength(key)
    return weighted / total if total else merge.options.strength


def _warn_of_mix(models: Sequence[ModelWeights], predictions: Sequence[str], word: str) -> None:
    listed = _list_models(models, "predicts", predictions)
    warn(
        f"{listed}: the merge is saved as {word}, of which it has the larger share, and may paint garbage; try "
        f"prediction={'epsilon' if word == 'v' else 'v'!r} (--prediction) if it does"
    )


def _list_models(models: Sequence[ModelWeights], verb: str, facts: Sequence[str]) -> str:
    return ", ".join(f"{model.name} {verb} {fact}" for model, fact in zip(models, facts, strict=True))


def find_markers(merge: LazyMerge, merged: MergedPrediction) -> frozenset[str]:
    """Return the names of the empty tensors that tell readers of velocity and of a schedule to zero SNR.

    An SD2 has none for velocity, which other programs find out by a trial step.
    """
    markers = {
        V_MARKER: V_MARKER in merge.first if merged.prediction is None else merged.prediction == "v_prediction",
        ZERO_SNR_MARKER: merged.zero_snr,
    }
    if _is_sd2(merge.first) and V_MARKER not in merge.first:
        markers[V_MARKER] = False
    return frozenset(name for name, is_set in markers.items() if is_set)


def _is_sd2(model: ModelWeights) -> bool:
    return any(key.startswith(OPEN_CLIP_PREFIX) for key in model)
