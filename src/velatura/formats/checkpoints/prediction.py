"""Find out what a UNet predicts, noise (epsilon) or velocity (v): from its file, or by a trial step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from velatura.base.families import PREDICTION_WORDS, Prediction, PredictionWord
from velatura.base.image_condition import CONDITION_BY_CHANNELS, LATENT_CHANNELS
from velatura.base.model_settings import ModelConfig
from velatura.errors import UnknownName, UnsupportedBase, warn
from velatura.formats.check_texts import shorten_keys
from velatura.formats.checkpoints.ldm_config import read_yaml
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
YAML_SCALING = re.compile(r"[\w.]*\bdenoiser_scaling\.(\w+)")
YAML_PREDICTIONS: dict[str, Prediction] = {
    "eps": "epsilon",
    "v": "v_prediction",
    "EpsScaling": "epsilon",
    "VScaling": "v_prediction",
}


@dataclass(frozen=True)
class CallerSettings:
    """What the caller says of a base that is read, whatever its files say.

    Attributes:
        name: Name of the base; "" for that of its file or folder.
        prediction_type: What the UNet predicts; None for what its files say.
        zero_snr: Use a schedule to zero terminal SNR, or not; None for what its files say.
        opened_from: What the user opened, for the base to remember: a path, or hub:owner/name.
    """

    name: str = ""
    prediction_type: Prediction | None = None
    zero_snr: bool | None = None
    opened_from: str | None = None

    def overrule(self, scheduler: ModelConfig) -> ModelConfig:
        """Return the configuration of a scheduler with what the caller says in place of what it says."""
        stated = {"prediction_type": self.prediction_type, "rescale_betas_zero_snr": self.zero_snr}
        return scheduler | {key: value for key, value in stated.items() if value is not None}


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

    LDM's files name a `parameterization`; those of SDXL (sgm) name a class that scales what the UNet returns. Warns of
    a prediction that velatura does not know, and of several.

    Args:
        path: The checkpoint.
    """
    entries = read_yaml(path)
    targets = [
        match[1] for entry in entries if entry.key == "target" and (match := YAML_SCALING.fullmatch(entry.value))
    ]
    stated = list(dict.fromkeys([entry.value for entry in entries if entry.key == "parameterization"] or targets))
    if not stated:
        return None
    yaml_name = path.with_suffix(".yaml").name
    if len(stated) > 1:
        warn(
            f"{yaml_name} says several times what {path.name} predicts ({shorten_keys(stated)}): the first counts, so "
            "check the pictures, or give the prediction yourself (--prediction)"
        )
    if stated[0] not in YAML_PREDICTIONS:
        warn(
            f"{yaml_name} says that {path.name} predicts {stated[0][:40]!r}, which is neither epsilon nor v: it is "
            "ignored, and pictures may come out wrong"
        )
        return None
    return YAML_PREDICTIONS[stated[0]]


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
