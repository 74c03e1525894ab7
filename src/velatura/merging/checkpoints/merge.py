"""Checkpoints into one: mixed tensor by tensor, into a file or a base."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.devices import find_device, find_dtype
from velatura.base.text_encoder import TextEncoder
from velatura.errors import BadFile, BadRecipe, VelaturaWarning, WrongBase
from velatura.files import atomic_write, open_for_reading
from velatura.formats.checkpoints import prediction, single_file, vae_file
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_families import PURPOSE_BY_CHANNELS
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX, vae_to_ldm
from velatura.formats.checkpoints.tensor_sources import Destination
from velatura.merging.checkpoints import metadata
from velatura.merging.checkpoints.lazy_merge import LazyMerge, OnTensor
from velatura.merging.checkpoints.modes import FormulaOptions
from velatura.merging.checkpoints.options import MergeOptions, Saving
from velatura.merging.checkpoints.report import MergeReport
from velatura.merging.checkpoints.retention import RetentionMeter, open_ancestor
from velatura.merging.checkpoints.weights import ModelWeights
from velatura.tensors import Contents, StrPath, open_state_dict, write_safetensors

ModelSource = Base | StrPath
BlockStrengths = str | Sequence[float] | Mapping[str, float]

DEFAULT_SAVING = Saving()


@overload
def merge(
    base: ModelSource,
    other: ModelSource | None = None,
    strength: float | None = None,
    *,
    minus: ModelSource | None = None,
    mode: str | None = None,
    blocks: BlockStrengths | None = None,
    share: float | None = None,
    seed: int = 0,
    saving: Saving = DEFAULT_SAVING,
    out: None = None,
    on_tensor: OnTensor | None = None,
) -> Base: ...


@overload
def merge(
    base: ModelSource,
    other: ModelSource | None = None,
    strength: float | None = None,
    *,
    minus: ModelSource | None = None,
    mode: str | None = None,
    blocks: BlockStrengths | None = None,
    share: float | None = None,
    seed: int = 0,
    against: ModelSource | None = None,
    saving: Saving = DEFAULT_SAVING,
    out: StrPath,
    on_tensor: OnTensor | None = None,
) -> MergeReport: ...


@torch.no_grad()
def merge(
    base: ModelSource,
    other: ModelSource | None = None,
    strength: float | None = None,
    *,
    minus: ModelSource | None = None,
    mode: str | None = None,
    blocks: BlockStrengths | None = None,
    share: float | None = None,
    seed: int = 0,
    against: ModelSource | None = None,
    saving: Saving = DEFAULT_SAVING,
    out: StrPath | None = None,
    on_tensor: OnTensor | None = None,
) -> Base | MergeReport:
    """Merge models, bases or files: base + strength (other - base), or base + strength (other - minus), or by a mode.

    With out the merge is written there, tensor by tensor, so that no model is held in memory, and a report says what
    is left of each; without it comes a base. mode: a row of MODES; blocks: strengths of blocks of the UNet (see
    Blocks); share, seed: see Mix. against: what the models were made of, for the report; minus if not given.
    """
    sources = [source for source in (base, other, minus) if source is not None]
    options = MergeOptions.with_defaults(
        len(sources), mode=mode, strength=strength, blocks=blocks, share=share, seed=seed
    )
    models = tuple(ModelWeights.from_model(source) for source in sources)
    if against is not None and (out is None or len(models) == 1):
        raise BadRecipe("what is left is told of two models merged into a file: give both and out, or leave against")
    job = _MergeJob.prepare(models, options, saving, on_tensor)
    if out is None:
        return job.to_base(base)
    return job.write(Path(out).expanduser(), None if against is None else open_ancestor(models[0], against))


@dataclass(frozen=True)
class _MergeJob:
    """A merge that is about to happen."""

    options: MergeOptions
    saving: Saving
    lazy_merge: LazyMerge

    @classmethod
    def prepare(
        cls, models: tuple[ModelWeights, ...], options: MergeOptions, saving: Saving, on_tensor: OnTensor | None
    ) -> _MergeJob:
        """See that the models go together, before anything is written."""
        discard = re.compile(saving.discard) if saving.discard else None
        formula_options = FormulaOptions(options.strength, options.share, options.seed)
        lazy_merge = LazyMerge(models, options.merge_mode, formula_options, discard=discard, on_tensor=on_tensor)
        strengths = {} if options.blocks is None else lazy_merge.blocks.strengths(options.blocks)
        vae = {} if saving.vae is None else _load_vae(saving.vae, models[0])
        _warn_of_mixed_predictions(models)
        if discard and len(lazy_merge) == len(models[0]):
            message = f"nothing in {models[0].name} has {saving.discard!r} in its name: nothing is discarded"
            warnings.warn(message, VelaturaWarning, stacklevel=4)
        return cls(options, saving, replace(lazy_merge, strengths=strengths, vae=vae))

    @property
    def name(self) -> str:
        """What the merge is called where nobody has named it."""
        return self.options.title(tuple(model.name for model in self.lazy_merge.models))

    def to_base(self, first: ModelSource) -> Base:
        """The merge as a base, in the precision and place of the first if that is one."""
        destination = self._destination(first)
        contents = Contents(self.lazy_merge.first.contents.path, self.lazy_merge, self.lazy_merge.first.metadata)
        merged_base = single_file.read(contents, destination)
        text, schedule, family = merged_base.text, merged_base.schedule, merged_base.family
        if isinstance(first, Base):
            pairs = zip(merged_base.text.encoders, first.text.encoders, strict=True)
            text = TextEncoder([replace(tower, tokenizer=first_tower.tokenizer) for tower, first_tower in pairs])
            schedule, family = first.schedule, first.family
        return Base(self.name, family, unet=merged_base.unet, vae=merged_base.vae, text=text, schedule=schedule).to(
            destination.device
        )

    def write(self, out: Path, against: ModelWeights | None) -> MergeReport:
        """Write the merge, and tell of it."""
        if out.suffix != ".safetensors":
            raise BadRecipe(f"{out.name} is no name for a merge: end it in .safetensors")
        models = self.lazy_merge.models
        config = self._config(out)
        ancestor = against or (models[2] if len(models) > 2 else None)
        meter = RetentionMeter(tuple(model.name for model in models[:2]), self.lazy_merge.blocks, ancestor)
        lazy_merge = replace(self.lazy_merge, on_mixed=meter.record)
        dtype = getattr(torch, self.saving.dtype) if self.saving.dtype else None
        write_safetensors(out, lazy_merge, self._metadata(out.stem), dtype=dtype)
        if config:
            with open_for_reading(config) as file, atomic_write(out.with_suffix(".yaml")) as temporary:
                temporary.write_bytes(file.read())
        return self._report(out, config, meter)

    def _report(self, out: Path, config: Path | None, meter: RetentionMeter) -> MergeReport:
        lazy_merge = self.lazy_merge
        weights = [
            key for key in lazy_merge if lazy_merge.first.meta_tensor(key).is_floating_point() and "model" in key
        ]
        only_first = (
            len([key for key in weights if key not in lazy_merge.mixed_keys]) if len(lazy_merge.models) > 1 else 0
        )
        dropped = {key for other in lazy_merge.models[1:2] for key in other if key not in lazy_merge.first}
        return MergeReport(
            file=str(out),
            models=tuple(model.name for model in lazy_merge.models),
            mix=self.options,
            tensors=len(lazy_merge),
            mixed=len(lazy_merge.mixed_keys & set(lazy_merge)),
            only_first=only_first,
            dropped=len(dropped),
            vae=len(lazy_merge.vae),
            discarded=len(lazy_merge.first) - len(lazy_merge),
            config=config.name if config else "",
            purpose=PURPOSE_BY_CHANNELS.get(lazy_merge.in_channels, ""),
            dilution=meter.report() if meter.sums else None,
        )

    def _destination(self, first: ModelSource) -> Destination:
        dtype = getattr(torch, self.saving.dtype) if self.saving.dtype else None
        if isinstance(first, Base):
            return Destination(dtype or first.dtype, first.device)
        device = find_device("auto")
        size = sum(
            tensor.numel() * tensor.element_size() for tensor in map(self.lazy_merge.meta_tensor, self.lazy_merge)
        )
        return Destination(dtype or find_dtype("auto", device, size), device)

    def _metadata(self, name: str) -> dict[str, str]:
        models, saving = self.lazy_merge.models, self.saving
        fields = (
            metadata.copy_metadata(models, name) if saving.copies_metadata else metadata.essential_metadata(models[0])
        )
        if saving.keeps_recipe:
            fields |= metadata.recipe_metadata(models, self._recipe_fields())
        return {"format": "pt", **fields, **metadata.as_strings(saving.metadata)}

    def _recipe_fields(self) -> dict[str, Any]:
        """The fields of A1111's recipe behind the hashes, and ours where a mode has more to tell."""
        options, saving = self.options, self.saving
        extra = {"blocks": options.blocks} if options.blocks is not None else {}
        extra |= {"share": options.share, "seed": options.seed} if options.merge_mode.share is not None else {}
        return {
            "interp_method": options.merge_mode.title,
            "multiplier": options.strength,
            "save_as_half": saving.dtype == "float16",
            "custom_name": "",
            "config_source": ["any", "B", "C", "none"].index(saving.config) if saving.config != "A" else 0,
            "bake_in_vae": saving.vae.name if saving.vae else "None",
            "discard_weights": saving.discard,
            "is_inpainting": self.lazy_merge.in_channels == 9,
            "is_instruct_pix2pix": self.lazy_merge.in_channels == 8,
            **extra,
        }

    def _config(self, out: Path) -> Path | None:
        """The .yaml that goes beside the result, as other programs read their settings there."""
        choice, models = self.saving.config, self.lazy_merge.models
        if choice == "none":
            return None
        candidates = models if choice == "any" else models["ABC".index(choice) : "ABC".index(choice) + 1]
        configs = [model.path.with_suffix(".yaml") for model in candidates if model.path and model.path.is_file()]
        config = next((path for path in configs if path.is_file() and path != out.with_suffix(".yaml")), None)
        if config is None and choice != "any":
            raise BadFile(f"there is no .yaml beside model {choice}: give config none, or another model")
        return config


