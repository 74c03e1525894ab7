"""The text encoder: a prompt's words in, the context that cross-attention reads out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from velatura.errors import VelaturaWarning

TOKENS = 77


class TextEncoder:
    """A CLIP text tower and its tokenizer.

    start_id and end_id frame every chunk of 77 ids, pad_id fills it up.
    """

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.start_id = _special(tokenizer.bos_token_id)
        self.end_id = _special(tokenizer.eos_token_id)
        self.pad_id = _special(tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Features of a token's vector."""
        return int(self.model.config.hidden_size)

    def token_ids(self, text: str) -> list[int]:
        """Turn text of any length into ids, without start, end and padding."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Encode framed ids (batch, 77) into (batch, 77, width), read after the final layer norm."""
        return self.model(input_ids=ids.to(self.model.device)).last_hidden_state

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Encode plain texts into (batch, 77, width); what is past 75 tokens is cut off with a warning."""
        rows = [self._framed(self.token_ids(text), text) for text in texts]
        return self.encode_ids(torch.tensor(rows))

    def _framed(self, ids: Sequence[int], text: str) -> list[int]:
        room = TOKENS - 2
        if len(ids) > room:
            said = f"{text[:40]!r}... has {len(ids)} tokens, of which the first {room} are read: make it shorter"
            warnings.warn(said, VelaturaWarning, stacklevel=4)
        framed = [self.start_id, *ids[:room], self.end_id]
        return framed + [self.pad_id] * (TOKENS - len(framed))


def _special(found: object) -> int:
    assert isinstance(found, int)
    return found
