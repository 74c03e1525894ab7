"""Write a base as a single-file checkpoint under LDM's names, which A1111, ComfyUI and diffusers open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import UnsupportedBase
from velatura.formats import vocabulary
from velatura.formats.checkpoints.config_hints import CONFIG_HINTS, CONFIG_HINTS_KEY, config_hints
from velatura.formats.checkpoints.ldm_families import TEXT_ENCODER_LAYOUTS, V_MARKER, ZERO_SNR_MARKER
from velatura.formats.checkpoints.ldm_keys import unet_to_ldm, vae_to_ldm
from velatura.formats.metadata import model_spec_fields
from velatura.tensors import Contents, StrPath, write_safetensors


def write(
    base: Base, path: StrPath, metadata: Mapping[str, str] | None = None, *, dtype: torch.dtype | None = None
) -> None:
    """Write a base as one checkpoint. It is written beside its place and then renamed.

    Settings that neither the shapes of the tensors nor the family determine are stored in the metadata, as is a
    vocabulary other than CLIP's: the tiny base needs both, an SD1 neither.

    Args:
        base: The base.
        path: Path of the checkpoint.
        metadata: More metadata, beside ModelSpec's fields.
        dtype: Precision of the weights; the default is the base's own.

    Raises:
        UnsupportedBase: The base has settings or a noise schedule that a checkpoint cannot store.
        BadFile: The file cannot be written.
    """
    contents = checkpoint_contents(base)
    write_safetensors(path, contents.tensors, {**contents.metadata, **(metadata or {})}, dtype=dtype)


def checkpoint_contents(base: Base) -> Contents:
    """Return the contents of the checkpoint that a base would be written to, without writing it.

    Args:
        base: The base. Its tensors are shared, not copied, except for those that the checkpoint joins into one.

    Returns:
        Tensors and metadata. The path is the base's name; the file does not exist.

    Raises:
        UnsupportedBase: The base has settings or a noise schedule that a checkpoint cannot store.
    """
    family_name = _family_to_write(base)
    tensors = {
        **unet_to_ldm(base.unet.state_dict()),
        **vae_to_ldm(base.vae.state_dict()),
        **_markers(base, family_name),
    }
    for layout, encoder in zip(TEXT_ENCODER_LAYOUTS[family_name], base.text.encoders, strict=True):
        tensors |= layout.to_checkpoint(encoder.model.state_dict())
    metadata = model_spec_fields(base.family, base.name) | _extra_metadata(base, family_name)
    return Contents(Path(base.name), tensors, metadata)


def _family_to_write(base: Base) -> str:
    """Return the family whose names a base is written under, one of TEXT_ENCODER_LAYOUTS.

    Raises:
        UnsupportedBase: The base has a noise schedule other than Stable Diffusion's.
    """
    if not torch.equal(base.schedule.alphas_cumprod, NoiseSchedule(zero_snr=base.schedule.zero_snr).alphas_cumprod):
        raise UnsupportedBase(
            f"{base.name} has another noise schedule than Stable Diffusion, which a checkpoint cannot store: save the "
            "base as a folder"
        )
    if len(base.text.encoders) > 1:
        return "SDXL"
    return "SD2" if base.family.name == "SD2" else "SD1"


def _markers(base: Base, family_name: str) -> dict[str, Tensor]:
    """Return the empty tensors that tell other programs of velocity prediction and of a schedule to zero SNR."""
    markers = {
        V_MARKER: base.family.prediction == "v_prediction" and family_name != "SD2",
        ZERO_SNR_MARKER: base.schedule.zero_snr,
    }
    return {name: torch.empty(0) for name, is_set in markers.items() if is_set}


def _extra_metadata(base: Base, family_name: str) -> dict[str, str]:
    """Return metadata for the settings and the vocabulary that shapes and family do not determine."""
    hints = config_hints(base.unet, base.vae, [encoder.model for encoder in base.text.encoders])
    metadata = {} if hints == CONFIG_HINTS[family_name] else {CONFIG_HINTS_KEY: json.dumps(hints)}
    return metadata | vocabulary.tokenizer_metadata(base.text.tokenizer)
