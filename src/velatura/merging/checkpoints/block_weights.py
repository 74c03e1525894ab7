"""Block weights: a strength of its own for each block of the UNet, as people write them down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from velatura.errors import BadRecipe, UnknownName
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX

BASE_BLOCK = "BASE"
UNET_BLOCK_KEY = re.compile(re.escape(UNET_PREFIX) + r"(input|middle|output)_blocks?(?:\.(\d+))?\.")
# what stands before the first block, and behind the last
INPUT_PREFIXES = tuple(f"{UNET_PREFIX}{name}." for name in ("time_embed", "label_emb"))
OUTPUT_PREFIX = f"{UNET_PREFIX}out."
EMA_PREFIX = "model_ema."
BLOCK_RANGE = re.compile(r"([A-Z]+)(\d\d)-([A-Z]+)(\d\d)")


@dataclass(frozen=True)
class UNetBlocks:
    """The blocks of a UNet by their names on such lists: IN00 to IN11, M00, OUT00 to OUT11 in an SD1, fewer in an SDXL.

    place: where each tensor belongs; one that is in no block belongs to BASE. What embeds the time belongs to the first
    block, and the last convolution to the last, as people's merging programs count them.
    """

    block_by_key: Mapping[str, str]

    @classmethod
    def from_keys(cls, keys: Iterable[str]) -> UNetBlocks:
        """Find the blocks in the names of a checkpoint's tensors; averaged weights belong where their twins do."""
        block_by_key = {key: name for key in keys if (name := _block_name(key))}
        last_block = max((block for block in block_by_key.values() if block.startswith("OUT")), default=BASE_BLOCK)
        block_by_key |= {key: last_block for key, name in block_by_key.items() if name == OUTPUT_PREFIX}
        ema_blocks = {
            EMA_PREFIX + key.removeprefix("model.").replace(".", ""): name for key, name in block_by_key.items()
        }
        return cls(block_by_key | ema_blocks)

    @cached_property
    def names(self) -> list[str]:
        """Their names in the order of lists."""
        order = {"IN": 0, "M": 1, "OU": 2}
        return sorted(set(self.block_by_key.values()), key=lambda name: (order[name.rstrip("0123456789T")], name))

    def strengths(self, values: str | Sequence[float] | Mapping[str, float]) -> dict[str, float]:
        """The strength of each block that has one of its own, from numbers, from a text of them, or by name.

        Numbers stand in the order of the names, BASE's before them or left out. A text may also name some blocks:
        "IN=0.2, IN04-IN07=0.6, M00=1, BASE=0", where a later one wins.
        """
        if isinstance(values, Mapping):
            return {block: float(strength) for name, strength in values.items() for block in self._expand_name(name)}
        if not isinstance(values, str):
            return self._assign_in_order([float(value) for value in values])
        parts = [part.strip() for part in re.split(r"[,\n]", values) if part.strip()]
        if not any("=" in part for part in parts):
            return self._assign_in_order([_parse_strength(part) for part in parts])
        pairs = [part.partition("=") for part in parts]
        return {
            block: _parse_strength(number)
            for name, _, number in pairs
            for block in self._expand_name(name.strip().upper())
        }

    def _assign_in_order(self, numbers: Sequence[float]) -> dict[str, float]:
        if not self.names:
            raise BadRecipe("there is no UNet whose blocks could have strengths of their own: leave them out")
        block_names = [BASE_BLOCK, *self.names]
        if len(numbers) == len(block_names) - 1:
            block_names = block_names[1:]
        if len(numbers) != len(block_names):
            raise BadRecipe(
                f"{len(numbers)} block strengths are not as many as this UNet has blocks: give {len(self.names)} for "
                f"{self.names[0]} to {self.names[-1]}, or {len(self.names) + 1} with {BASE_BLOCK} first"
            )
        return dict(zip(block_names, numbers, strict=True))

    def _expand_name(self, name: str) -> list[str]:
        """The blocks that a name, the beginning of names, or a range of names stands for."""
        known_names = [BASE_BLOCK, *self.names]
        name = "M00" if name == "MID" else name  # which a LoRA's lists say
        if name in known_names:
            return [name]
        if (match := BLOCK_RANGE.fullmatch(name)) and match[1] == match[3]:
            blocks = [block for block in self.names if name[: len(match[1]) + 2] <= block <= match[3] + match[4]]
        else:
            blocks = [
                block for block in self.names if name in {"IN", "M", "OUT"} and block.rstrip("0123456789") == name
            ]
        if not blocks:
            raise UnknownName.with_suggestions("block of this UNet", name, [*known_names, "IN", "OUT"])
        return blocks


def _block_name(key: str) -> str:
    if key.startswith(INPUT_PREFIXES):
        return "IN00"
    if key.startswith(OUTPUT_PREFIX):
        return OUTPUT_PREFIX
    match = UNET_BLOCK_KEY.match(key)
    if not match:
        return ""
    return "M00" if match[1] == "middle" else f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"


def _parse_strength(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRecipe(
            f"{text.strip()[:40]!r} is no strength of a block: write numbers, as in 0.2 or IN04=0.2"
        ) from None