def _load_vae(path: Path, first: ModelWeights) -> dict[str, Tensor]:
    """The tensors of an autoencoder's file or folder that the first model has, by the names it has for them."""
    path = path.expanduser()
    contents = open_weights(path, "diffusion_pytorch_model") if path.is_dir() else open_state_dict(path)
    if any(key.startswith(vae_file.DIFFUSERS_MARK) for key in contents.tensors):
        sources = vae_file.sources(contents)
        tensors = vae_to_ldm({name: source.transform(contents.tensors[source.key]) for name, source in sources.items()})
    else:
        bare_keys = {key.removeprefix(VAE_PREFIX): key for key in contents.tensors}
        kept_keys = {
            key: file_key for key, file_key in bare_keys.items() if not key.startswith(vae_file.IGNORED_PREFIXES)
        }
        tensors = {
            VAE_PREFIX + key: contents.tensors[file_key]
            for key, file_key in kept_keys.items()
            if VAE_PREFIX + key in first
        }
    fitting = {
        key: tensor for key, tensor in tensors.items() if key in first and tensor.shape == first.meta_tensor(key).shape
    }
    if not fitting or len(fitting) < len(tensors):
        raise WrongBase(f"{path.name} holds no autoencoder that fits {first.name}: give one of the same family")
    return fitting


def _warn_of_mixed_predictions(models: Sequence[ModelWeights]) -> None:
    """Warn where some models say that they predict velocity, and others that they predict noise."""
    prediction_types = {
        model.name: prediction_type
        for model in models
        if (prediction_type := prediction.read_prediction(model.contents))
    }
    if len(set(prediction_types.values())) > 1:
        listed = ", ".join(f"{name} predicts {prediction_type}" for name, prediction_type in prediction_types.items())
        warnings.warn(f"{listed}: what is mixed of both may predict neither", VelaturaWarning, stacklevel=5)
