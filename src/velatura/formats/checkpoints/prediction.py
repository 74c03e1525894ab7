"""Find out what a UNet predicts, noise (epsilon) or velocity (v): from its file, or by a trial step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from velatura.base.families import Prediction
from velatura.errors import UnsupportedBase, warn
from velatura.files import open_for_reading
from velatura.formats.checkpoints.ldm_families import V_MARKER
from velatura.formats.metadata import MODEL_SPEC_PREDICTIONS
from velatura.tensors import Contents

PREDICTION_KEY = "modelspec.prediction_type"
PREDICTIONS_BY_NAME: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    MODEL_SPEC_PREDICTIONS["v_prediction"]: "v_prediction",
}
YAML_PARAMETERIZATION = re.compile(r"""^\s*parameterization:\s*["']?(eps|v)["']?\s*$""", re.MULTILINE)
YAML_PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "v": "v_prediction"}
MAX_YAML_BYTES = 2**16  # A1111's have about two thousand


def read_prediction(contents: Contents) -> Prediction | None:
    """Return what the file says that its UNet predicts, or None if it does not say.

    Trainers mark velocity by an empty tensor; ModelSpec's metadata names the prediction.

    Raises:
        UnsupportedBase: The metadata names another prediction.
    """
    if V_MARKER in contents.tensors:
        return "v_prediction"
    stated = contents.metadata.get(PREDICTION_KEY)
    if stated is None:
        return None
    if stated not in PREDICTIONS_BY_NAME:
        raise UnsupportedBase(
            f"{contents.path.name} predicts {stated!r}, not noise (epsilon) or velocity (v): open another base"
        )
    return PREDICTIONS_BY_NAME[stated]


@torch.no_grad()
def detect_prediction(unet: UNet2DConditionModel) -> Prediction:
    """Find out what a UNet predicts by one step on constant latents at the noisiest timestep.

    A UNet that predicts velocity returns far less than it was given. The threshold of -1 for the mean difference is
    A1111's, which tells the two kinds of SD2 apart in this way.
    """
    tensor_options: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.full((1, 4, 8, 8), 0.5, **tensor_options)
    context = torch.full((1, 2, int(unet.config["cross_attention_dim"])), 0.5, **tensor_options)
    untyped: Any = unet
    output: Tensor = untyped(latents, torch.tensor(999, device=unet.device), context, return_dict=False)[0]
    return "v_prediction" if float((output - latents).float().mean()) < -1 else "epsilon"


def warn_of_yaml_conflict(path: Path, predicted: Prediction) -> None:
    """Warn if the .yaml beside a checkpoint, which other programs follow, states another prediction.

    The file is searched as text: nothing in it is loaded or run.
    """
    yaml_path = path.with_suffix(".yaml")
    if not yaml_path.is_file():
        return
    with open_for_reading(yaml_path) as file:
        text = file.read(MAX_YAML_BYTES).decode(errors="replace")
    match = YAML_PARAMETERIZATION.search(text)
    if match and YAML_PREDICTIONS[match[1]] != predicted:
        warn(
            f"{yaml_path.name} says that {path.name} predicts {YAML_PREDICTIONS[match[1]]}, but its tensors say "
            f"{predicted}, which is used: delete {yaml_path.name} if the pictures are right"
        )
