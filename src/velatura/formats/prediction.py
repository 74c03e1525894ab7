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
from velatura.files import reading
from velatura.formats.ldm_kinds import V_MARKER
from velatura.formats.model_spec import PREDICTIONS
from velatura.tensors import Contents

KEY = "modelspec.prediction_type"
YAML = re.compile(r"""^\s*parameterization:\s*["']?(eps|v)["']?\s*$""", re.MULTILINE)
IN_YAML: dict[str, Prediction] = {"eps": "epsilon", "v": "v_prediction"}
LONGEST_YAML = 2**16  # bytes; A1111's have about two thousand


def told(contents: Contents) -> Prediction | None:
    """What the file says: by an empty tensor, as trainers mark it, or by its header."""
    if V_MARKER in contents.tensors:
        return "v_prediction"
    said = contents.metadata.get(KEY)
    if said is None:
        return None
    found = next((ours for ours, theirs in PREDICTIONS.items() if said in {ours, theirs}), None)
    if found is None:
        raise UnsupportedBase(f"{contents.path.name} predicts {said!r}, neither noise nor velocity: open another base")
    return cast("Prediction", found)


@torch.no_grad()
def tried(unet: UNet2DConditionModel) -> Prediction:
    """What a UNet predicts of a grey picture at the noisiest step: velocity is then far below what it was given.

    A1111 tells the two kinds of SD2 apart so: by a mean below -1.
    """
    place: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.full((1, 4, 8, 8), 0.5, **place)
    context = torch.full((1, 2, int(unet.config["cross_attention_dim"])), 0.5, **place)
    untyped: Any = unet
    said: Tensor = untyped(latents, torch.tensor(999, device=unet.device), context, return_dict=False)[0]
    return "v_prediction" if float((said - latents).float().mean()) < -1 else "epsilon"


def warn_of_configuration(path: Path, predicted: Prediction) -> None:
    """Warn where the .yaml beside a checkpoint, which other programs go by, says another prediction than was found.

    It is looked at as text: nothing in it is built or run.
    """
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return
    with reading(beside) as file:
        text = file.read(LONGEST_YAML).decode(errors="replace")
    said = YAML.search(text)
    if said and IN_YAML[said[1]] != predicted:
        what = f"{beside.name} says that {path.name} predicts {IN_YAML[said[1]]}; its tensors say {predicted}"
        warnings.warn(f"{what}, and are believed: remove the one that is wrong", VelaturaWarning, stacklevel=5)
