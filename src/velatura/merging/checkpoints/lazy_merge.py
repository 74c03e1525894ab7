"""What comes of merging, tensor by tensor: each is reckoned when it is asked for, so that no model is held whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from torch import Tensor

from velatura.errors import BadFile, WrongBase
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX
from velatura.merging.checkpoints.block_weights import BASE_BLOCK, UNetBlocks
from velatura.merging.checkpoints.modes import FormulaOptions, MergeMode, Parents
from velatura.merging.checkpoints.weights import ModelWeights
from velatura.tensors import LazyTensors, apply_to, meta_tensors

MIXED_KEY_PART = (
    "model"  # A1111 mixes only tensors with this in their name: what else a checkpoint holds stays as A has it
)
POSITION_IDS = "position_ids"  # the numbers of places, whatever precision a converter gave them
CONV_IN_KEY = f"{UNET_PREFIX}input_blocks.0.0.weight"
LATENT_CHANNELS, EXTENDED_CHANNELS = (
    4,
    (8, 9),
)  # channels that a UNet reads: those of latents, and those of pix2pix and of inpainting

OnMixed = Callable[[str, Parents, Tensor], None]
OnTensor = Callable[[int, int], None]  # how many are done, and how many there are


@dataclass(frozen=True, eq=False)
class LazyMerge(LazyTensors):
    """The tensors of a merge by name, those of the first model being all there are.

    strengths: of the UNet's blocks that have their own. vae: an autoencoder's tensors, by the same names, which replace
    what was merged; discard: names that are left out at the end. heard: told of each tensor and its parents; on_tensor:
    how far it is.
    """

    models: tuple[ModelWeights, ...]
    mode: MergeMode
    options: FormulaOptions
    strengths: Mapping[str, float] = field(default_factory=dict[str, float])
    vae: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    discard: re.Pattern[str] | None = None
    on_mixed: OnMixed | None = None
    on_tensor: OnTensor | None = None
    _read_keys: set[str] = field(default_factory=set[str])

    @property
    def first(self) -> ModelWeights:
        """The model that gives the names, and all that the others lack."""
        return self.models[0]

    @cached_property
    def blocks(self) -> UNetBlocks:
        """The blocks of the UNet, and what belongs to them."""
        return UNetBlocks.from_keys(self.first)

    @cached_property
    def output_keys(self) -> list[str]:
        """The names of all tensors."""
        return [key for key in self.first if not (self.discard and self.discard.search(key))]

    @cached_property
    def mixed_keys(self) -> frozenset[str]:
        """The names of those that are mixed; models whose shapes do not go together are refused."""
        if len(self.models) == 1:
            return frozenset()
        others = self.models[1:]
        shared = [key for key in self.first if self._is_weight(key) and all(key in other for other in others)]
        fitting = frozenset(key for key in shared if all(self._fits(key, other) for other in others))
        weights = [key for key in self.first if self._is_weight(key)]
        if 2 * len(fitting) < len(weights):
            names = " and ".join(model.name for model in others)
            raise WrongBase(
                f"{names} and {self.first.name} share only {len(fitting)} of its {len(weights)} weights: "
                "merge models of one family"
            )
        return fitting

    @cached_property
    def in_channels(self) -> int:
        """How many channels the UNet reads."""
        return self.first.meta_tensor(CONV_IN_KEY).shape[1] if CONV_IN_KEY in self.first else 0

    def tensor_strength(self, key: str) -> float:
        """The strength of a tensor: its block's, or that of all."""
        return self.strengths.get(self.blocks.block_by_key.get(key, BASE_BLOCK), self.options.strength)

    def meta_tensor(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        if key in self.vae:
            return meta_tensors({key: self.vae[key]})[key]
        tensor = self.first.meta_tensor(key)
        return tensor.to(self._dtype(key)) if key in self.mixed_keys else tensor

    def __getitem__(self, key: str) -> Tensor:
        self._read_keys.add(key)
        if self.on_tensor:
            self.on_tensor(len(self._read_keys), len(self))
        if key in self.vae:
            return self.vae[key]
        if key not in self.mixed_keys:
            return self.first[key]
        return self._use_all(key, lambda tensors: self._mix_tensor(key, tensors))

    def __iter__(self) -> Iterator[str]:
        return iter(self.output_keys)

    def __len__(self) -> int:
        return len(self.output_keys)

    def _is_weight(self, key: str) -> bool:
        return (
            MIXED_KEY_PART in key and not key.endswith(POSITION_IDS) and self.first.meta_tensor(key).is_floating_point()
        )

    def _fits(self, key: str, other: ModelWeights) -> bool:
        ours, theirs = self.first.meta_tensor(key), other.meta_tensor(key)
        if not theirs.is_floating_point():
            return False
        if ours.shape == theirs.shape or _is_wider(ours, theirs):
            return True
        shapes = f"{tuple(theirs.shape)}, and {self.first.name} of {tuple(ours.shape)}"
        advice = "give the one for inpainting first" if _is_wider(theirs, ours) else "merge models of one kind"
        raise WrongBase(f"{other.name} has {key} of shape {shapes}: {advice}")

    def _dtype(self, key: str) -> torch.dtype:
        return reduce(torch.promote_types, (model.meta_tensor(key).dtype for model in self.models))

    def _use_all(self, key: str, use: Callable[[tuple[Tensor, ...]], Tensor]) -> Tensor:
        """What use makes of a tensor of all models, as they lie in their files."""

        def read_next(rest: tuple[ModelWeights, ...], tensors: tuple[Tensor, ...]) -> Tensor:
            if not rest:
                return use(tensors)
            return apply_to(rest[0], key, lambda tensor: read_next(rest[1:], (*tensors, tensor)))

        return read_next(self.models, ())

    def _mix_tensor(self, key: str, originals: tuple[Tensor, ...]) -> Tensor:
        tensors = [tensor.to(originals[0].device) for tensor in originals]
        first_tensor, min_channels = tensors[0], min(tensor.shape[1] if tensor.ndim > 1 else 0 for tensor in tensors)
        trimmed = [
            tensor[:, :min_channels]
            if tensor.ndim == 4 and tensor.shape[1] in EXTENDED_CHANNELS and min_channels == LATENT_CHANNELS
            else tensor
            for tensor in tensors
        ]
        parents = Parents(trimmed[0], trimmed[1], trimmed[2] if len(trimmed) > 2 else trimmed[0])
        strength = self.tensor_strength(key)
        options = FormulaOptions(strength, self.options.share, self.options.seed, key)
        mixed = self.mode.formula(parents, options).to(self._dtype(key))
        if not bool(mixed.float().sum().isfinite()) and not bool(mixed.isfinite().all()):
            raise BadFile(
                f"{key} comes out with values that are not finite: one of the models is damaged, or overflows"
            )
        if self.on_mixed:
            self.on_mixed(key, parents, mixed)
        if first_tensor.shape == mixed.shape:
            return mixed
        widened = first_tensor.to(mixed.dtype, copy=True)
        widened[:, :min_channels] = mixed
        return widened


def _is_wider(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a tensor is the first convolution of a model that reads more beside the latents, and the other is not."""
    if ours.ndim != 4 or theirs.ndim != 4:
        return False
    rest_fits = ours.shape[:1] + ours.shape[2:] == theirs.shape[:1] + theirs.shape[2:]
    return rest_fits and ours.shape[1] in EXTENDED_CHANNELS and theirs.shape[1] == LATENT_CHANNELS
