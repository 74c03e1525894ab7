"""DINO and DINOv2, from the folder in which transformers keeps one: vectors of what pictures show."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor, nn

from velatura.errors import BadFile
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, load_model
from velatura.formats.clip import BATCH_SIZE, MAX_LAYERS, ImageNormalization, read_normalization, square_pixels
from velatura.formats.json_files import read_json_object
from velatura.tensors import DAMAGED_FILE_ERRORS, StrPath

DINO_NORMALIZATION = ImageNormalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's
DINO_PIXELS = 224
MODEL_TYPES = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
# Names that transformers gave these modules before version 5, and those of today
OLD_NAMES = {
    r"attention\.attention\.query\.": "attention.q_proj.",
    r"attention\.attention\.key\.": "attention.k_proj.",
    r"attention\.attention\.value\.": "attention.v_proj.",
    r"attention\.output\.dense\.": "attention.o_proj.",
    r"intermediate\.dense\.": "mlp.fc1.",
    r"(?<!attention\.)output\.dense\.": "mlp.fc2.",
}
PREFIX = re.compile(r"^(vit|dinov2|dinov2_with_registers)\.")


@dataclass(frozen=True)
class Dino:
    """A DINO.

    Attributes:
        model: Returns hidden states of which the first token stands for the whole picture.
        pixels: Side of the square images that it encodes.
        normalization: Applied to the colours of an image.
        name: What a table calls it.
    """

    model: nn.Module
    pixels: int
    normalization: ImageNormalization
    name: str

    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode pictures of any size as vectors of length 1, (pictures, features)."""
        return F.normalize(self._encode(pictures, slice(1))[:, 0], dim=-1)

    def encode_patches(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode the patches of pictures, (pictures, patches, features), without the tokens that are not patches."""
        registers = int(getattr(self.model.config, "num_register_tokens", 0))
        return self._encode(pictures, slice(1 + registers, None))

    @torch.no_grad()
    def _encode(self, pictures: Sequence[Image.Image], tokens: slice) -> Tensor:
        """Return some tokens of the last layer, (pictures, tokens, features)."""
        encoded: list[Tensor] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = pictures[start : start + BATCH_SIZE]
            pixels = torch.stack([square_pixels(picture, self.pixels, self.normalization) for picture in batch])
            encoded.append(cast("Tensor", self.model(pixel_values=pixels).last_hidden_state)[:, tokens])
        return torch.cat(encoded)


def open_dino(folder: StrPath) -> Dino:
    """Open a DINO from a folder of transformers.

    Args:
        folder: Holds config.json of the type vit, dinov2 or dinov2_with_registers, and the weights.

    Raises:
        BadFile: The folder holds no such model, or a part of it is missing or damaged.
    """
    path = Path(folder).expanduser()
    config = read_json_object(path / "config.json")
    kind = str(config.get("model_type"))
    if kind not in MODEL_TYPES:
        raise BadFile(f"{path} is a model of the type {kind[:40]!r}, not a DINO: give one of {', '.join(MODEL_TYPES)}")
    try:
        return _build_dino(path, config, MODEL_TYPES[kind])
    except (OSError, ValueError, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        reasons = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFile(
            f"{path} is not a DINO that can be opened ({reasons[0][:100]}): download the whole folder"
        ) from None


def _build_dino(path: Path, stored: Mapping[str, object], class_name: str) -> Dino:
    import transformers

    config: Any = getattr(transformers, f"{class_name}Config")(**stored)
    if not 0 < config.num_hidden_layers <= MAX_LAYERS:
        raise ValueError(f"{config.num_hidden_layers} layers")
    model_class: Any = getattr(transformers, f"{class_name}Model")
    is_vit = class_name == "ViT"
    with torch.device("meta"):
        empty: nn.Module = model_class(config, add_pooling_layer=False) if is_vit else model_class(config)
    contents = open_weights(path, "model", "pytorch_model")
    sources = _sources(empty.state_dict().keys(), contents.tensors)
    model = load_model(empty, sources, contents, Destination())
    model.eval().requires_grad_(False)
    pixels = int(config.image_size) if is_vit else DINO_PIXELS  # DINOv2 resizes its positions
    return Dino(model, pixels, read_normalization(path, DINO_NORMALIZATION), path.name)


def _sources(names: Collection[str], keys: Collection[str]) -> dict[str, TensorSource]:
    """Return the sources of a model's tensors, whose names in the file may be those of older versions.

    Heads and poolers are left out; what is missing is reported where the model is loaded.
    """
    found: dict[str, TensorSource] = {}
    for key in keys:
        name = PREFIX.sub("", key)
        for old, new in OLD_NAMES.items():
            name = re.sub(old, new, name)
        for candidate in (name, name.removeprefix("encoder.").replace("layer.", "layers.", 1)):
            if candidate in names:
                found[candidate] = TensorSource(key)
    return found
