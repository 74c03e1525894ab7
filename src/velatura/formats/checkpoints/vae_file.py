"""Autoencoders (VAE) inside a checkpoint, or in a file of their own under LDM's or diffusers' names."""

from __future__ import annotations

from pathlib import Path

from velatura.errors import BadFile
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX, vae_from_ldm
from velatura.formats.checkpoints.tensor_sources import TensorSource, TensorSources, as_matrix, identity
from velatura.tensors import Contents

VAE_SUFFIXES = (".vae.safetensors", ".vae.pt", ".vae.ckpt")
DIFFUSERS_MARK = "encoder.down_blocks."
LDM_MARK = "encoder.down."
ATTENTION_MARK = ".attentions."
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
IGNORED_PREFIXES = ("loss.", "model_ema.")  # left there by training


def sources(contents: Contents) -> TensorSources:
    """Return the sources of an autoencoder's tensors in a file, whatever else the file holds.

    Raises:
        BadFile: The file holds no autoencoder.
    """
    keys = [key for key in contents.tensors if not key.removeprefix(VAE_PREFIX).startswith(IGNORED_PREFIXES)]
    for prefix in (VAE_PREFIX, ""):
        if any(key.startswith(prefix + LDM_MARK) for key in keys):
            return vae_from_ldm(keys, prefix)
    if any(key.startswith(DIFFUSERS_MARK) for key in keys):
        return {
            to_current_key(key): TensorSource(key, as_matrix if ATTENTION_MARK in key else identity) for key in keys
        }
    raise BadFile(
        f"{contents.path.name} holds no autoencoder: give the path of one (vae), or put it beside the checkpoint as "
        f"{contents.path.stem}{VAE_SUFFIXES[0]}"
    )


def to_current_key(key: str) -> str:
    """Return diffusers' current name of an autoencoder's tensor; old versions named its attention differently."""
    if ATTENTION_MARK not in key:
        return key
    return ".".join(OLD_ATTENTION_NAMES.get(name, name) for name in key.split("."))


def find_vae_beside(checkpoint: Path) -> Path | None:
    """Find the autoencoder beside a checkpoint that has its stem, as A1111 does, or return None."""
    candidates = [checkpoint.with_name(checkpoint.stem + suffix) for suffix in VAE_SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)
