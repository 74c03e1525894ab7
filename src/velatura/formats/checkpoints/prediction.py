"""Find out what a UNet predicts, noise (epsilon) or velocity (v): from its file, or by a trial step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from velatura.base.families import PREDICTION_WORDS, Prediction, PredictionWord
from velatura.base.image_condition import CONDITION_BY_CHANNELS, LATENT_CHANNELS
from velatura.errors import UnknownName, UnsupportedBase, warn
from velatura.files import open_for_reading
from velatura.formats.checkpoints.ldm_families import V_MARKER
from velatura.formats.metadata import MODEL_SPEC_PREDICTIONS
from velatura.tensors import Contents

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

PREDICTION_KEY = "modelspec.prediction_type"
PREDICTIONS_BY_NAME: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    MODEL_SPEC_PREDICTIONS["v_prediction"]: "v_prediction",
}
YAML_PARAMETERIZATION = re.compile(r"""^\s*parameterization:\s*["']?([^\s"'#]+)["']?\s*(?:#.*)?$""", re.MULTILINE)
YAML_SCALING = re.compile(r"""^\s*target:\s*["']?sgm[\w.]*\.denoiser_scaling\.(\w+)["']?\s*(?:#.*)?$""", re.MULTILINE)
YAML_PREDICTIONS: dict[str, Prediction] = {
    "eps": "epsilon",
    "v": "v_prediction",
    "EpsScaling": "epsilon",
    "VScaling": "v_prediction",
}
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
    A1111's, which tells the two kinds of SD2 apart in this way. As there, inpainting models predict noise without a
    trial; the image condition of pix2pix models is zeros here.
    """
    channels = int(unet.config["in_channels"])
    if CONDITION_BY_CHANNELS.get(channels) == "inpainting":
        return "epsilon"
    tensor_options: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.full((1, LATENT_CHANNELS, 8, 8), 0.5, **tensor_options)
    context = torch.full((1, 2, int(unet.config["cross_attention_dim"])), 0.5, **tensor_options)
    untyped: Any = unet
    model_input = functional.pad(latents, (0, 0, 0, 0, 0, channels - LATENT_CHANNELS))
    output: Tensor = untyped(model_input, torch.tensor(999, device=unet.device), context, return_dict=False)[0]
    return "v_prediction" if float((output - latents).float().mean()) < -1 else "epsilon"


def parse_prediction(word: str) -> Prediction:
    """Return the prediction that a caller names: "epsilon", or "v" (also "v_prediction", as diffusers writes it).

    Raises:
        UnknownName: The word is another one.
    """
    if word not in PREDICTIONS_BY_NAME:
        raise UnknownName.with_suggestions("prediction", word[:40], get_args(PredictionWord))
    return PREDICTIONS_BY_NAME[word]


def read_yaml_prediction(path: Path) -> Prediction | None:
    """Return what the .yaml beside a checkpoint says that its UNet predicts, or None if there is none or it is silent.

    LDM's files name a `parameterization`; those of SDXL (sgm) name a class that scales what the UNet returns. The file
    is searched as text: nothing in it is loaded or run. Warns of a prediction that velatura does not know.

    Args:
        path: The checkpoint.
    """
    yaml_path = path.with_suffix(".yaml")
    if not yaml_path.is_file():
        return None
    with open_for_reading(yaml_path) as file:
        text = file.read(MAX_YAML_BYTES).decode(errors="replace")
    match = YAML_PARAMETERIZATION.search(text) or YAML_SCALING.search(text)
    if match is None:
        return None
    if match[1] not in YAML_PREDICTIONS:
        warn(
            f"{yaml_path.name} says that {path.name} predicts {match[1][:40]!r}, which is neither epsilon nor v: it is "
            "ignored, and pictures may come out wrong"
        )
        return None
    return YAML_PREDICTIONS[match[1]]


def warn_of_yaml_conflict(path: Path, in_yaml: Prediction | None, in_file: Prediction) -> None:
    """Warn if the .yaml beside a checkpoint, which other programs follow, contradicts the checkpoint itself."""
    yaml_name = path.with_suffix(".yaml").name
    if in_yaml is not None and in_yaml != in_file:
        warn(
            f"{yaml_name} says that {path.name} predicts {in_yaml}, but the file itself says {in_file}, which is used: "
            f"delete {yaml_name} if the pictures are right, or open it with "
            f"prediction={PREDICTION_WORDS[in_yaml]!r} if not"
        )


def warn_of_trial_conflict(path: Path, in_yaml: Prediction, tried: Prediction) -> None:
    """Warn if the .yaml beside a checkpoint contradicts a trial step of its UNet."""
    if in_yaml != tried:
        warn(
            f"{path.with_suffix('.yaml').name} says that {path.name} predicts {in_yaml}, which is used, but a trial "
            f"step looks like {tried}: open it with prediction={PREDICTION_WORDS[tried]!r} if the pictures come out "
            "wrong"
        )
