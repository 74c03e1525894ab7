"""Block weights: a strength of its own for each block of the UNet, as people write them down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from velatura.errors import BadRecipe, UnknownName
from velatura.formats.ldm_keys import UNET_PREFIX

BASE = "BASE"
PLACE = re.compile(re.escape(UNET_PREFIX) + r"(input|middle|output)_blocks?(?:\.(\d+))?\.")
# what stands before the first block, and behind the last
BEFORE = tuple(f"{UNET_PREFIX}{each}." for each in ("time_embed", "label_emb"))
BEHIND = f"{UNET_PREFIX}out."
EMA = "model_ema."
RANGE = re.compile(r"([A-Z]+)(\d\d)-([A-Z]+)(\d\d)")


@dataclass(frozen=True)
class Blocks:
    """The blocks of a UNet by their names on such lists: IN00 to IN11, M00, OUT00 to OUT11 in an SD1, fewer in an SDXL.

    place: where each tensor belongs; one that is in no block belongs to BASE. What embeds the time belongs to the first
    block, and the last convolution to the last, as people's merging programs count them.
    """

    place: Mapping[str, str]

    @classmethod
    def of(cls, keys: Iterable[str]) -> Blocks:
        """Find the blocks in the names of a checkpoint's tensors; averaged weights belong where their twins do."""
        found = {key: name for key in keys if (name := _block(key))}
        last = max((each for each in found.values() if each.startswith("OUT")), default=BASE)
        found |= {key: last for key, name in found.items() if name == BEHIND}
        twins = {EMA + key.removeprefix("model.").replace(".", ""): name for key, name in found.items()}
        return cls(found | twins)

    @cached_property
    def names(self) -> list[str]:
        """Their names in the order of lists."""
        order = {"IN": 0, "M": 1, "OU": 2}
        return sorted(set(self.place.values()), key=lambda name: (order[name.rstrip("0123456789T")], name))

    def strengths(self, asked: str | Sequence[float] | Mapping[str, float]) -> dict[str, float]:
        """The strength of each block that has one of its own, from numbers, from a text of them, or by name.

        Numbers stand in the order of the names, BASE's before them or left out. A text may also name some blocks:
        "IN=0.2, IN04-IN07=0.6, M00=1, BASE=0", where a later one wins.
        """
        if isinstance(asked, Mapping):
            return {each: float(strength) for name, strength in asked.items() for each in self._named(name)}
        if not isinstance(asked, str):
            return self._in_order([float(each) for each in asked])
        parts = [each.strip() for each in re.split(r"[,\n]", asked) if each.strip()]
        if not any("=" in each for each in parts):
            return self._in_order([_number(each) for each in parts])
        pairs = [each.partition("=") for each in parts]
        return {block: _number(number) for name, _, number in pairs for block in self._named(name.strip().upper())}

    def _in_order(self, numbers: Sequence[float]) -> dict[str, float]:
        if not self.names:
            raise BadRecipe("there is no UNet whose blocks could have strengths of their own: leave them out")
        known = [BASE, *self.names]
        if len(numbers) == len(known) - 1:
            known = known[1:]
        if len(numbers) != len(known):
            raise BadRecipe(
                f"{len(numbers)} block strengths are not as many as this UNet has blocks: give {len(self.names)} for "
                f"{self.names[0]} to {self.names[-1]}, or {len(self.names) + 1} with {BASE} first"
            )
        return dict(zip(known, numbers, strict=True))

    def _named(self, name: str) -> list[str]:
        """The blocks that a name, the beginning of names, or a range of names stands for."""
        known = [BASE, *self.names]
        name = "M00" if name == "MID" else name  # which a LoRA's lists say
        if name in known:
            return [name]
        if (found := RANGE.fullmatch(name)) and found[1] == found[3]:
            listed = [each for each in self.names if name[: len(found[1]) + 2] <= each <= found[3] + found[4]]
        else:
            listed = [each for each in self.names if name in {"IN", "M", "OUT"} and each.rstrip("0123456789") == name]
        if not listed:
            raise UnknownName.among("block of this UNet", name, [*known, "IN", "OUT"])
        return listed


def _block(key: str) -> str:
    if key.startswith(BEFORE):
        return "IN00"
    if key.startswith(BEHIND):
        return BEHIND
    found = PLACE.match(key)
    if not found:
        return ""
    return "M00" if found[1] == "middle" else f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRecipe(
            f"{text.strip()[:40]!r} is no strength of a block: write numbers, as in 0.2 or IN04=0.2"
        ) from None
