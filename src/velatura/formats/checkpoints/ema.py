"""Averaged weights (EMA) of a UNet, which LDM keeps beside the last weights under names without dots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import product

from velatura.errors import BadFile
from velatura.formats.checkpoints.ldm_keys import SD_LAYOUT, SDXL_LAYOUT, UNET_PREFIX

EMA_PREFIX = "model_ema."
MAX_TRANSFORMER_DEPTH = 10  # an SDXL's
ATTENTION_PROJECTIONS = tuple(
    f"attn{number}.{name}" for number in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")
)
TRANSFORMER_MODULES = (*ATTENTION_PROJECTIONS, "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")


def has_only_ema(keys: Iterable[str]) -> bool:
    """Return True if a checkpoint of these keys holds averaged weights of a UNet and no others."""
    all_keys = list(keys)
    has_ema = any(key.startswith(EMA_PREFIX) for key in all_keys)
    return has_ema and not any(key.startswith(UNET_PREFIX) for key in all_keys)


def find_ema_keys(name: str, keys: Collection[str]) -> dict[str, str]:
    """Find the averaged weights of a UNet in a checkpoint.

    Args:
        name: Name of the file, for messages.
        keys: All keys of the file.

    Returns:
        The keys of the averages by LDM's keys of the last weights.

    Raises:
        BadFile: The file holds no averages.
    """
    ldm_keys = list(_known_unet_keys()) if has_only_ema(keys) else [key for key in keys if key.startswith(UNET_PREFIX)]
    dotless = {EMA_PREFIX + key.removeprefix("model.").replace(".", ""): key for key in ldm_keys}
    ema_keys = {dotless[key]: key for key in keys if key in dotless}
    if not ema_keys:
        raise BadFile(f"{name} holds no averaged weights (EMA): leave out weights='ema'")
    return ema_keys


def _known_unet_keys() -> Iterator[str]:
    """Yield all names that tensors of a UNet can have: names without dots cannot be split without this list."""
    for layout in (SD_LAYOUT, SDXL_LAYOUT):
        for diffusers_name, ldm_name in layout.module_names().items():
            suffixes = _attention_suffixes() if ".attentions." in diffusers_name else [""]
            yield from (
                f"{UNET_PREFIX}{ldm_name}{suffix}.{parameter}"
                for suffix, parameter in product(suffixes, ("weight", "bias"))
            )


def _attention_suffixes() -> list[str]:
    blocks = [
        f".transformer_blocks.{index}.{module}"
        for index in range(MAX_TRANSFORMER_DEPTH)
        for module in TRANSFORMER_MODULES
    ]
    return [".norm", ".proj_in", ".proj_out", *blocks]
