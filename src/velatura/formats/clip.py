"""CLIP's image encoder and text projection, from the folder in which transformers keeps a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from PIL import Image, ImageOps
from torch import Tensor, nn

from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, load_model
from velatura.formats.json_files import read_json_object
from velatura.formats.vision.open_clip import is_open_clip_folder, read_open_clip_folder
from velatura.tensors import DAMAGED_FILE_ERRORS, StrPath, open_state_dict

TINY_CLIP = Path(__file__).parents[1] / "data" / "tiny" / "clip_vision"
# The CLIPs whose text encoders Stable Diffusions use, by the features of their shared space of images and texts
CLIP_REPOSITORIES = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
TEXT_FEATURES = {96: 64, 768: 768, 1024: 1024, 1280: 1280}  # by the width of the text encoder
TEXT_PROJECTION_KEY = "text_projection.weight"
MAX_LAYERS = 100
BATCH_SIZE = 16
PATCH_DEPTH = 2 / 3  # of the layers: after it patches hold more and more of the whole picture


class ImageNormalization(NamedTuple):
    """Mean and standard deviation by which an image encoder normalizes red, green and blue in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CLIP_NORMALIZATION = ImageNormalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_NORMALIZATION = ImageNormalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # transformers' IMAGENET_STANDARD_MEAN


@dataclass(frozen=True)
class Clip:
    """CLIP's image encoder, and the projection of the text encoder that was trained with it.

    Attributes:
        vision: The image encoder.
        text_projection: (features, text width).
        pixels: Side of the square images that it encodes.
        normalization: Applied to the colours of an image.
    """

    vision: nn.Module
    text_projection: Tensor
    pixels: int
    normalization: ImageNormalization = CLIP_NORMALIZATION

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode pictures of any size as image embeddings.

        Returns:
            (pictures, features) on the CPU, not normalized to unit length.
        """
        batches = [
            self._encode_batch(pictures[start : start + BATCH_SIZE]) for start in range(0, len(pictures), BATCH_SIZE)
        ]
        return torch.cat(batches)

    @torch.no_grad()
    def encode_patches(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode the patches of pictures by the layer after two thirds, where they still tell what is where.

        Returns:
            (pictures, patches, width) on the CPU, without the token that stands for the whole picture.
        """
        batches: list[Tensor] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            output = self.vision(**self._inputs(pictures[start : start + BATCH_SIZE]), output_hidden_states=True)
            layers = cast("tuple[Tensor, ...]", output.hidden_states)  # the first is the input of the first layer
            batches.append(layers[round((len(layers) - 1) * PATCH_DEPTH)][:, 1:].float().cpu())
        return torch.cat(batches)

    def _encode_batch(self, pictures: Sequence[Image.Image]) -> Tensor:
        return cast("Tensor", self.vision(**self._inputs(pictures)).image_embeds).cpu()

    def _inputs(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        device = next(self.vision.parameters()).device
        pixels = [square_pixels(picture, self.pixels, self.normalization) for picture in pictures]
        return {"pixel_values": torch.stack(pixels).to(device)}


def square_pixels(picture: Image.Image, pixels: int, normalization: ImageNormalization) -> Tensor:
    """Return the middle square of a picture, resized and normalized: (3, pixels, pixels)."""
    square = ImageOps.fit(picture.convert("RGB"), (pixels, pixels), Image.Resampling.BICUBIC)
    colours = torch.tensor(np.asarray(square, dtype=np.float32) / 255)  # (height, width, 3)
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    return ((colours - mean) / std).permute(2, 0, 1)


def open_clip_model(folder: StrPath) -> Clip:
    """Open a CLIP from a folder of transformers or of open_clip.

    Args:
        folder: Holds a whole CLIPModel, or a CLIPVisionModelWithProjection with text_projection.safetensors beside it,
            or open_clip_config.json with open_clip's weights.

    Raises:
        BadFile: The folder holds no such model, or a part of it is missing or damaged.
    """
    path = Path(folder).expanduser()
    is_open_clip = is_open_clip_folder(path)
    config = {} if is_open_clip else read_json_object(path / "config.json")
    try:
        return _build_open_clip(path) if is_open_clip else _build_clip(path, config)
    except (OSError, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        reasons = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFile(
            f"{path} is not a CLIP that can be opened ({reasons[0][:100]}): download the whole folder"
        ) from None


def _build_clip(path: Path, config: dict[str, Any]) -> Clip:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    is_whole_model = "vision_config" in config
    vision_config: dict[str, Any] = dict(config["vision_config"] if is_whole_model else config)
    if is_whole_model and "projection_dim" in config:  # overrules the one in vision_config, as in transformers
        vision_config["projection_dim"] = config["projection_dim"]
    if not 0 < vision_config.get("num_hidden_layers", 12) <= MAX_LAYERS:
        raise ValueError(f"{vision_config['num_hidden_layers']} layers")
    normalization = read_normalization(path, CLIP_NORMALIZATION if is_whole_model else IMAGENET_NORMALIZATION)
    with torch.device("meta"):
        empty = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config))
    sources = {key: TensorSource(key) for key in empty.state_dict()}
    contents = open_weights(path, "model", "pytorch_model")
    if missing := sources.keys() - contents.tensors.keys():
        raise BadFile(
            f"{contents.path} lacks {min(missing)}, which CLIP's image encoder needs: download the whole folder"
        )
    vision = load_model(empty, sources, contents, Destination())
    vision.eval().requires_grad_(False)
    return Clip(vision, read_text_projection(path), int(vision_config.get("image_size", 224)), normalization)


