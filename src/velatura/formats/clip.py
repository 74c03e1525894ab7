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
from velatura.files import open_for_reading
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, load_model
from velatura.tensors import DAMAGED_FILE_ERRORS, StrPath, open_state_dict

TINY_CLIP = Path(__file__).parents[1] / "data" / "tiny" / "clip_vision"
# By the features in which each lays pictures and texts beside each other: where Stable Diffusions' text towers are from
CLIP_REPOSITORIES = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
TEXT_FEATURES = {96: 64, 768: 768, 1024: 1024, 1280: 1280}  # by the width of the text tower
TEXT_PROJECTION_KEY = "text_projection.weight"
CLIP_MEAN, CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # OpenAI's, of its pictures
IMAGENET_STANDARD = (0.5, 0.5, 0.5)
MAX_CONFIG_BYTES = 2**20  # bytes
MAX_LAYERS = 100
BATCH_SIZE = 16


@dataclass(frozen=True)
class Clip:
    """A tower that looks at pictures of so many pixels, and the projection of the texts that belong to it.

    projection: (features, text width); mean, deviation: of a picture's colours, by which they are evened out.
    """

    vision: nn.Module
    text_projection: Tensor
    pixels: int
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What it sees in pictures: (pictures, features), of whatever length."""
        batches = [
            self._encode_batch(pictures[start : start + BATCH_SIZE]) for start in range(0, len(pictures), BATCH_SIZE)
        ]
        return torch.cat(batches)

    def _encode_batch(self, pictures: Sequence[Image.Image]) -> Tensor:
        device = next(self.vision.parameters()).device
        output = self.vision(pixel_values=torch.stack([self._preprocess(picture) for picture in pictures]).to(device))
        return cast("Tensor", output.image_embeds).cpu()

    def _preprocess(self, picture: Image.Image) -> Tensor:
        """The middle square of a picture: (3, pixels, pixels)."""
        square = ImageOps.fit(picture.convert("RGB"), (self.pixels, self.pixels), Image.Resampling.BICUBIC)
        colours = torch.tensor(np.asarray(square, dtype=np.float32) / 255)
        return ((colours - torch.tensor(self.image_mean)) / torch.tensor(self.image_std)).permute(2, 0, 1)


def open_clip_model(folder: StrPath) -> Clip:
    """Open a CLIP from the folder in which transformers keeps it, as CLIPModel or as its vision tower beside a
    text_projection.safetensors.
    """
    path = Path(folder).expanduser()
    config = _read_config(path / "config.json")
    try:
        return _build_clip(path, config)
    except (OSError, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        reasons = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFile(f"{path} is no CLIP that can be built ({reasons[0][:100]}): download the whole folder") from None


def _build_clip(path: Path, config: dict[str, Any]) -> Clip:
    is_whole_model = "vision_config" in config
    vision_config: dict[str, Any] = dict(config["vision_config"] if is_whole_model else config)
    if is_whole_model and "projection_dim" in config:  # the whole's own counts, whatever its part says
        vision_config["projection_dim"] = config["projection_dim"]
    if not 0 < vision_config.get("num_hidden_layers", 12) <= MAX_LAYERS:
        raise ValueError(f"{vision_config['num_hidden_layers']} layers")
    image_mean, image_std = _read_mean_and_std(path, is_whole_model=is_whole_model)
    with torch.device("meta"):
        empty = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config))
    sources = {key: TensorSource(key) for key in empty.state_dict()}
    contents = open_weights(path, "model", "pytorch_model")
    if missing := sources.keys() - contents.tensors.keys():
        raise BadFile(f"{contents.path} lacks {min(missing)}: it is of no CLIP that sees, download the whole folder")
    vision = load_model(empty, sources, contents, Destination())
    vision.eval().requires_grad_(False)
    return Clip(vision, read_text_projection(path), int(vision_config.get("image_size", 224)), image_mean, image_std)


def read_text_projection(folder: Path) -> Tensor:
    """The projection of the texts of the CLIP in a folder: (features, text width), in float32."""
    projection_file = folder / "text_projection.safetensors"
    contents = (
        open_state_dict(projection_file)
        if projection_file.is_file()
        else open_weights(folder, "model", "pytorch_model")
    )
    if TEXT_PROJECTION_KEY not in contents.tensors:
        raise BadFile(
            f"{folder} holds no {TEXT_PROJECTION_KEY}, by which CLIP brings texts beside pictures: give a whole CLIP"
        )
    projection = contents.tensors[TEXT_PROJECTION_KEY]
    if projection.ndim != 2 or not projection.is_floating_point() or not bool(projection.isfinite().all()):
        raise BadFile(f"{folder} has a {TEXT_PROJECTION_KEY} that is no matrix of numbers: download it again")
    return projection.float().clone()


def find_cached_clip(features: int) -> Path | None:
    """The folder of the CLIP of so many features: the tiny one, or one in the hub's cache; None where there is none."""
    if features == TEXT_FEATURES[96]:
        return TINY_CLIP
    if features not in CLIP_REPOSITORIES:
        return None
    config_file = try_to_load_from_cache(CLIP_REPOSITORIES[features], "config.json")
    return Path(config_file).parent if isinstance(config_file, str) else None


def find_text_projection(features: int) -> Tensor | None:
    """The projection of the CLIP of so many features, where that is at hand."""
    folder = find_cached_clip(features)
    return None if folder is None else read_text_projection(folder)


def find_clip_for(text_width: int) -> Path:
    """The folder of the CLIP whose text tower is so wide; raises UnsupportedBase where it is not at hand."""
    features = TEXT_FEATURES.get(text_width)
    folder = None if features is None else find_cached_clip(features)
    if folder is None:
        repository = CLIP_REPOSITORIES.get(features or 0)
        advice = f"fetch it once with `hf download {repository}`, or " if repository else ""
        raise UnsupportedBase(
            f"the CLIP whose text encoder has {text_width} features is not at hand, and a base holds only its half "
            f"that reads: {advice}give its folder (clip=, --clip)"
        )
    return folder


def _read_mean_and_std(folder: Path, *, is_whole_model: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation as the folder says them; CLIP's own, or even ones for a tower alone, where it does not."""
    if not (folder / "preprocessor_config.json").is_file():
        return (CLIP_MEAN, CLIP_STD) if is_whole_model else (IMAGENET_STANDARD, IMAGENET_STANDARD)
    config = _read_config(folder / "preprocessor_config.json")
    try:
        image_mean, image_std = (tuple(map(float, config[key])) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        raise BadFile(
            f"{folder / 'preprocessor_config.json'} has no image_mean and image_std: download it again"
        ) from None
    if len(image_mean) != 3 or len(image_std) != 3 or not min(image_std) > 0:
        raise BadFile(f"{folder / 'preprocessor_config.json'} has colours that cannot be: download it again")
    return image_mean, image_std


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadFile(f"{path.parent} has no {path.name}: give the folder of a CLIP as transformers keeps it")
    with open_for_reading(path) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    try:
        config: object = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BadFile(f"{path} is no JSON of settings: download the folder again")
    return cast("dict[str, Any]", config)
