"""What comes of merging, tensor by tensor: each is reckoned when it is asked for, so that no model is held whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from torch import Tensor

from velatura.errors import BadFile, WrongBase
from velatura.formats.ldm_keys import UNET_PREFIX
from velatura.merging.blocks import BASE, Blocks
from velatura.merging.formulas import Chosen, Mode, Parents
from velatura.merging.weights import Weights
from velatura.tensors import Lazy, sketches, used

TOUCHED = "model"  # A1111 mixes only tensors with this in their name: what else a checkpoint holds stays as A has it
COUNTED = "position_ids"  # the numbers of places, whatever precision a converter gave them
ENTRY = f"{UNET_PREFIX}input_blocks.0.0.weight"
NARROW, WIDE = 4, (8, 9)  # channels that a UNet reads: those of latents, and those of pix2pix and of inpainting

Heard = Callable[[str, Parents, Tensor], None]
OnTensor = Callable[[int, int], None]  # how many are done, and how many there are


@dataclass(frozen=True, eq=False)
class Merged(Lazy):
    """The tensors of a merge by name, those of the first model being all there are.

    strengths: of the UNet's blocks that have their own. vae: an autoencoder's tensors, by the same names, which replace
    what was merged; discard: names that are left out at the end. heard: told of each tensor and its parents; on_tensor:
    how far it is.
    """

    models: tuple[Weights, ...]
    mode: Mode
    chosen: Chosen
    strengths: Mapping[str, float] = field(default_factory=dict[str, float])
    vae: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    discard: re.Pattern[str] | None = None
    heard: Heard | None = None
    on_tensor: OnTensor | None = None
    _asked: set[str] = field(default_factory=set[str])

    @property
    def first(self) -> Weights:
        """The model that gives the names, and all that the others lack."""
        return self.models[0]

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of the UNet, and what belongs to them."""
        return Blocks.of(self.first)

    @cached_property
    def kept(self) -> list[str]:
        """The names of all tensors."""
        return [key for key in self.first if not (self.discard and self.discard.search(key))]

    @cached_property
    def mixed(self) -> frozenset[str]:
        """The names of those that are mixed; models whose shapes do not go together are refused."""
        if len(self.models) == 1:
            return frozenset()
        others = self.models[1:]
        shared = [key for key in self.first if self._is_weight(key) and all(key in other for other in others)]
        found = frozenset(key for key in shared if all(self._fits(key, other) for other in others))
        weights = [key for key in self.first if self._is_weight(key)]
        if 2 * len(found) < len(weights):
            names = " and ".join(each.name for each in others)
            raise WrongBase(
                f"{names} and {self.first.name} share only {len(found)} of its {len(weights)} weights: "
                "merge models of one family"
            )
        return found

    @cached_property
    def channels(self) -> int:
        """How many channels the UNet reads."""
        return self.first.sketch(ENTRY).shape[1] if ENTRY in self.first else 0

    def strength_of(self, key: str) -> float:
        """The strength of a tensor: its block's, or that of all."""
        return self.strengths.get(self.blocks.place.get(key, BASE), self.chosen.strength)

    def sketch(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        if key in self.vae:
            return sketches({key: self.vae[key]})[key]
        own = self.first.sketch(key)
        return own.to(self._dtype(key)) if key in self.mixed else own

    def __getitem__(self, key: str) -> Tensor:
        self._asked.add(key)
        if self.on_tensor:
            self.on_tensor(len(self._asked), len(self))
        if key in self.vae:
            return self.vae[key]
        if key not in self.mixed:
            return self.first[key]
        return self._with_all(key, lambda tensors: self._mixed(key, tensors))

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def _is_weight(self, key: str) -> bool:
        return TOUCHED in key and not key.endswith(COUNTED) and self.first.sketch(key).is_floating_point()

    def _fits(self, key: str, other: Weights) -> bool:
        ours, theirs = self.first.sketch(key), other.sketch(key)
        if not theirs.is_floating_point():
            return False
        if ours.shape == theirs.shape or _is_wider(ours, theirs):
            return True
        shapes = f"{tuple(theirs.shape)}, and {self.first.name} of {tuple(ours.shape)}"
        advice = "give the one for inpainting first" if _is_wider(theirs, ours) else "merge models of one kind"
        raise WrongBase(f"{other.name} has {key} of shape {shapes}: {advice}")

    def _dtype(self, key: str) -> torch.dtype:
        return reduce(torch.promote_types, (each.sketch(key).dtype for each in self.models))

    def _with_all(self, key: str, use: Callable[[tuple[Tensor, ...]], Tensor]) -> Tensor:
        """What use makes of a tensor of all models, as they lie in their files."""

        def read(rest: tuple[Weights, ...], found: tuple[Tensor, ...]) -> Tensor:
            if not rest:
                return use(found)
            return used(rest[0], key, lambda tensor: read(rest[1:], (*found, tensor)))

        return read(self.models, ())

    def _mixed(self, key: str, found: tuple[Tensor, ...]) -> Tensor:
        tensors = [each.to(found[0].device) for each in found]
        wide, narrow = tensors[0], min(each.shape[1] if each.ndim > 1 else 0 for each in tensors)
        cut = [
            each[:, :narrow] if each.ndim == 4 and each.shape[1] in WIDE and narrow == NARROW else each
            for each in tensors
        ]
        parents = Parents(cut[0], cut[1], cut[2] if len(cut) > 2 else cut[0])
        strength = self.strength_of(key)
        chosen = Chosen(strength, self.chosen.share, self.chosen.seed, key)
        made = self.mode.formula(parents, chosen).to(self._dtype(key))
        if not bool(made.float().sum().isfinite()) and not bool(made.isfinite().all()):
            raise BadFile(
                f"{key} comes out with values that are not finite: one of the models is damaged, or overflows"
            )
        if self.heard:
            self.heard(key, parents, made)
        if wide.shape == made.shape:
            return made
        whole = wide.to(made.dtype, copy=True)
        whole[:, :narrow] = made
        return whole


def _is_wider(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a tensor is the first convolution of a model that reads more beside the latents, and the other is not."""
    if ours.ndim != 4 or theirs.ndim != 4:
        return False
    rest_fits = ours.shape[:1] + ours.shape[2:] == theirs.shape[:1] + theirs.shape[2:]
    return rest_fits and ours.shape[1] in WIDE and theirs.shape[1] == NARROW
