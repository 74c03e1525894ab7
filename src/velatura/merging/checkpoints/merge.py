"""Merge checkpoints, tensor by tensor, into a base or a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import overload

import torch

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import freeze_models
from velatura.errors import BadRecipe, warn
from velatura.merging.checkpoints.block_weights import BlockWeights, UNetBlocks
from velatura.merging.checkpoints.lazy_merge import LazyMerge, OnTensor
from velatura.merging.checkpoints.merged_prediction import find_markers, merge_predictions
from velatura.merging.checkpoints.modes import FormulaOptions
from velatura.merging.checkpoints.options import MergeOptions, Saving
from velatura.merging.checkpoints.report import MergeReport
from velatura.merging.checkpoints.retention import RetentionMeter, open_ancestor
from velatura.merging.checkpoints.weights import ModelSource, ModelWeights, load_vae, share_pipeline
from velatura.merging.checkpoints.write_merge import MergeJob
from velatura.tensors import StrPath

DEFAULT_SAVING = Saving()


@overload
def merge(
    base: ModelSource,
    other: ModelSource | None = None,
    strength: float | None = None,
    *,
    minus: ModelSource | None = None,
    mode: str | None = None,
    blocks: BlockWeights | None = None,
    share: float | None = None,
    seed: int = 0,
    against: ModelSource | None = None,
    saving: Saving = DEFAULT_SAVING,
    out: None = None,
    on_tensor: OnTensor | None = None,
) -> tuple[Base, MergeReport]: ...


@overload
def merge(
    base: ModelSource,
    other: ModelSource | None = None,
    strength: float | None = None,
    *,
    minus: ModelSource | None = None,
    mode: str | None = None,
    blocks: BlockWeights | None = None,
    share: float | None = None,
    seed: int = 0,
    against: ModelSource | None = None,
    saving: Saving = DEFAULT_SAVING,
    out: StrPath,
    on_tensor: OnTensor | None = None,
) -> tuple[Path, MergeReport]: ...


@torch.no_grad()
@freeze_models
@check_arguments()
def merge(
    base: ModelSource,
    other: ModelSource | None = None,
    strength: float | None = None,
    *,
    minus: ModelSource | None = None,
    mode: str | None = None,
    blocks: BlockWeights | None = None,
    share: float | None = None,
    seed: int = 0,
    against: ModelSource | None = None,
    saving: Saving = DEFAULT_SAVING,
    out: StrPath | None = None,
    on_tensor: OnTensor | None = None,
) -> tuple[Base | Path, MergeReport]:
    """Merge two or three models: base + strength (other - base), or base + strength (other - minus), or by a mode.

    Args:
        base: Model A: a base, a checkpoint file or a diffusers folder. The merge has its keys and its structure.
        other: Model B. Without it A alone is saved, with what `saving` changes.
        strength: How much of B, or of the difference, is mixed in: 0.3 by default for most modes, as in A1111, and 1
            for those that add a difference.
        minus: Model C, which is subtracted from B.
        mode: A row of MODES; by default a weighted sum, or an added difference if `minus` is given.
        blocks: Block weights of the UNet, as numbers or text; see `UNetBlocks.strengths`.
        share: The share of a difference that TIES (0.2 by default) or DARE (0.5) keeps.
        seed: Seed of DARE's random choice.
        against: The model that A and B were trained from, for the report; `minus` by default.
        saving: Precision, VAE, keys to discard, and the header of the file.
        out: A .safetensors file to write. Tensors are read and written one by one, so that no model is in memory.
        on_tensor: Called after each tensor with how many are done, and how many there are.

    Returns:
        The merged base, or the path of the file if `out` is given, and a report of what was mixed and how much of each
        parent is left.

    Raises:
        BadRecipe: The options do not go together.
        UnknownName: The mode or a block does not exist.
        WrongBase: The models, the VAE or `against` are of different structure.
        BadFile: A file is not a checkpoint, or the merge has NaN or infinite values.
    """
    base = share_pipeline(base)
    sources = [source for source in (base, other, minus) if source is not None]
    options = MergeOptions.with_defaults(
        len(sources), mode=mode, strength=strength, blocks=blocks, share=share, seed=seed
    )
    if against is not None and len(sources) == 1:
        raise BadRecipe("against is for a merge of two models: give a second one, or leave against out")
    models = tuple(ModelWeights.from_model(source) for source in sources)
    job = _prepare_job(models, options, saving, against, on_tensor)
    if out is None:
        return job.to_base(base)
    return job.to_file(Path(out).expanduser())


def _prepare_job(
    models: tuple[ModelWeights, ...],
    options: MergeOptions,
    saving: Saving,
    against: ModelSource | None,
    on_tensor: OnTensor | None,
) -> MergeJob:
    """Check that the models and options go together, before anything is written."""
    first = models[0]
    blocks = UNetBlocks.from_keys(first)
    ancestor = models[2] if len(models) > 2 else None
    if against is not None:
        ancestor = open_ancestor(first, against)
    meter = RetentionMeter(tuple(model.name for model in models[:2]), blocks, ancestor)
    lazy_merge = LazyMerge(
        models,
        options.merge_mode,
        FormulaOptions(options.strength, options.share, options.seed),
        blocks,
        block_strengths={} if options.blocks is None else blocks.strengths(options.blocks),
        vae={} if saving.vae is None else load_vae(saving.vae, first),
        discard=re.compile(saving.discard) if saving.discard else None,
        on_mixed=meter.record,
        on_tensor=on_tensor,
    )
    merged = merge_predictions(lazy_merge)
    lazy_merge = replace(lazy_merge, markers=find_markers(lazy_merge, merged))
    if saving.discard and not lazy_merge.discarded:
        warn(f"no key of {first.name} matches {saving.discard!r}: nothing is discarded")
    return MergeJob(options, saving, lazy_merge, meter, merged)
