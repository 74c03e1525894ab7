"""What a base's text towers say of a text, kept on disk between runs."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.text import TextEncoder
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, conditioning
from velatura.training.encodings import Encodings, fingerprint_of, key_of


class Texts:
    """Texts as a base that nothing is laid over reads them."""

    def __init__(self, text: TextEncoder, encodings: Encodings | None = None) -> None:
        self._text, self._encodings = text, encodings or Encodings()

    @torch.no_grad()
    def said(self, prompt: Prompt, chunk_count: int) -> Conditioning:
        """What a prompt says, in one row; of an empty one, what an empty negative prompt does."""
        found = self._encodings.recall(self._key(prompt, chunk_count), lambda: self._encoded(prompt, chunk_count))
        device = self._text.model.device
        pooled = found.get("pooled")
        return Conditioning(found["context"].to(device), None if pooled is None else pooled.to(device))

    def _key(self, prompt: Prompt, chunk_count: int) -> str | None:
        """By the tokens, not the words: another vocabulary makes others of them."""
        if self._made_by is None:
            return None
        chunks = chunks_of(self._text, prompt)
        frames = [(each.skip, each.final_norm, each.start_id, each.end_id, each.pad_id) for each in self._text.towers]
        what = {"chunks": chunks, "count": chunk_count, "silent": not prompt.words, "frames": frames}
        return key_of(what, self._made_by)

    @cached_property
    def _made_by(self) -> str | None:
        return fingerprint_of([tower.model for tower in self._text.towers])

    def _encoded(self, prompt: Prompt, chunk_count: int) -> dict[str, Tensor]:
        said = conditioning(self._text, [prompt], chunk_count, negative=not prompt.words)
        pooled = {} if said.pooled is None else {"pooled": said.pooled}
        return {"context": said.context} | pooled
