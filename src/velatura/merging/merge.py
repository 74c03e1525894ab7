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
from velatura.base.text import TextEncoder
from velatura.errors import BadFile, BadRecipe, VelaturaWarning, WrongBase
from velatura.files import reading, replacing
from velatura.formats import checkpoint, prediction, vae_file
from velatura.formats.folder_weights import weights as weights_in
from velatura.formats.ldm_keys import VAE_PREFIX, vae_to_ldm
from velatura.formats.ldm_kinds import PURPOSES
from velatura.formats.sources import Destination
from velatura.merging import told
from velatura.merging.dilution import Ledger, origin_of
from velatura.merging.formulas import Chosen
from velatura.merging.merge_report import MergeReport
from velatura.merging.merged import Merged, OnTensor
from velatura.merging.mix import Mix, Saving
from velatura.merging.weights import Weights
from velatura.tensors import Contents, StrPath, open_state, write_safetensors

Model = Base | StrPath
Asked = str | Sequence[float] | Mapping[str, float]

PLAIN = Saving()


@overload
def merge(
    base: Model,
    other: Model | None = None,
    strength: float | None = None,
    *,
    minus: Model | None = None,
    mode: str | None = None,
    blocks: Asked | None = None,
    share: float | None = None,
    seed: int = 0,
    saving: Saving = PLAIN,
    out: None = None,
    on_tensor: OnTensor | None = None,
) -> Base: ...


@overload
def merge(
    base: Model,
    other: Model | None = None,
    strength: float | None = None,
    *,
    minus: Model | None = None,
    mode: str | None = None,
    blocks: Asked | None = None,
    share: float | None = None,
    seed: int = 0,
    against: Model | None = None,
    saving: Saving = PLAIN,
    out: StrPath,
    on_tensor: OnTensor | None = None,
) -> MergeReport: ...


@torch.no_grad()
def merge(
    base: Model,
    other: Model | None = None,
    strength: float | None = None,
    *,
    minus: Model | None = None,
    mode: str | None = None,
    blocks: Asked | None = None,
    share: float | None = None,
    seed: int = 0,
    against: Model | None = None,
    saving: Saving = PLAIN,
    out: StrPath | None = None,
    on_tensor: OnTensor | None = None,
) -> Base | MergeReport:
    """Merge models, bases or files: base + strength (other - base), or base + strength (other - minus), or by a mode.

    With out the merge is written there, tensor by tensor, so that no model is held in memory, and a report says what
    is left of each; without it comes a base. mode: a row of MODES; blocks: strengths of blocks of the UNet (see
    Blocks); share, seed: see Mix. against: what the models were made of, for the report; minus if not given.
    """
    given = [each for each in (base, other, minus) if each is not None]
    mix = Mix.of(len(given), mode=mode, strength=strength, blocks=blocks, share=share, seed=seed)
    models = tuple(Weights.of(each) for each in given)
    if against is not None and (out is None or len(models) == 1):
        raise BadRecipe("what is left is told of two models merged into a file: give both and out, or leave against")
    merging = _Merging.of(models, mix, saving, on_tensor)
    if out is None:
        return merging.base(base)
    return merging.written(Path(out).expanduser(), None if against is None else origin_of(models[0], against))


