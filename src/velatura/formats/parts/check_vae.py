"""Refuse an autoencoder of another family than the UNet, as far as its sizes and its settings tell."""

from __future__ import annotations

from velatura.base.families import FAMILIES, FAMILY_BY_CROSS_WIDTH, Family
from velatura.errors import WrongBase
from velatura.formats.checkpoints.config_hints import CONFIG_HINTS
from velatura.formats.checkpoints.ldm_config import vae_config
from velatura.formats.parts.choose_text import NeededText, with_article
from velatura.formats.parts.found_parts import FoundParts
from velatura.formats.parts.model_part import ModelPart
from velatura.formats.parts.vae_family import check_vae_family

SCALING_TOLERANCE = 1e-4  # 0.18215 and 0.13025 are the scales of the published families


def check_vae(unet: ModelPart, vae: ModelPart, place: FoundParts) -> None:
    """Refuse an autoencoder that is known to be of another family than the UNet.

    The autoencoders of SD1, SD2 and SDXL have the same tensors. The folder or the base around one tells for which scale
    of latents it was trained; for one in a file of its own see `check_vae_family`.

    Args:
        unet: The UNet.
        vae: The autoencoder.
        place: The file or folder that it is in.

    Raises:
        WrongBase: It is of another family; both sides are named.
    """
    config, unet_latents = vae_config(vae.shapes), unet.shapes["conv_out.weight"].shape[0]
    if config["latent_channels"] != unet_latents:
        raise WrongBase(
            f"{vae.place.name} is an autoencoder of {config['latent_channels']} latent channels, and the UNet of "
            f"{unet.place.name} makes {unet_latents}: give the autoencoder of an SD1, SD2 or SDXL (--vae)"
        )
    family = _family_of(unet)
    if family is None:
        return
    owner = f"the UNet of {unet.place.name} is {with_article(family.name)}"
    advice = f"give the autoencoder of {with_article(family.name)} (--vae)"
    scale_factor = 2 ** (len(config["block_out_channels"]) - 1)
    if scale_factor != family.vae_scale_factor:
        raise WrongBase(
            f"{vae.place.name} is an autoencoder of {scale_factor} pixels for each latent, and {owner}, which needs "
            f"{family.vae_scale_factor}: {advice}"
        )
    stated = _stated_scaling(vae, place)
    if stated is None:
        check_vae_family(vae.contents, family)
    is_published = family.name in CONFIG_HINTS
    if is_published and stated is not None and abs(stated - family.scaling_factor) > SCALING_TOLERANCE:
        raise WrongBase(
            f"{vae.place.name} is an autoencoder for latents scaled by {stated:g}, and {owner}, which scales them by "
            f"{family.scaling_factor:g}: {advice}"
        )


def _family_of(unet: ModelPart) -> Family | None:
    return FAMILIES.get(FAMILY_BY_CROSS_WIDTH.get(NeededText.by(unet).width, ""))


def _stated_scaling(vae: ModelPart, place: FoundParts) -> float | None:
    """Return the scale of latents that an autoencoder's folder states, or that the base around it has."""
    stated = None if vae.stored is None else vae.stored.get("scaling_factor")
    if isinstance(stated, int | float):
        return float(stated)
    family = _family_of(place.unet) if place.is_base and place.unet is not None else None
    return None if family is None else family.scaling_factor
