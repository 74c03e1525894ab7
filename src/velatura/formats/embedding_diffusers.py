"""Embeddings as diffusers' load_textual_inversion opens them: the vectors of a token, of an SDXL's in two files."""

from __future__ import annotations

from pathlib import Path

from velatura.formats.embeddings import SECOND
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors, write_torch


def write(overlay: Overlay, path: Path) -> None:
    """Write the vectors under the embedding's name, which is the token that prompts are to say.

    An SDXL's go to two files, the second called learned_embeds_2.safetensors where the first is learned_embeds: each
    is loaded with the text encoder and the tokenizer that it is for.
    """
    assert isinstance(overlay, Embedding)
    for number, vectors in enumerate(overlay.vectors):
        to = path if number == 0 else path.with_name(f"{path.stem}{SECOND}{path.suffix}")
        named = {overlay.name or path.stem: vectors.detach().float().cpu().clone()}
        if path.suffix == ".safetensors":
            write_safetensors(to, named)
        else:
            write_torch(to, named)
