"""Tell which family an autoencoder in a file of its own is of, and warn where that is not known.

The autoencoders of SD1, SD2 and SDXL have the same tensors of the same shapes. They differ in the scale of their
latents, which no tensor states.
"""

from __future__ import annotations

import re
from pathlib import Path

from velatura.base.families import FAMILIES, Family
from velatura.errors import WrongBase, warn
from velatura.files import short_hash
from velatura.formats.checkpoints.config_hints import CONFIG_HINTS
from velatura.formats.metadata import stated_model
from velatura.formats.parts.choose_text import with_article
from velatura.tensors import Contents

# The first ten digits of the SHA-256 of published autoencoders, which are what A1111 shows as "VAE hash"
FAMILY_BY_HASH = {
    "735e4c3a44": "SD1",  # vae-ft-mse-840000-ema-pruned.safetensors
    "c6a580b13a": "SD1",  # vae-ft-mse-840000-ema-pruned.ckpt
    "df3c506e51": "SD1",  # kl-f8-anime2.ckpt
    "f921fb3f29": "SD1",  # animevae.pt, anything-v4.0.vae.pt
    "63aeecb90f": "SDXL",  # sdxl_vae.safetensors
    "235745af8d": "SDXL",  # sdxl_vae.safetensors of sdxl-vae-fp16-fix
    "1598f3d249": "SDXL",  # vae/diffusion_pytorch_model.safetensors of stable-diffusion-xl-base-1.0
}
# Bytes of such files: 83.7 million values in 16 or 32 bits, in some with their averages and a discriminator
PUBLISHED_SIZES = range(160_000_000, 900_000_000)
FAMILY_BY_WORD = (
    (re.compile(r"(?<![a-z])(sd)?xl|xl(?![a-z])|pony|illustrious", re.IGNORECASE), "SDXL"),
    (
        re.compile(r"840000|560000|ft[\W_]?(mse|ema)|kl[\W_]?f8|anime[\W_]?vae|sd[\W_]?v?[12](?!\d\d)", re.IGNORECASE),
        "SD1",
    ),
)


def check_vae_family(contents: Contents, family: Family, *, warns_of_unknown: bool = True) -> None:
    """Refuse an autoencoder that is known to be of another family, and warn of one whose family is not known.

    Args:
        contents: The file of an autoencoder alone.
        family: The family of the UNet.
        warns_of_unknown: Warn if nothing tells the family; else only if its name tells another one.

    Raises:
        WrongBase: The file's metadata, or its hash, tell another family.
    """
    if family.name not in CONFIG_HINTS:  # not a published one, whose scale nothing tells
        return
    name = contents.path.name
    known = stated_model(contents.metadata.get("modelspec.architecture", "")) or _published_family(contents.path)
    if known in CONFIG_HINTS:
        if _has_other_scale(known, family):
            raise WrongBase(
                f"{name} is the autoencoder of {with_article(known)}, whose latents have another scale, and the UNet "
                f"is {with_article(family.name)}: give the autoencoder of {with_article(family.name)} (--vae)"
            )
        return
    named = next((word_family for pattern, word_family in FAMILY_BY_WORD if pattern.search(contents.path.stem)), "")
    other = "SD1" if family.name == "SDXL" else "SDXL"
    if named and _has_other_scale(named, family):
        warn(
            f"{name} is used with {with_article(family.name)}, and by its name it is the autoencoder of "
            f"{with_article(named)}, which has the same tensors and another scale of latents: if pictures come out "
            f"discoloured or blotchy, give the autoencoder of {with_article(family.name)} (--vae)"
        )
    elif not named and warns_of_unknown:
        warn(
            f"{name} does not say whether it is the autoencoder of {with_article(family.name)} or of "
            f"{with_article(other)}, which have the same tensors: it is taken for one of {with_article(family.name)}; "
            "if pictures come out discoloured or blotchy, it is the other"
        )


def _published_family(path: Path) -> str:
    """Return the family of a published file, "" for any other; a file of another size is not hashed for that."""
    if not path.is_file() or path.stat().st_size not in PUBLISHED_SIZES:
        return ""
    return FAMILY_BY_HASH.get(short_hash(path), "")


def _has_other_scale(name: str, family: Family) -> bool:
    return FAMILIES[name].scaling_factor != family.scaling_factor
