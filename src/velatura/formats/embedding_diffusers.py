"""Embeddings as diffusers' load_textual_inversion opens them: the vectors of a token, of an SDXL's in two files."""

from __future__ import annotations

from pathlib import Path

from velatura.formats.embeddings import SECOND_FILE_SUFFIX
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors, write_torch


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
