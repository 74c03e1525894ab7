"""Embeddings in pictures, as the webui shares them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from velatura.errors import WrongBase
from velatura.formats.embeddings.read_embedding import SECOND_FILE_SUFFIX, a1111_payload
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_picture, write_safetensors, write_torch


def write_diffusers(overlay: Overlay, path: Path) -> None:
    """Write the vectors under the embedding's name, which is the token that prompts are to say.

    An SDXL's go to two files, the second called learned_embeds_2.safetensors where the first is learned_embeds: each
    is loaded with the text encoder and the tokenizer that it is for.
    """
    assert isinstance(overlay, Embedding)
    for index, vectors in enumerate(overlay.vectors):
        target = path if index == 0 else path.with_name(f"{path.stem}{SECOND_FILE_SUFFIX}{path.suffix}")
        tensors = {overlay.name or path.stem: vectors.detach().float().cpu().clone()}
        if path.suffix == ".safetensors":
            write_safetensors(target, tensors)
        else:
            write_torch(target, tensors)


PICTURE_PIXELS = 256


def write_png(overlay: Overlay, path: Path) -> None:
    """Write a PNG that shows the vectors, a band for each, with the embedding in its text as the webui reads it."""
    assert isinstance(overlay, Embedding)
    if len(overlay.vectors) > 1:
        raise WrongBase("pictures hold the vectors of one text tower, not of an SDXL's two: save it as .safetensors")
    [vectors] = [tensor.detach().float().cpu() for tensor in overlay.vectors]
    write_picture(path, _draw_vectors(vectors, overlay.name), a1111_payload(overlay, vectors, path.stem))


def _draw_vectors(vectors: Tensor, name: str) -> Image.Image:
    """Each vector as a band of colours, with the name over them."""
    normalized = vectors / vectors.std().clamp_min(1e-6)
    columns = -(-vectors.shape[1] // 3)
    padded = torch.nn.functional.pad(normalized, (0, 3 * columns - vectors.shape[1])).view(len(vectors), columns, 3)
    pixels = (torch.sigmoid(padded) * 255).byte().numpy()
    picture = Image.fromarray(pixels).resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, PICTURE_PIXELS - 20, PICTURE_PIXELS, PICTURE_PIXELS), fill="black")
    draw.text((6, PICTURE_PIXELS - 16), name[:40].encode("ascii", "replace").decode(), fill="white")
    return picture
