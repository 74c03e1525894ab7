"""Compute the tensors of a merge one by one, when they are read, so that no model is held in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from torch import Tensor

from velatura.base.image_condition import CONDITION_BY_CHANNELS, LATENT_CHANNELS
from velatura.errors import BadFile, WrongBase, warn
from velatura.formats.checkpoints.ldm_families import V_MARKER, ZERO_SNR_MARKER
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX
from velatura.merging.checkpoints.block_weights import LdmBlock, UNetBlocks
from velatura.merging.checkpoints.modes import FormulaOptions, MergeMode, Parents
from velatura.merging.checkpoints.weights import ModelWeights
from velatura.overlays.deltas.first_channels import has_extra_channels
from velatura.tensors import LazyTensors, apply_to, meta_tensors

# A1111 mixes only tensors with this in their key. It takes all others from model A.
MIXED_KEY_PART = "model"
POSITION_IDS = "position_ids"  # indices, although some converters store them as floating point numbers
CONV_IN_KEY = f"{UNET_PREFIX}input_blocks.0.0.weight"
CLIP_POSITIONS = 77  # tokens of a prompt, with its begin and its end
MARKERS = (V_MARKER, ZERO_SNR_MARKER)

OnMixed = Callable[[str, Parents, Tensor], None]  # called with the key, its parents and the mixed tensor
OnTensor = Callable[[int, int], None]  # called with how many tensors are done, and how many there are


@dataclass(frozen=True, eq=False)
class LazyMerge(LazyTensors):
    """Tensors of a merge by key. The keys are those of the first model.

    Attributes:
        models: One to three models, in the order A, B, C.
        mode: The formula, and what it is called.
        options: The strength of all tensors outside `block_strengths`, and the formula's other numbers.
        blocks: The blocks of the first model's UNet.
        block_strengths: Strengths of single blocks.
        vae: Tensors of a VAE by the same keys, which replace the merged ones.
        discard: Keys that match are left out.
        markers: Names of the empty tensors that tell what the merge predicts, whatever the first model has; None for
            those of the first model.
        on_mixed: Called with each mixed tensor and its parents.
        on_tensor: Called after each tensor with the progress.
    """

    models: tuple[ModelWeights, ...]
    mode: MergeMode
    options: FormulaOptions
    blocks: UNetBlocks
    block_strengths: Mapping[LdmBlock, float] = field(default_factory=dict[LdmBlock, float])
    vae: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    discard: re.Pattern[str] | None = None
    markers: frozenset[str] | None = None
    on_mixed: OnMixed | None = None
    on_tensor: OnTensor | None = None
    _read_keys: set[str] = field(default_factory=set[str])

    @property
    def first(self) -> ModelWeights:
        """Model A, which gives the keys and every tensor that the others lack."""
        return self.models[0]

    @cached_property
    def output_keys(self) -> list[str]:
        """Keys of the result."""
        keys = list(self.first)
        if self.markers is not None:
            keys = [key for key in keys if key not in MARKERS or key in self.markers]
            keys += sorted(self.markers - set(keys))
        return [key for key in keys if not (self.discard and self.discard.search(key))]

    @property
    def discarded(self) -> int:
        """Count of the first model's tensors that are left out on request."""
        return sum(bool(self.discard and self.discard.search(key)) for key in self.first)

    @cached_property
    def mixed_keys(self) -> frozenset[str]:
        """Keys of the tensors that are mixed; raises WrongBase for models of different structure."""
        if len(self.models) == 1:
            return frozenset()
        others = self.models[1:]
        weights = [key for key in self.first if self._is_weight(key)]
        shared = [key for key in weights if all(key in other for other in others)]
        fitting = frozenset(key for key in shared if all(self._fits(key, other) for other in others))
        if 2 * len(fitting) < len(weights):
            names = " and ".join(model.name for model in others)
            raise WrongBase(
                f"{names} and {self.first.name} share only {len(fitting)} of its {len(weights)} weights: "
                "merge models of one family"
            )
        return fitting

    @cached_property
    def in_channels(self) -> int:
        """Input channels of the UNet, 0 without a UNet."""
        return self.first.meta_tensor(CONV_IN_KEY).shape[1] if CONV_IN_KEY in self.first else 0

    def tensor_strength(self, key: str) -> float:
        """Return the strength of a tensor: that of its block, or that of the whole merge."""
        return self.block_strengths.get(self.blocks.block_of(key), self.options.strength)

    def meta_tensor(self, key: str) -> Tensor:
        """Return the shape and precision of a tensor, on the meta device."""
        if key in self.vae:
            return meta_tensors({key: self.vae[key]})[key]
        if key not in self.first:
            return torch.empty(0, device="meta")
        tensor = self.first.meta_tensor(key)
        if key.endswith(POSITION_IDS) and tensor.is_floating_point() and tensor.itemsize == 1:
            return tensor.to(torch.int64)  # floats of eight bits do not hold all whole numbers up to 76
        return tensor.to(self._mixed_dtype(key)) if key in self.mixed_keys else tensor

    def __getitem__(self, key: str) -> Tensor:
        self._read_keys.add(key)
        if self.on_tensor:
            self.on_tensor(len(self._read_keys), len(self))
        if key in self.vae:
            return self.vae[key]
        if key not in self.first:
            return torch.empty(0)
        if key not in self.mixed_keys:
            return self._repaired_positions(key) if key.endswith(POSITION_IDS) else self.first[key]
        return self._apply_to_parents(key, lambda tensors: self._mix_tensor(key, tensors))

    def __contains__(self, key: object) -> bool:  # a key that no model has reads as an empty marker
        return key in self.output_keys

    def __iter__(self) -> Iterator[str]:
        return iter(self.output_keys)

    def __len__(self) -> int:
        return len(self.output_keys)

    def _repaired_positions(self, key: str) -> Tensor:
        """Return position ids, which number the tokens from 0; merges in half precision have broken those of files."""
        stored = self.first[key]
        positions = torch.arange(stored.shape[-1]).expand(stored.shape).to(self.meta_tensor(key).dtype).contiguous()
        if not torch.equal(stored.cpu().double(), positions.double()):
            warn(
                f"{self.first.name} has wrong numbers in {key}, which shift its prompts in some programs: they are "
                "numbered from 0 again"
            )
        return positions

    def _is_weight(self, key: str) -> bool:
        if MIXED_KEY_PART not in key or key.endswith(POSITION_IDS):
            return False
        return self.first.meta_tensor(key).is_floating_point()

    def _fits(self, key: str, other: ModelWeights) -> bool:
        """Return True if a tensor of another model can be mixed; raise WrongBase if only its shape forbids it."""
        first_tensor, other_tensor = self.first.meta_tensor(key), other.meta_tensor(key)
        if not other_tensor.is_floating_point():
            return False
        if first_tensor.shape == other_tensor.shape or has_extra_channels(first_tensor.shape, other_tensor.shape):
            return True
        shapes = f"{tuple(other_tensor.shape)}, and {self.first.name} of {tuple(first_tensor.shape)}"
        if has_extra_channels(other_tensor.shape, first_tensor.shape):
            raise WrongBase(f"{other.name} has {key} of shape {shapes}: give the one for inpainting first")
        raise WrongBase(f"{other.name} has {key} of shape {shapes}: merge models of one kind")

    def _mixed_dtype(self, key: str) -> torch.dtype:
        """Return the precision of a mixed tensor: that of the most precise model, float16 for fp8.

        fp8 has steps of 6 or 12 percent, in which most of what a merge adds would be lost.
        """
        dtypes = [model.meta_tensor(key).dtype for model in self.models]
        return reduce(torch.promote_types, (torch.float16 if dtype.itemsize == 1 else dtype for dtype in dtypes))

    def _apply_to_parents(self, key: str, function: Callable[[tuple[Tensor, ...]], Tensor]) -> Tensor:
        """Return the result of a function of one tensor of all models, while all their files are open."""

        def read_next(rest: tuple[ModelWeights, ...], tensors: tuple[Tensor, ...]) -> Tensor:
            if not rest:
                return function(tensors)
            return apply_to(rest[0], key, lambda tensor: read_next(rest[1:], (*tensors, tensor)))

        return read_next(self.models, ())

    def _explain_overflow(self, originals: Sequence[Tensor]) -> str:
        """Say which model has the NaN or infinite values, if one has."""
        for model, tensor in zip(self.models, originals, strict=True):
            if not bool(tensor.float().isfinite().all()):
                return f"{model.name} is damaged there; download it again, or use another model"
        return "the sum is too large for its precision; use a lower strength"

    def _mix_tensor(self, key: str, originals: tuple[Tensor, ...]) -> Tensor:
        first_tensor = originals[0]
        # fp8 has no arithmetic of its own
        tensors = [tensor.float() if tensor.element_size() == 1 else tensor for tensor in originals]
        tensors = [tensor.to(first_tensor.device) for tensor in tensors]
        channels = min(tensor.shape[1] if tensor.ndim > 1 else 0 for tensor in tensors)
        trimmed = [_trim_channels(tensor, channels) for tensor in tensors]
        parents = Parents(trimmed[0], trimmed[1], trimmed[2] if len(trimmed) > 2 else trimmed[0])
        options = FormulaOptions(self.tensor_strength(key), self.options.share, self.options.seed, key)
        mixed = self.mode.formula(parents, options).to(self._mixed_dtype(key))
        # The sum is finite for nearly all tensors, and cheaper than a test of all values.
        if not bool(mixed.float().sum().isfinite()) and not bool(mixed.isfinite().all()):
            raise BadFile(f"merging {key} gives NaN or infinite values: {self._explain_overflow(originals)}")
        if self.on_mixed:
            self.on_mixed(key, parents, mixed)
        if first_tensor.shape == mixed.shape:
            return mixed
        widened = first_tensor.to(mixed.dtype, copy=True)
        widened[:, :channels] = mixed
        return widened


def _trim_channels(tensor: Tensor, channels: int) -> Tensor:
    """Return the part of the first convolution that reads latents, if another model reads nothing else."""
    if tensor.ndim == 4 and tensor.shape[1] in CONDITION_BY_CHANNELS and channels == LATENT_CHANNELS:
        return tensor[:, :channels]
    return tensor
