"""Autoencoders (VAE) inside a checkpoint, or in a file of their own under LDM's or diffusers' names."""

from __future__ import annotations

from pathlib import Path

from velatura.errors import BadFile, choose_number, quantity, warn
from velatura.formats.check_texts import shorten_keys
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX, keys_below, rename_vae_attention, vae_from_ldm
from velatura.formats.checkpoints.tensor_sources import TensorSource, TensorSources, as_matrix, identity
from velatura.tensors import Contents, open_state_dict

VAE_SUFFIXES = (".vae.safetensors", ".vae.pt", ".vae.ckpt")
DIFFUSERS_MARK = "encoder.down_blocks."
LDM_MARK = "encoder.down."
ATTENTION_MARK = ".attentions."
PREFIXES = (VAE_PREFIX, "vae.", "module.", "")  # LDM's, ComfyUI's and other savers', DataParallel's
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
IGNORED_PREFIXES = ("loss.", "model_ema.")  # left there by training


def sources(contents: Contents) -> TensorSources:
    """Return the sources of an autoencoder's tensors in a file, whatever else the file holds.

    Every tensor below the autoencoder's prefix has a place, or the file is refused.

    Raises:
        BadFile: The file holds no autoencoder, or one with a tensor that has no place in a Stable Diffusion's.
    """
    for prefix in PREFIXES:
        keys = [key for key in contents.tensors if not key.removeprefix(prefix).startswith(IGNORED_PREFIXES)]
        if any(key.startswith(prefix + LDM_MARK) for key in keys):
            try:
                return vae_from_ldm(keys, prefix)
            except BadFile as error:  # of which file, if a checkpoint has a VAE beside it
                raise BadFile(f"{contents.path.name}: {error}") from None
        if any(key.startswith(prefix + DIFFUSERS_MARK) for key in keys):
            names = rename_vae_attention(keys_below(prefix, keys))
            return {
                name: TensorSource(key, as_matrix if ATTENTION_MARK in name else identity)
                for name, key in names.items()
            }
    raise BadFile(
        f"{contents.path.name} holds no autoencoder: give the path of one (vae), or put it beside the checkpoint as "
        f"{contents.path.stem}{VAE_SUFFIXES[0]}"
    )


def warn_of_leftovers(contents: Contents, used: TensorSources) -> None:
    """Warn of tensors in the file of an autoencoder that belong to no part of a base, and that training does not leave.

    Args:
        contents: The file, which holds an autoencoder alone.
        used: The sources of the autoencoder's tensors.
    """
    used_keys = {source.key for source in used.values()}
    leftover = sorted(
        key
        for key in contents.tensors.keys() - used_keys
        if not key.removeprefix(VAE_PREFIX).startswith(IGNORED_PREFIXES)
    )
    if leftover:
        warn(
            f"{contents.path.name} holds {quantity(len(leftover), 'tensor')} that no autoencoder has "
            f"({shorten_keys(leftover)}): {choose_number(len(leftover), 'it is', 'they are')} ignored"
        )


def has_vae(contents: Contents) -> bool:
    """Return True if a file holds an autoencoder, alone or in a checkpoint."""
    return bool(vae_keys(contents))


def vae_keys(contents: Contents) -> set[str]:
    """Return the keys of the autoencoder in a file, whether it is whole or not; none if there is none."""
    for prefix in PREFIXES:
        if any(key.startswith((prefix + LDM_MARK, prefix + DIFFUSERS_MARK)) for key in contents.tensors):
            return {key for key in contents.tensors if key.startswith(tuple(prefix + part for part in PARTS))}
    return set()


def open_vae(path: Path) -> Contents:
    """Open a file that holds an autoencoder, the diffusers folder of one, or the folder of a whole base.

    Raises:
        BadFile: The file or the weights in the folder are missing or damaged.
    """
    if not path.is_dir():
        return open_state_dict(path)
    vae_folder = path / "vae" if (path / "vae").is_dir() else path
    return open_weights(vae_folder, "diffusion_pytorch_model")


def find_vae_beside(checkpoint: Path) -> Path | None:
    """Find the autoencoder beside a checkpoint that has its stem, as A1111 does, or return None."""
    candidates = [checkpoint.with_name(checkpoint.stem + suffix) for suffix in VAE_SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)
