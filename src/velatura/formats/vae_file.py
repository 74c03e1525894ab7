"""Autoencoders: within a checkpoint, or in a file of their own under LDM's names or diffusers'."""

from __future__ import annotations

from pathlib import Path

from velatura.errors import BadFile
from velatura.formats.ldm_keys import VAE_PREFIX, vae_from_ldm
from velatura.formats.sources import Source, Sources, as_product, unchanged
from velatura.tensors import Contents

ENDINGS = (".vae.safetensors", ".vae.pt", ".vae.ckpt")
DIFFUSERS = "encoder.down_blocks."
LDM = "encoder.down."
ATTENDS = ".attentions."
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NOT_READ = ("loss.", "model_ema.")  # what training leaves


def sources(contents: Contents) -> Sources:
    """Where diffusers' tensors of an autoencoder are in a file that holds one, whatever else it holds."""
    keys = [key for key in contents.tensors if not key.removeprefix(VAE_PREFIX).startswith(NOT_READ)]
    for prefix in (VAE_PREFIX, ""):
        if any(key.startswith(prefix + LDM) for key in keys):
            return vae_from_ldm(keys, prefix)
    if any(key.startswith(DIFFUSERS) for key in keys):
        return {current(key): Source(key, as_product if ATTENDS in key else unchanged) for key in keys}
    raise BadFile(
        f"{contents.path.name} holds no autoencoder: give the path of one (vae), or put it beside the checkpoint as "
        f"{contents.path.stem}{ENDINGS[0]}"
    )


def current(key: str) -> str:
    """What diffusers calls an autoencoder's tensor today: its attention was named otherwise once."""
    return ".".join(OLD_ATTENTION.get(each, each) for each in key.split(".")) if ATTENDS in key else key


def beside(checkpoint: Path) -> Path | None:
    """The autoencoder that lies beside a checkpoint under its stem, as A1111 finds it."""
    return next((path for end in ENDINGS if (path := checkpoint.with_name(checkpoint.stem + end)).is_file()), None)
