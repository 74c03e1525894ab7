"""Block weights: one strength for each block of the UNet, in the spellings of supermerger and A1111."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from velatura.errors import BadRecipe, UnknownName, choose_number, quantity
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX
from velatura.prompts.strengths import UNetBlock

BlockSide = Literal["base"] | UNetBlock
BlockWeights = str | Sequence[float] | Mapping[str, float]  # as users write them

SUPERMERGER_SIDES: dict[BlockSide, str] = {"in": "IN", "mid": "M", "out": "OUT"}
LDM_SIDES: dict[str, BlockSide] = {"input": "in", "middle": "mid", "output": "out"}
UNET_BLOCK_KEY = re.compile(re.escape(UNET_PREFIX) + r"(input|middle|output)_blocks?(?:\.(\d+))?\.")
# Layers before the first block and after the last one. Merging programs count them to those blocks.
INPUT_PREFIXES = tuple(f"{UNET_PREFIX}{name}." for name in ("time_embed", "label_emb"))
OUTPUT_PREFIX = f"{UNET_PREFIX}out."
EMA_PREFIX = "model_ema."
BLOCK_RANGE = re.compile(r"([A-Z]+)(\d\d)-([A-Z]+)(\d\d)")


class LdmBlock(NamedTuple):
    """A block of the UNet by side and number, as in model.diffusion_model.input_blocks.4."""

    side: BlockSide
    number: int = 0

    @property
    def name(self) -> str:
        """Name in supermerger's lists: IN00, M00, OUT11, or BASE."""
        return f"{SUPERMERGER_SIDES[self.side]}{self.number:02}" if self != BASE_BLOCK else "BASE"


BASE_BLOCK = LdmBlock("base")  # stands for all tensors outside the UNet's blocks


@dataclass(frozen=True)
class UNetBlocks:
    """Blocks of a UNet: 12 in, 1 mid and 12 out in SD1, fewer in SDXL.

    Attributes:
        block_by_key: The block of each tensor in the UNet. The time embedding belongs to the first block and the last
            convolution to the last one, as in other merging programs.
    """

    block_by_key: Mapping[str, LdmBlock]

    @classmethod
    def from_keys(cls, keys: Iterable[str]) -> UNetBlocks:
        """Find the blocks by the keys of a checkpoint; an EMA weight belongs to the block of its plain weight."""
        blocks: dict[str, LdmBlock] = {}
        for key in keys:
            block = _block_of_key(key)
            if block is not None:
                blocks[key] = block
        last_block = max((block for block in blocks.values() if block.side == "out"), default=BASE_BLOCK)
        blocks |= {key: last_block for key in blocks if key.startswith(OUTPUT_PREFIX)}
        ema_blocks = {EMA_PREFIX + key.removeprefix("model.").replace(".", ""): block for key, block in blocks.items()}
        return cls(blocks | ema_blocks)

    @cached_property
    def blocks(self) -> list[LdmBlock]:
        """Blocks in the order of block weight lists."""
        sides = list(SUPERMERGER_SIDES)
        unet_blocks = set(self.block_by_key.values()) - {BASE_BLOCK}
        return sorted(unet_blocks, key=lambda block: (sides.index(block.side), block.number))

    @property
    def names(self) -> list[str]:
        """Names of the blocks in supermerger's lists, in their order."""
        return [block.name for block in self.blocks]

    def block_of(self, key: str) -> LdmBlock:
        """Return the block of a tensor, BASE_BLOCK if it is in none."""
        return self.block_by_key.get(key, BASE_BLOCK)

    def strengths(self, weights: BlockWeights) -> dict[LdmBlock, float]:
        """Read block weights as users write them.

        Args:
            weights: One number for each block in the order of `names`, with or without one for BASE before them, as a
                sequence or as text. Or strengths by name: `{"IN04": 0.6}`, or text such as
                "IN=0.2, IN04-IN07=0.6, M00=1, BASE=0", in which a later entry overrides an earlier one.

        Returns:
            The strength of each block that is named.

        Raises:
            BadRecipe: The count of numbers does not match the count of blocks, or an entry is not a number.
            UnknownName: A block does not exist in this UNet.
        """
        if isinstance(weights, Mapping):
            return {block: float(strength) for name, strength in weights.items() for block in self._expand_name(name)}
        if not isinstance(weights, str):
            return self._assign_in_order([float(weight) for weight in weights])
        entries = [entry.strip() for entry in re.split(r"[,\n]", weights) if entry.strip()]
        if not any("=" in entry for entry in entries):
            return self._assign_in_order([_parse_strength(entry) for entry in entries])
        pairs = [entry.partition("=") for entry in entries]
        return {block: _parse_strength(number) for name, _, number in pairs for block in self._expand_name(name)}

    def _assign_in_order(self, numbers: Sequence[float]) -> dict[LdmBlock, float]:
        if not self.blocks:
            raise BadRecipe("this model has no UNet, so it takes no block weights: leave them out")
        blocks = [BASE_BLOCK, *self.blocks]
        if len(numbers) == len(self.blocks):
            blocks = self.blocks
        if len(numbers) != len(blocks):
            raise BadRecipe(
                f"{quantity(len(numbers), 'block weight')} {choose_number(len(numbers), 'does', 'do')} not match the "
                f"blocks of this UNet: give {len(self.blocks)} for "
                f"{self.names[0]} to {self.names[-1]}, or {len(self.blocks) + 1} with BASE first"
            )
        return dict(zip(blocks, numbers, strict=True))

    def _expand_name(self, name: str) -> list[LdmBlock]:
        """Return the blocks that a name (IN04), a side (IN) or a range (IN04-IN07) stands for."""
        name = name.strip().upper()
        name = "M00" if name == "MID" else name  # LoRA block weights call it MID
        by_name = {block.name: block for block in (BASE_BLOCK, *self.blocks)}
        if name in by_name:
            return [by_name[name]]
        blocks = [block for block in self.blocks if SUPERMERGER_SIDES[block.side] == name]
        block_range = BLOCK_RANGE.fullmatch(name)
        if block_range and block_range[1] == block_range[3]:
            first, last = name.split("-")
            blocks = [block for block in self.blocks if first <= block.name <= last]
        if not blocks:
            raise UnknownName.with_suggestions("block of this UNet", name, [*by_name, "IN", "OUT"])
        return blocks


def _block_of_key(key: str) -> LdmBlock | None:
    if key.startswith(INPUT_PREFIXES):
        return LdmBlock("in")
    if key.startswith(OUTPUT_PREFIX):
        return BASE_BLOCK  # until the last block is known
    match = UNET_BLOCK_KEY.match(key)
    if not match:
        return None
    side = LDM_SIDES[match[1]]
    return LdmBlock(side, 0 if side == "mid" else int(match[2]))


def _parse_strength(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRecipe(
            f"{text.strip()[:40]!r} is not the strength of a block: write numbers, as in 0.2 or IN04=0.2"
        ) from None
