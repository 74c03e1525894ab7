"""Averaged weights (EMA), which training keeps beside the last ones, under names without dots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import product

from velatura.errors import BadFile
from velatura.formats.ldm_keys import UNET_PREFIX, UNetLayout

EMA_PREFIX = "model_ema."
DEEPEST_TRANSFORMER = 10  # an SDXL's
PRODUCTS = tuple(f"attn{which}.{name}" for which in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0"))
BLOCK = (*PRODUCTS, "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")
# of an SD1 or SD2, and of an SDXL
LAYOUTS = (
    UNetLayout(2, (True, True, True, False), (False, True, True, True)),
    UNetLayout(2, (False, True, True), (True, True, False)),
)


def has_only_averages(keys: Iterable[str]) -> bool:
    """Whether a checkpoint holds the averaged UNet alone."""
    found = list(keys)
    return any(key.startswith(EMA_PREFIX) for key in found) and not any(key.startswith(UNET_PREFIX) for key in found)


def averages(name: str, keys: Collection[str]) -> dict[str, str]:
    """The averaged weights of a UNet in the file of that name, by the keys of the weights that they stand for."""
    known = list(_names()) if has_only_averages(keys) else [key for key in keys if key.startswith(UNET_PREFIX)]
    dotless = {EMA_PREFIX + key.removeprefix("model.").replace(".", ""): key for key in known}
    found = {dotless[key]: key for key in keys if key in dotless}
    if not found:
        raise BadFile(f"{name} holds no averaged weights (EMA): open it without asking for them")
    return found


def _names() -> Iterator[str]:
    """The names that a UNet's tensors can have, which their forms without dots do not tell."""
    for layout in LAYOUTS:
        for here, there in layout.modules().items():
            inside = _attention() if ".attentions." in here else [""]
            yield from (f"{UNET_PREFIX}{there}{each}.{kind}" for each, kind in product(inside, ("weight", "bias")))


def _attention() -> list[str]:
    blocks = [f".transformer_blocks.{index}.{each}" for index in range(DEEPEST_TRANSFORMER) for each in BLOCK]
    return [".norm", ".proj_in", ".proj_out", *blocks]
