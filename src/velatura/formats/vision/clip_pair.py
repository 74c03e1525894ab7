"""A CLIP with both encoders: pictures and texts as vectors in one space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadFile
from velatura.formats.checkpoints.build_models import build_text_encoder
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_text import NON_WEIGHTS
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource
from velatura.formats.clip import TEXT_FEATURES, Clip, find_cached_clip, open_clip_model
from velatura.formats.json_files import read_json_object
from velatura.formats.vision.open_clip import is_open_clip_folder, read_open_clip_folder
from velatura.formats.vocabulary import clip_tokenizer
from velatura.tensors import DAMAGED_FILE_ERRORS, StrPath

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TEXT_BATCH_SIZE = 64
MAX_TOKENS = 77


@dataclass(frozen=True)
class ClipPair:
    """Image encoder and text encoder of one CLIP.

    Attributes:
        clip: The image encoder, with the projection of the text encoder.
        tokenizer: The text encoder's tokenizer.
        text_model: A CLIPTextModel, or one with a projection.
        name: What a table calls it.
    """

    clip: Clip
    tokenizer: CLIPTokenizer
    text_model: Any
    name: str

    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode pictures as vectors of length 1, (pictures, features)."""
        return F.normalize(self.clip.encode_images(pictures), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts as vectors of length 1, (texts, features); what is beyond 77 tokens is left out."""
        starts = range(0, len(texts), TEXT_BATCH_SIZE)
        return torch.cat([self._encode_batch(texts[start : start + TEXT_BATCH_SIZE]) for start in starts])

    def _encode_batch(self, texts: Sequence[str]) -> Tensor:
        tokenizer: Any = self.tokenizer
        ids = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        output = self.text_model(input_ids=ids["input_ids"].to(self.text_model.device))
        embeddings: Tensor | None = getattr(output, "text_embeds", None)
        if embeddings is None:
            embeddings = output.pooler_output.float() @ self.clip.text_projection.to(output.pooler_output.device).T
        return F.normalize(cast("Tensor", embeddings).float().cpu(), dim=-1)


def open_clip_pair(folder: StrPath) -> ClipPair:
    """Open both encoders of a whole CLIP.

    Args:
        folder: A folder of transformers that holds a CLIPModel, or a folder of open_clip.

    Raises:
        BadFile: The folder holds no whole CLIP, or a part of it is missing or damaged.
    """
    path = Path(folder).expanduser()
    clip = open_clip_model(path)
    try:
        text_model = _open_clip_text(path) if is_open_clip_folder(path) else _transformers_text(path)
    except (OSError, ValueError, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        reasons = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFile(
            f"{path} has a text encoder that cannot be opened ({reasons[0][:100]}): download the folder again"
        ) from None
    return ClipPair(clip, clip_tokenizer(pads_with_zero=False), text_model, path.name)


def find_clip_pair(base: Base) -> ClipPair | None:
    """Return the CLIP that a base's text encoder is from, or None if it is not on this machine.

    The tiny base has its own. Of others the image encoder is in the hub's cache, and there the whole CLIP is taken: the
    text encoders of bases are trained further, and those of SD2 lack the last layer.
    """
    encoder = base.text.encoders[0]
    features = TEXT_FEATURES.get(encoder.width)
    folder = None if features is None else find_cached_clip(features)
    if folder is None:
        return None
    if "text_config" in read_json_object(folder / "config.json"):
        return open_clip_pair(folder)
    return ClipPair(open_clip_model(folder), encoder.tokenizer, encoder.model, f"the CLIP of {base.name}")


def _open_clip_text(path: Path) -> Any:
    found = read_open_clip_folder(path)
    model = build_text_encoder(
        found.text_config, found.text_sources, found.contents, Destination(), has_projection=True
    )
    return model.eval().requires_grad_(False)


def _transformers_text(path: Path) -> Any:
    config = read_json_object(path / "config.json")
    text_config = config.get("text_config")
    if not isinstance(text_config, dict):
        raise BadFile(
            f"{path} holds no text encoder: give the folder of a whole CLIP, whose config.json has text_config"
        )
    fields = cast("dict[str, Any]", text_config)
    if isinstance(config.get("projection_dim"), int):  # overrules the one in text_config, as in transformers
        fields = fields | {"projection_dim": config["projection_dim"]}
    contents = open_weights(path, "model", "pytorch_model")
    keys = [key for key in contents.tensors if key.startswith(("text_model.", "text_projection."))]
    sources = {key: TensorSource(key) for key in keys if not key.endswith(NON_WEIGHTS)}
    model = build_text_encoder(fields, sources, contents, Destination(), has_projection=True)
    return model.eval().requires_grad_(False)