@dataclass(frozen=True)
class _Merging:
    """A merge that is about to happen."""

    mix: Mix
    saving: Saving
    merged: Merged

    @classmethod
    def of(cls, models: tuple[Weights, ...], mix: Mix, saving: Saving, on_tensor: OnTensor | None) -> _Merging:
        """See that the models go together, before anything is written."""
        discard = re.compile(saving.discard) if saving.discard else None
        chosen = Chosen(mix.strength, mix.share, mix.seed)
        merged = Merged(models, mix.row, chosen, discard=discard, on_tensor=on_tensor)
        strengths = {} if mix.blocks is None else merged.blocks.strengths(mix.blocks)
        vae = {} if saving.vae is None else _autoencoder(saving.vae, models[0])
        _warn_of_mixed_predictions(models)
        if discard and len(merged) == len(models[0]):
            said = f"nothing in {models[0].name} has {saving.discard!r} in its name: nothing is discarded"
            warnings.warn(said, VelaturaWarning, stacklevel=4)
        return cls(mix, saving, replace(merged, strengths=strengths, vae=vae))

    @property
    def name(self) -> str:
        """What the merge is called where nobody has named it."""
        return self.mix.title(tuple(each.name for each in self.merged.models))

    def base(self, first: Model) -> Base:
        """The merge as a base, in the precision and place of the first if that is one."""
        to = self._destination(first)
        held = Contents(self.merged.first.contents.path, self.merged, self.merged.first.metadata)
        made = checkpoint.read(held, to)
        text, schedule, family = made.text, made.schedule, made.family
        if isinstance(first, Base):
            pairs = zip(made.text.towers, first.text.towers, strict=True)
            text = TextEncoder([replace(tower, tokenizer=own.tokenizer) for tower, own in pairs])
            schedule, family = first.schedule, first.family
        return Base(self.name, family, unet=made.unet, vae=made.vae, text=text, schedule=schedule).to(to.device)

    def written(self, out: Path, against: Weights | None) -> MergeReport:
        """Write the merge, and tell of it."""
        if out.suffix != ".safetensors":
            raise BadRecipe(f"{out.name} is no name for a merge: end it in .safetensors")
        models = self.merged.models
        config = self._config(out)
        origin = against or (models[2] if len(models) > 2 else None)
        ledger = Ledger(tuple(each.name for each in models[:2]), self.merged.blocks, origin)
        merged = replace(self.merged, heard=ledger.hear)
        dtype = getattr(torch, self.saving.dtype) if self.saving.dtype else None
        write_safetensors(out, merged, self._metadata(out.stem), dtype=dtype)
        if config:
            with reading(config) as file, replacing(out.with_suffix(".yaml")) as beside:
                beside.write_bytes(file.read())
        return self._report(out, config, ledger)

    def _report(self, out: Path, config: Path | None, ledger: Ledger) -> MergeReport:
        merged = self.merged
        weights = [key for key in merged if merged.first.sketch(key).is_floating_point() and "model" in key]
        alone = len([key for key in weights if key not in merged.mixed]) if len(merged.models) > 1 else 0
        dropped = {key for other in merged.models[1:2] for key in other if key not in merged.first}
        return MergeReport(
            file=str(out),
            models=tuple(each.name for each in merged.models),
            mix=self.mix,
            tensors=len(merged),
            mixed=len(merged.mixed & set(merged)),
            only_first=alone,
            dropped=len(dropped),
            vae=len(merged.vae),
            discarded=len(merged.first) - len(merged),
            config=config.name if config else "",
            purpose=PURPOSES.get(merged.channels, ""),
            dilution=ledger.report() if ledger.sums else None,
        )

    def _destination(self, first: Model) -> Destination:
        own = getattr(torch, self.saving.dtype) if self.saving.dtype else None
        if isinstance(first, Base):
            return Destination(own or first.dtype, first.device)
        device = find_device("auto")
        size = sum(each.numel() * each.element_size() for each in map(self.merged.sketch, self.merged))
        return Destination(own or find_dtype("auto", device, size), device)

    def _metadata(self, name: str) -> dict[str, str]:
        models, saving = self.merged.models, self.saving
        fields = told.copied(models, name) if saving.copies_metadata else told.needed(models[0])
        if saving.keeps_recipe:
            fields |= told.recipe(models, self._how())
        return {"format": "pt", **fields, **told.as_texts(saving.metadata)}

    def _how(self) -> dict[str, Any]:
        """The fields of A1111's recipe behind the hashes, and ours where a mode has more to tell."""
        mix, saving = self.mix, self.saving
        more = {"blocks": mix.blocks} if mix.blocks is not None else {}
        more |= {"share": mix.share, "seed": mix.seed} if mix.row.share is not None else {}
        return {
            "interp_method": mix.row.title,
            "multiplier": mix.strength,
            "save_as_half": saving.dtype == "float16",
            "custom_name": "",
            "config_source": ["any", "B", "C", "none"].index(saving.config) if saving.config != "A" else 0,
            "bake_in_vae": saving.vae.name if saving.vae else "None",
            "discard_weights": saving.discard,
            "is_inpainting": self.merged.channels == 9,
            "is_instruct_pix2pix": self.merged.channels == 8,
            **more,
        }

    def _config(self, out: Path) -> Path | None:
        """The .yaml that goes beside the result, as other programs read their settings there."""
        asked, models = self.saving.config, self.merged.models
        if asked == "none":
            return None
        chosen = models if asked == "any" else models["ABC".index(asked) : "ABC".index(asked) + 1]
        beside = [each.path.with_suffix(".yaml") for each in chosen if each.path and each.path.is_file()]
        found = next((path for path in beside if path.is_file() and path != out.with_suffix(".yaml")), None)
        if found is None and asked != "any":
            raise BadFile(f"there is no .yaml beside model {asked}: give config none, or another model")
        return found


def _autoencoder(path: Path, first: Weights) -> dict[str, Tensor]:
    """The tensors of an autoencoder's file or folder that the first model has, by the names it has for them."""
    path = path.expanduser()
    contents = weights_in(path, "diffusion_pytorch_model") if path.is_dir() else open_state(path)
    if any(key.startswith(vae_file.DIFFUSERS) for key in contents.tensors):
        sources = vae_file.sources(contents)
        found = vae_to_ldm({name: each.change(contents.tensors[each.key]) for name, each in sources.items()})
    else:
        bare = {key.removeprefix(VAE_PREFIX): key for key in contents.tensors}
        read = {key: there for key, there in bare.items() if not key.startswith(vae_file.NOT_READ)}
        found = {VAE_PREFIX + key: contents.tensors[there] for key, there in read.items() if VAE_PREFIX + key in first}
    fits = {key: each for key, each in found.items() if key in first and each.shape == first.sketch(key).shape}
    if not fits or len(fits) < len(found):
        raise WrongBase(f"{path.name} holds no autoencoder that fits {first.name}: give one of the same family")
    return fits


def _warn_of_mixed_predictions(models: Sequence[Weights]) -> None:
    """Warn where some models say that they predict velocity, and others that they predict noise."""
    said = {each.name: found for each in models if (found := prediction.told(each.contents))}
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{name} predicts {each}" for name, each in said.items())
        warnings.warn(f"{listed}: what is mixed of both may predict neither", VelaturaWarning, stacklevel=5)
