"""Write textual inversion embeddings as A1111 and diffusers read them: torch files, safetensors and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from velatura.errors import WrongBase
from velatura.formats.embeddings.read_embedding import SECOND_FILE_SUFFIX
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_picture, write_safetensors, write_torch

PICTURE_PIXELS = 256
TITLE_PIXELS = 20  # height of the band that shows the name
MAX_TITLE_LENGTH = 40


def write_a1111(overlay: Overlay, path: Path) -> None:
    """Write A1111's .pt with its fields in its order; for SDXL, where it keeps no fields, both tensors alone."""
    assert isinstance(overlay, Embedding)
    vectors = [tensor.detach().float().cpu().clone() for tensor in overlay.vectors]
    if len(vectors) > 1:
        write_torch(path, dict(zip(overlay.tensor_names, vectors, strict=True)))
        return
    write_torch(path, _a1111_payload(overlay, vectors[0], path.stem))


def write_diffusers(overlay: Overlay, path: Path) -> None:
    """Write the vectors under the embedding's name, which becomes the token in diffusers' prompts.

    For SDXL there are two files, such as learned_embeds and learned_embeds_2: diffusers loads each of them with its
    text encoder and tokenizer.

    Args:
        overlay: An embedding.
        path: A .safetensors, or any other ending for a torch file.
    """
    assert isinstance(overlay, Embedding)
    for index, vectors in enumerate(overlay.vectors):
        target = path if index == 0 else path.with_name(f"{path.stem}{SECOND_FILE_SUFFIX}{path.suffix}")
        tensors = {overlay.name or path.stem: vectors.detach().float().cpu().clone()}
        if path.suffix == ".safetensors":
            write_safetensors(target, tensors)
        else:
            write_torch(target, tensors)


def write_png(overlay: Overlay, path: Path) -> None:
    """Write a PNG that shows the vectors and holds the embedding in its text, where A1111 reads it.

    Raises:
        WrongBase: The embedding is for SDXL, whose two text encoders have no place in such a picture.
    """
    assert isinstance(overlay, Embedding)
    if len(overlay.vectors) > 1:
        raise WrongBase("a picture holds vectors for one text encoder, not for SDXL's two: save it as .safetensors")
    [vectors] = [tensor.detach().float().cpu() for tensor in overlay.vectors]
    write_picture(path, _draw_vectors(vectors, overlay.name), _a1111_payload(overlay, vectors, path.stem))


def a1111_checksum(vectors: Tensor) -> str:
    """Return the four hex digits by which A1111 matches an optimizer's state (.optim) to an embedding.

    Args:
        vectors: (count, width).
    """
    digest = 0
    integers = (vectors.detach().float().cpu().flatten() * 100).to(torch.int64)
    for value in cast("list[int]", integers.tolist()):  # pyright: ignore[reportUnknownMemberType]
        digest = (digest * 281 ^ value * 997) & 0xFFFFFFFF
    return f"{digest & 0xFFFF:04x}"


def _a1111_payload(overlay: Embedding, vectors: Tensor, stem: str) -> dict[str, object]:
    return {
        "string_to_token": {"*": 265},  # the id of "*"; A1111 writes it and does not read it
        "string_to_param": {"*": vectors},
        "name": overlay.name or stem,
        "step": overlay.card.steps,
        "sd_checkpoint": overlay.card.base_hash or None,
        "sd_checkpoint_name": overlay.card.base or None,
    }


def _draw_vectors(vectors: Tensor, name: str) -> Image.Image:
    """Draw every vector as a horizontal band of colours, with the name at the bottom."""
    normalized = vectors / vectors.std().clamp_min(1e-6)
    columns = -(-vectors.shape[1] // 3)
    padded = torch.nn.functional.pad(normalized, (0, 3 * columns - vectors.shape[1])).view(len(vectors), columns, 3)
    pixels = (torch.sigmoid(padded) * 255).byte().numpy()
    picture = Image.fromarray(pixels).resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, PICTURE_PIXELS - TITLE_PIXELS, PICTURE_PIXELS, PICTURE_PIXELS), fill="black")
    title = name[:MAX_TITLE_LENGTH].encode("ascii", "replace").decode()
    draw.text((6, PICTURE_PIXELS - TITLE_PIXELS + 4), title, fill="white")
    return picture
