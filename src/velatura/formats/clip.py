"""CLIP as its own library keeps it: the tower that looks at pictures, and what brings texts beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from velatura.errors import BadFile, UnsupportedBase
from velatura.files import reading
from velatura.formats.folder_weights import weights
from velatura.formats.sources import Destination, Source, fill
from velatura.tensors import UNREADABLE, StrPath, open_state

TINY = Path(__file__).parents[1] / "data" / "tiny" / "clip_vision"
# By the features in which each lays pictures and texts beside each other: where Stable Diffusions' text towers are from
KNOWN = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
TEXT_FEATURES = {96: 64, 768: 768, 1024: 1024, 1280: 1280}  # by the width of the text tower
PROJECTION = "text_projection.weight"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, of its pictures
EVEN = (0.5, 0.5, 0.5)
LONGEST_CONFIG = 2**20  # bytes
MOST_LAYERS = 100
AT_ONCE = 16


@dataclass(frozen=True)
class Clip:
    """A tower that looks at pictures of so many pixels, and the projection of the texts that belong to it.

    projection: (features, text width); mean, deviation: of a picture's colours, by which they are evened out.
    """

    vision: nn.Module
    projection: Tensor
    pixels: int
    mean: tuple[float, ...] = MEAN
    deviation: tuple[float, ...] = DEVIATION

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What it sees in pictures: (pictures, features), of whatever length."""
        found = [self._look(pictures[first : first + AT_ONCE]) for first in range(0, len(pictures), AT_ONCE)]
        return torch.cat(found)

    def _look(self, pictures: Sequence[Image.Image]) -> Tensor:
        place = next(self.vision.parameters()).device
        seen = self.vision(pixel_values=torch.stack([self._colours(each) for each in pictures]).to(place))
        return cast("Tensor", seen.image_embeds).cpu()

    def _colours(self, picture: Image.Image) -> Tensor:
        """The middle square of a picture: (3, pixels, pixels)."""
        square = ImageOps.fit(picture.convert("RGB"), (self.pixels, self.pixels), Image.Resampling.BICUBIC)
        colours = torch.tensor(np.asarray(square, dtype=np.float32) / 255)
        return ((colours - torch.tensor(self.mean)) / torch.tensor(self.deviation)).permute(2, 0, 1)


def open_clip(folder: StrPath) -> Clip:
    """Open a CLIP from the folder in which transformers keeps it, as CLIPModel or as its vision tower beside a
    text_projection.safetensors.
    """
    path = Path(folder).expanduser()
    config = _config(path / "config.json")
    try:
        return _read(path, config)
    except (OSError, StrictDataclassError, *UNREADABLE) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFile(f"{path} is no CLIP that can be built ({said[0][:100]}): download the whole folder") from None


def _read(path: Path, config: dict[str, Any]) -> Clip:
    whole = "vision_config" in config
    settings: dict[str, Any] = dict(config["vision_config"] if whole else config)
    if whole and "projection_dim" in config:  # the whole's own counts, whatever its part says
        settings["projection_dim"] = config["projection_dim"]
    if not 0 < settings.get("num_hidden_layers", 12) <= MOST_LAYERS:
        raise ValueError(f"{settings['num_hidden_layers']} layers")
    mean, deviation = _colours(path, whole=whole)
    with torch.device("meta"):
        empty = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))
    names = {name: Source(name) for name in empty.state_dict()}
    contents = weights(path, "model", "pytorch_model")
    if missing := names.keys() - contents.tensors.keys():
        raise BadFile(f"{contents.path} lacks {min(missing)}: it is of no CLIP that sees, download the whole folder")
    vision = fill(empty, names, contents, Destination())
    vision.eval().requires_grad_(False)
    return Clip(vision, projection_in(path), int(settings.get("image_size", 224)), mean, deviation)


def projection_in(folder: Path) -> Tensor:
    """The projection of the texts of the CLIP in a folder: (features, text width), in float32."""
    beside = folder / "text_projection.safetensors"
    contents = open_state(beside) if beside.is_file() else weights(folder, "model", "pytorch_model")
    if PROJECTION not in contents.tensors:
        raise BadFile(f"{folder} holds no {PROJECTION}, by which CLIP brings texts beside pictures: give a whole CLIP")
    found = contents.tensors[PROJECTION]
    if found.ndim != 2 or not found.is_floating_point() or not bool(found.isfinite().all()):
        raise BadFile(f"{folder} has a {PROJECTION} that is no matrix of numbers: download it again")
    return found.float().clone()


def known_clip(features: int) -> Path | None:
    """The folder of the CLIP of so many features: the tiny one, or one in the hub's cache; None where there is none."""
    if features == TEXT_FEATURES[96]:
        return TINY
    if features not in KNOWN:
        return None
    found = try_to_load_from_cache(KNOWN[features], "config.json")
    return Path(found).parent if isinstance(found, str) else None


def known_projection(features: int) -> Tensor | None:
    """The projection of the CLIP of so many features, where that is at hand."""
    folder = known_clip(features)
    return None if folder is None else projection_in(folder)


def clip_beside(text_width: int) -> Path:
    """The folder of the CLIP whose text tower is so wide; raises UnsupportedBase where it is not at hand."""
    features = TEXT_FEATURES.get(text_width)
    found = None if features is None else known_clip(features)
    if found is None:
        which = KNOWN.get(features or 0)
        fetch = f"fetch it once with `hf download {which}`, or " if which else ""
        raise UnsupportedBase(
            f"the CLIP whose text encoder has {text_width} features is not at hand, and a base holds only its half "
            f"that reads: {fetch}give its folder (clip=, --clip)"
        )
    return found


def _colours(folder: Path, *, whole: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation as the folder says them; CLIP's own, or even ones for a tower alone, where it does not."""
    if not (folder / "preprocessor_config.json").is_file():
        return (MEAN, DEVIATION) if whole else (EVEN, EVEN)
    said = _config(folder / "preprocessor_config.json")
    try:
        mean, deviation = (tuple(map(float, said[key])) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        raise BadFile(
            f"{folder / 'preprocessor_config.json'} has no image_mean and image_std: download it again"
        ) from None
    if len(mean) != 3 or len(deviation) != 3 or not min(deviation) > 0:
        raise BadFile(f"{folder / 'preprocessor_config.json'} has colours that cannot be: download it again")
    return mean, deviation


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadFile(f"{path.parent} has no {path.name}: give the folder of a CLIP as transformers keeps it")
    with reading(path) as file:
        data = file.read(LONGEST_CONFIG + 1)
    try:
        found: object = json.loads(data) if len(data) <= LONGEST_CONFIG else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadFile(f"{path} is no JSON of settings: download the folder again")
    return cast("dict[str, Any]", found)
