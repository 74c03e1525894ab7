"""LoRAs and what grew out of them: small changes of weights, laid behind the layers that have those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, Self

from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadOverlay
from velatura.overlays.deltas import build_delta
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.hooks.output_hooks import DeltaChange
from velatura.overlays.hooks.seams import Undo, guard_against_fusion, hook_outputs
from velatura.overlays.lora.block_weights import block_of, check_block_weights
from velatura.overlays.lora.compatibility import check_compatible, check_side, outline
from velatura.overlays.lora.config import LoraConfig, check_conv_options, seed_rng
from velatura.overlays.lora.kohya_names import UNET_PREFIX, kohya_names
from velatura.overlays.overlay import Card, Overlay, TargetPart
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target

# vectors by the embedding's name and the text encoder's
BundledEmbeddings = dict[str, dict[str, Tensor]]


class Lora(Overlay):
    """Changes of weights, each a Delta under the name that kohya's files have for its layer, with diffusers' path.

    So lora_unet_mid_block_attentions_0_..., lora_te_text_model_encoder_layers_0_... and, of an SDXL's two towers,
    lora_te1_ and lora_te2_; state_dict() is what such a file holds.
    """

    kind: ClassVar[str] = "lora"

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
            raise BadOverlay("a LoRA of no layers at all cannot be: give it at least one")
        self.card = card.replace(kind=self.kind, outline=outline(deltas.values()))
        self.block_weights = dict(block_weights or {})  # factors for the strength, by block
        self.bundled_embeddings: BundledEmbeddings = bundled_embeddings or {}  # of its file
        self.metadata = dict(metadata or {})  # of its file, as trainers write it
        self.unmatched_keys = tuple(unmatched_keys)  # keys of its file that fit no layer
        for name, delta in deltas.items():
            self.add_module(name, delta)
        if config := LoraConfig.from_structure(self.card.structure):
            config.set_dropouts(deltas.values())
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Refuse: what a LoRA is made of is told by its tensors; see from_tensors."""
        raise BadOverlay(f"{card} is built of its tensors, not of a card: use Lora.from_tensors")

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
    def for_base(
        cls,
        base: Base,
        *,
        rank: int = 16,
        alpha: float | None = None,
        algorithm: str = "lora",
        targets: str = "attention",
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
        """Make an untrained LoRA for a base, which does exactly nothing yet; see LoraStructure for what may be chosen.

        alpha: the rank by default, so that nothing is scaled; conv_rank, conv_alpha: rank and alpha by default; text:
        change the text towers too; seed: torch's own chance if none.
        """
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
        )
        with disable_inference_mode(), seed_rng(seed):
            lora = cls(card, config.build_deltas(Target.from_model(base)))
        return lora.to(base.device)

    @property
    def target_parts(self) -> frozenset[TargetPart]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which parts of a base it has layers of."""
        return frozenset("unet" if name.startswith(UNET_PREFIX) else "text" for name in self.layers)

    @property
    def layers(self) -> dict[str, Delta]:
        """Its deltas by the names of their layers in kohya's files."""
        return {name: delta for name, delta in self.named_children() if isinstance(delta, Delta)}

    def part_of(self, parameter: str) -> TargetPart | Literal["words"]:
        """The part of a base that one of its parameters acts in."""
        return "unet" if parameter.startswith(UNET_PREFIX) else "text"

    def with_block_weights(self, block_weights: Mapping[str, float]) -> Self:
        """The same LoRA, sharing its weights, with a factor for the strength in each block: see lora_blocks.

        Blocks that are not named stay as they are. Factors that it has already are multiplied.
        """
        check_block_weights(block_weights)
        return self._copy_with(
            {
                **self.block_weights,
                **{name: weight * self.block_weights.get(name, 1.0) for name, weight in block_weights.items()},
            }
        )

    def with_ranks(self, rank: int) -> Self:
        """The same LoRA with only the first ranks of each layer, at the same scale; those are views of its weights."""
        if rank < 1:
            raise BadOverlay(f"a LoRA of {rank} ranks does nothing: give 1 or more")
        return self._copy_with(
            self.block_weights, {name: delta.truncate_rank(rank) for name, delta in self.layers.items()}
        )

    def _copy_with(self, block_weights: Mapping[str, float], layers: Mapping[str, Delta] | None = None) -> Self:
        """This one with other strengths for blocks, or other layers."""
        copy = type(self)(
            self.card,
            layers or self.layers,
            block_weights=block_weights,
            bundled_embeddings=self.bundled_embeddings,
            metadata=self.metadata,
            unmatched_keys=self.unmatched_keys,
        )
        copy.train(self.training)
        copy.source = self.source
        return copy

    def deltas(self, target: Target) -> Mapping[str, Delta]:
        """Its deltas by the names that the target has for their layers, those that it lacks left out."""
        names = kohya_names(target)
        return {names[name]: delta for name, delta in self.layers.items() if name in names}

    def strength_factor(self, target: Target, name: str) -> float:
        """By what the strength is multiplied in a layer, by the name that the target has for it."""
        block_weight = self.block_weights.get(block_of(target, name), 1.0) if self.block_weights else 1.0
        return block_weight * target.combine_weight

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang each delta behind its layer."""
        deltas = self.deltas(target)
        check_compatible(self, target, deltas)
        check_side(target, deltas, strength)
        for name, layer in target.attention_layers():
            if any(f"unet.{name}.{projection}" in deltas for projection in ("to_q", "to_k", "to_v")):
                yield from guard_against_fusion(name, layer)
        for name, delta in deltas.items():
            if target.is_reachable(name):
                part_strength = strength if name.startswith("unet.") else strength.text
                change = DeltaChange(
                    delta, part_strength, self.strength_factor(target, name), target.meter.add_output_layer(name)
                )
                target.changes.append(change)
                yield from hook_outputs(target.layer(name), change)


def _build_delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    try:
        return build_delta(tensors)
    except BadOverlay as error:
        raise BadOverlay(f"{name[:120]}: {error}") from None
