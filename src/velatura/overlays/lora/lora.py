"""LoRA overlays: a low-rank or other small change of the weight of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, Self

from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.errors import BadOverlay
from velatura.overlays.deltas import build_delta
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.deltas.first_channels import fit_input_channels
from velatura.overlays.hooks.output_hooks import DeltaChange, TimestepRecorder
from velatura.overlays.hooks.seams import Undo, guard_against_fusion, hook_outputs, record_timesteps
from velatura.overlays.lora.block_weights import block_of, check_block_weights
from velatura.overlays.lora.compatibility import check_compatible, check_side, outline
from velatura.overlays.lora.config import (
    DEFAULT_TARGETS,
    DEFAULT_TARGETS_BY_FAMILY,
    LoraConfig,
    check_conv_options,
    seed_rng,
)
from velatura.overlays.lora.kohya_names import UNET_PREFIX, names_in_files
from velatura.overlays.overlay import Card, Overlay, TargetPart
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target

# Vectors by the name of the embedding and the name of the tensor
BundledEmbeddings = dict[str, dict[str, Tensor]]


class Lora(Overlay):
    """LoRA, or another small change of weights: a Delta for each layer, under kohya's name of the layer.

    The names are lora_unet_mid_block_attentions_0_..., lora_te_text_model_encoder_layers_0_..., and lora_te1_... and
    lora_te2_... for the two text encoders of an SDXL. state_dict() has the keys of such a file.

    Attributes:
        card: Name, family, base and what else is known of it.
        layers: The deltas, by kohya's names.
        block_weights: Factors of the strength, by block; empty for 1 everywhere.
        bundled_embeddings: Embeddings in its file, by name and tensor name.
        metadata: Metadata of its file, as trainers write it.
        unmatched_keys: Keys of its file that fit no layer.
    """

    kind: ClassVar[str] = "lora"
    kind_name: ClassVar[str] = "LoRA"

    def __init__(
        self,
        card: Card,
        deltas: Mapping[str, Delta],
        *,
        block_weights: Mapping[str, float] | None = None,
        bundled_embeddings: BundledEmbeddings | None = None,
        metadata: Mapping[str, str] | None = None,
        unmatched_keys: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not deltas:
            raise BadOverlay("a LoRA must change at least one layer, and no layers at all are given")
        self.card = card.replace(kind=self.kind, outline=outline(deltas.values()))
        self.block_weights = dict(block_weights or {})
        self.bundled_embeddings: BundledEmbeddings = bundled_embeddings or {}
        self.metadata = dict(metadata or {})
        self.unmatched_keys = tuple(unmatched_keys)
        config = LoraConfig.from_structure(self.card.structure)
        for name, delta in deltas.items():
            self.add_module(name, delta)
            if config:
                delta.set_dropouts(config.dropout, config.rank_dropout, config.module_dropout)
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Refuse: the structure of a LoRA follows from its tensors. Use from_tensors."""
        raise BadOverlay(f"{card} cannot be built from a card, only from its tensors: use Lora.from_tensors")

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        card: Card | None = None,
        *,
        bundled_embeddings: BundledEmbeddings | None = None,
        metadata: Mapping[str, str] | None = None,
        unmatched_keys: Sequence[str] = (),
    ) -> Self:
        """Build a LoRA from tensors; every layer may have an algorithm of its own.

        Args:
            tensors: Tensors under kohya's keys with diffusers' paths, such as lora_unet_conv_in.lora_down.weight.
            card: Its card; the default has only a kind.
            bundled_embeddings: Embeddings in its file: vectors by the embedding's name and the text encoder's.
            metadata: Metadata of its file, as trainers write it.
            unmatched_keys: Keys of its file that fit no layer.
        """
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, suffix = key.partition(".")
            layers.setdefault(name, {})[suffix] = tensor
        return cls(
            card or Card(kind=cls.kind),
            {name: _build_delta(name, layer_tensors) for name, layer_tensors in layers.items()},
            bundled_embeddings=bundled_embeddings,
            metadata=metadata,
            unmatched_keys=unmatched_keys,
        )

    @classmethod
    @freeze_models
    @check_arguments()
    def for_base(
        cls,
        base: AnyBase,
        *,
        rank: int = 16,
        alpha: float | None = None,
        algorithm: str = "lora",
        targets: str | None = None,
        conv_rank: int | None = None,
        conv_alpha: float | None = None,
        factor: int = -1,
        text: bool = False,
        rank_stabilised: bool = False,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        seed: int | None = None,
        name: str = "",
    ) -> Self:
        """Make an untrained LoRA for a base; it changes exactly nothing yet.

        Args:
            base: The base whose layers it changes.
            rank: Rank of the matrices, 1 to 4096.
            alpha: The change is multiplied by alpha / rank; by default alpha is the rank.
            algorithm: "lora", "locon", "dora", "loha", "lokr", "glora", "ia3", "oft", "boft", "norm" or "full".
            targets: "context": K and V of cross-attention. "attention": Q, K, V and output projections. "transformer":
                all layers of the transformers, like kohya's trainer. "linear": all Linear layers. "conv": all
                convolutions too. None: "conv" on the tiny base, where it was measured, and "transformer" on others.
            conv_rank, conv_alpha: Rank and alpha of convolutions larger than 1x1; `rank` and `alpha` by default.
            factor: Size of a LoKr's smaller matrix; -1 for two matrices of similar size.
            text: Change the text encoders too.
            rank_stabilised: Multiply by alpha / sqrt(rank) instead (rsLoRA).
            dropout: Probability of dropping an input feature in training, 0 or more and below 1.
            rank_dropout: Probability of dropping a rank in training.
            module_dropout: Probability of leaving out a whole layer's change in a training step.
            seed: Seed for the weights; torch's global generator by default.
            name: Name of the LoRA.

        Returns:
            The LoRA in eval mode, on the device of the base.

        Raises:
            BadOverlay: If a value is out of range, or options contradict each other.
            UnknownName: If the algorithm or the targets are unknown.
        """
        base = to_base(base)
        targets = targets or DEFAULT_TARGETS_BY_FAMILY.get(base.family.name, DEFAULT_TARGETS)
        check_conv_options(algorithm, targets, {"conv_rank": conv_rank, "conv_alpha": conv_alpha})
        alpha = float(rank) if alpha is None else alpha
        config = LoraConfig.from_fields(
            {
                "algorithm": algorithm,
                "targets": targets,
                "rank": rank,
                "alpha": alpha,
                "conv_rank": rank if conv_rank is None else conv_rank,
                "conv_alpha": alpha if conv_alpha is None else conv_alpha,
                "factor": factor,
                "text": text,
                "rank_stabilised": rank_stabilised,
                "dropout": dropout,
                "rank_dropout": rank_dropout,
                "module_dropout": module_dropout,
            }
        )
        card = Card(
            kind=cls.kind,
            name=name,
            structure=config.model_dump(mode="json"),
            family=base.family.name,
            base=base.name,
            base_hash=base.hash,
            prediction=base.family.unusual_prediction,
        )
        with disable_inference_mode(), seed_rng(seed):
            lora = cls(card, config.build_deltas(Target.from_model(base)))
        return lora.to(base.device)

    @property
    def target_parts(self) -> frozenset[TargetPart]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the parts of a base that it changes."""
        return frozenset("unet" if name.startswith(UNET_PREFIX) else "text" for name in self.layers)

    @property
    def layers(self) -> dict[str, Delta]:
        """Return its deltas by kohya's names of their layers."""
        return {name: delta for name, delta in self.named_children() if isinstance(delta, Delta)}

    def part_of(self, parameter: str) -> TargetPart | Literal["words"]:
        """Return the part of the base in which a parameter acts."""
        return "unet" if parameter.startswith(UNET_PREFIX) else "text"

    def with_block_weights(self, block_weights: Mapping[str, float]) -> Self:
        """Return a LoRA that shares these weights, with a factor of the strength for each block.

        Args:
            block_weights: Factors by name of the block: BASE, IN00 to IN11, MID, OUT00 to OUT11. Blocks that are not
                named keep their factors; earlier factors are multiplied.

        Raises:
            BadStrength: If a factor is not finite.
            UnknownName: If a block is unknown.
        """
        check_block_weights(block_weights)
        products = {name: weight * self.block_weights.get(name, 1.0) for name, weight in block_weights.items()}
        return self._copy_with(self.layers, {**self.block_weights, **products})

    def with_ranks(self, rank: int) -> Self:
        """Return a LoRA with only the first ranks of each layer, at the same scale; they are views of its weights."""
        if rank < 1:
            raise BadOverlay(f"a LoRA of rank {rank} changes nothing: give a rank of 1 or more")
        layers = {name: delta.truncate_rank(rank) for name, delta in self.layers.items()}
        return self._copy_with(layers, self.block_weights)

    def _copy_with(self, layers: Mapping[str, Delta], block_weights: Mapping[str, float]) -> Self:
        copy = type(self)(
            self.card,
            layers,
            block_weights=block_weights,
            bundled_embeddings=self.bundled_embeddings,
            metadata=self.metadata,
            unmatched_keys=self.unmatched_keys,
        )
        copy.train(self.training)
        copy.source = self.source
        return copy

    def deltas(self, target: Target) -> Mapping[str, Delta]:
        """Return its deltas by the target's names of their layers, without those that the target lacks."""
        names = names_in_files(target)
        return {
            names[name]: fit_input_channels(delta, target.layer(names[name]), names[name])
            for name, delta in self.layers.items()
            if name in names
        }

    def strength_factor(self, target: Target, name: str) -> float:
        """Return the factor by which the strength is multiplied in the target's layer of this name."""
        block_weight = self.block_weights.get(block_of(target, name), 1.0) if self.block_weights else 1.0
        return block_weight * target.combine_weight

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register a hook on all layers that it changes."""
        deltas = self.deltas(target)
        check_compatible(self, target, deltas)
        check_side(target, deltas, strength)
        for name, layer in target.attention_layers():
            if any(f"unet.{name}.{projection}" in deltas for projection in ("to_q", "to_k", "to_v")):
                yield from guard_against_fusion(name, layer)
        recorder = TimestepRecorder()
        if any(delta.uses_timesteps for delta in deltas.values()):
            yield from record_timesteps(target.unet, recorder)
        for name, delta in deltas.items():
            if target.is_reachable(name):
                is_in_unet = name.startswith("unet.")
                change = DeltaChange(
                    delta,
                    strength if is_in_unet else strength.text,
                    self.strength_factor(target, name),
                    target.meter.add_output_layer(name),
                    recorder if delta.uses_timesteps and is_in_unet else None,
                )
                target.changes.append(change)
                yield from hook_outputs(target.layer(name), change)


def _build_delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    try:
        return build_delta(tensors)
    except BadOverlay as error:
        raise BadOverlay(f"{name[:120]}: {error}") from None
