"""What a checkpoint's UNet predicts, noise or velocity, and after which schedule: told by the file, or tried out."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from velatura.base.families import Prediction
from velatura.errors import UnsupportedBase, VelaturaWarning
from velatura.files import open_for_reading
from velatura.formats.checkpoints.ldm_families import V_MARKER
from velatura.formats.metadata import MODEL_SPEC_PREDICTIONS
from velatura.tensors import Contents

PREDICTION_KEY = "modelspec.prediction_type"
YAML_PARAMETERIZATION = re.compile(r"""^\s*parameterization:\s*["']?(eps|v)["']?\s*$""", re.MULTILINE)
YAML_PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "v": "v_prediction"}
MAX_YAML_BYTES = 2**16  # bytes; A1111's have about two thousand


def read_prediction(contents: Contents) -> Prediction | None:
    """What the file says: by an empty tensor, as trainers mark it, or by its header."""
    if V_MARKER in contents.tensors:
        return "v_prediction"
    stated = contents.metadata.get(PREDICTION_KEY)
    if stated is None:
        return None
    prediction = next(
        (
            diffusers_name
            for diffusers_name, spec_name in MODEL_SPEC_PREDICTIONS.items()
            if stated in {diffusers_name, spec_name}
        ),
        None,
    )
    if prediction is None:
        raise UnsupportedBase(
            f"{contents.path.name} predicts {stated!r}, neither noise nor velocity: open another base"
        )
    return cast("Prediction", prediction)


@torch.no_grad()
def detect_prediction(unet: UNet2DConditionModel) -> Prediction:
    """What a UNet predicts of a grey picture at the noisiest step: velocity is then far below what it was given.

    A1111 tells the two kinds of SD2 apart so: by a mean below -1.
    """
    tensor_options: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.full((1, 4, 8, 8), 0.5, **tensor_options)
    context = torch.full((1, 2, int(unet.config["cross_attention_dim"])), 0.5, **tensor_options)
    untyped: Any = unet
    output: Tensor = untyped(latents, torch.tensor(999, device=unet.device), context, return_dict=False)[0]
    return "v_prediction" if float((output - latents).float().mean()) < -1 else "epsilon"


def warn_of_yaml_conflict(path: Path, predicted: Prediction) -> None:
    """Warn where the .yaml beside a checkpoint, which other programs go by, says another prediction than was found.

    It is looked at as text: nothing in it is built or run.
    """
    yaml_path = path.with_suffix(".yaml")
    if not yaml_path.is_file():
        return
    with open_for_reading(yaml_path) as file:
        text = file.read(MAX_YAML_BYTES).decode(errors="replace")
    match = YAML_PARAMETERIZATION.search(text)
    if match and YAML_PREDICTIONS[match[1]] != predicted:
        conflict = (
            f"{yaml_path.name} says that {path.name} predicts {YAML_PREDICTIONS[match[1]]}; its tensors say {predicted}"
        )
        warnings.warn(f"{conflict}, and are believed: remove the one that is wrong", VelaturaWarning, stacklevel=5)