def _build_open_clip(path: Path) -> Clip:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    found = read_open_clip_folder(path)
    if found.vision_config["num_hidden_layers"] > MAX_LAYERS:
        raise ValueError(f"{found.vision_config['num_hidden_layers']} layers")
    with torch.device("meta"):
        empty = CLIPVisionModelWithProjection(CLIPVisionConfig(**found.vision_config))
    vision = load_model(empty, found.vision_sources, found.contents, Destination())
    vision.eval().requires_grad_(False)
    mean, std = _parse_colours(found.mean), _parse_colours(found.std)
    normalization = ImageNormalization(mean, std) if mean and std and min(std) > 0 else CLIP_NORMALIZATION
    source = found.text_sources[TEXT_PROJECTION_KEY]
    projection = _check_projection(path, source.transform(found.contents.tensors[source.key]))
    return Clip(vision, projection, int(found.vision_config["image_size"]), normalization)


def read_text_projection(folder: Path) -> Tensor:
    """Read the text projection of the CLIP in a folder: (features, text width), in float32.

    Raises:
        BadFile: The folder does not hold it, or its values are not finite.
    """
    projection_file = folder / "text_projection.safetensors"
    contents = (
        open_state_dict(projection_file)
        if projection_file.is_file()
        else open_weights(folder, "model", "pytorch_model")
    )
    if TEXT_PROJECTION_KEY not in contents.tensors:
        raise BadFile(
            f"{folder} holds no {TEXT_PROJECTION_KEY}, which compares texts with pictures: give the folder of a whole "
            "CLIP"
        )
    return _check_projection(folder, contents.tensors[TEXT_PROJECTION_KEY])


def _check_projection(folder: Path, projection: Tensor) -> Tensor:
    """Return a copy of the projection in float32, and refuse one that is not a matrix of finite numbers."""
    if projection.ndim != 2 or not projection.is_floating_point() or not bool(projection.float().isfinite().all()):
        raise BadFile(f"{folder} has a {TEXT_PROJECTION_KEY} that is not a matrix of finite numbers: download it again")
    return projection.float().clone()


def find_cached_clip(features: int) -> Path | None:
    """Find the folder of the CLIP with that many features: the tiny one, or one in the hub's cache, or None."""
    if features == TEXT_FEATURES[96]:
        return TINY_CLIP
    if features not in CLIP_REPOSITORIES:
        return None
    config_file = try_to_load_from_cache(CLIP_REPOSITORIES[features], "config.json")
    return Path(config_file).parent if isinstance(config_file, str) else None


def find_text_projection(features: int) -> Tensor | None:
    """Read the text projection of the CLIP with that many features, or return None if that CLIP is not here."""
    folder = find_cached_clip(features)
    return None if folder is None else read_text_projection(folder)


def find_clip_for(text_width: int) -> Path:
    """Find the folder of the CLIP that a base's text encoder is from.

    Args:
        text_width: Width of the text encoder in features.

    Raises:
        UnsupportedBase: That CLIP is unknown, or not in the hub's cache; the message says how to fetch it.
    """
    features = TEXT_FEATURES.get(text_width)
    folder = None if features is None else find_cached_clip(features)
    if folder is None:
        repository = CLIP_REPOSITORIES.get(features or 0)
        advice = f"fetch it once with `hf download {repository}`, or " if repository else ""
        raise UnsupportedBase(
            f"the CLIP whose text encoder has {text_width} features is not on this machine, and a base does not hold "
            f"its image encoder: {advice}give its folder (clip=, --clip)"
        )
    return folder


def read_normalization(folder: Path, default: ImageNormalization) -> ImageNormalization:
    """Read preprocessor_config.json, or return the default if the folder has none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return default
    config = read_json_object(path)
    mean, std = _parse_colours(config.get("image_mean")), _parse_colours(config.get("image_std"))
    if mean is None or std is None:
        raise BadFile(f"{path} has no image_mean and image_std of three numbers: download it again")
    if not min(std) > 0:
        raise BadFile(f"{path} has an image_std of {min(std)}, which must be above 0: download it again")
    return ImageNormalization(mean, std)


def _parse_colours(values: object) -> tuple[float, ...] | None:
    """Return three numbers, or None for anything else."""
    try:
        numbers = tuple(map(float, cast("Sequence[float]", values)))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == 3 else None
