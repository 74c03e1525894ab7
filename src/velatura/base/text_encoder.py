"""The text encoders: a prompt's words in, what the UNet reads out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import encoding_row
from velatura.base.token_registry import CHUNK_LENGTH, TokenRegistry
from velatura.errors import BadRecipe, VelaturaWarning

CONTEXT_LENGTH = 77


class TextOutput(NamedTuple):
    """What a tower says of chunks: hidden (chunks, 77, width), and pooled (chunks, width) where it has a projection."""

    hidden: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class ClipTextEncoder:
    """A CLIP text tower, its tokenizer, and the layer that is read.

    skip counts layers from the end, 1 being the last; final_norm tells whether the final layer norm follows. An SD1
    reads (1, True), an SD2 the same of the 23 layers it keeps of 24, an SDXL (2, False) of both its towers.
    takes_clip_skip: whether a clip skip moves the layer; it does so on SD1 only. start_id and end_id frame every chunk
    of 77 ids, pad_id fills it up.
    """

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection
    default_clip_skip: int = 1
    has_final_norm: bool = True
    takes_clip_skip: bool = True

    @property
    def bos_id(self) -> int:
        """What a chunk begins with."""
        return _special_token_id(self.tokenizer.bos_token_id)

    @property
    def eos_id(self) -> int:
        """What ends the words of a chunk."""
        return _special_token_id(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """What fills a chunk up: the end again for CLIP, 0 for OpenCLIP."""
        return _special_token_id(self.tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Features of a token's vector."""
        return int(self.model.config.hidden_size)

    @property
    def layer_count(self) -> int:
        """How many layers it has."""
        return int(self.model.config.num_hidden_layers)

    def pad_to_77(self, tokens: Sequence[int]) -> list[int]:
        """Up to 75 ids with start, end and padding."""
        ids = [self.bos_id, *tokens, self.eos_id]
        return ids + [self.pad_id] * (CONTEXT_LENGTH - len(ids))

    def encode_ids(self, ids: Tensor, clip_skip: int | None = None) -> TextOutput:
        """Encode framed ids (chunks, 77)."""
        skip = clip_skip if clip_skip and self.takes_clip_skip else self.default_clip_skip
        is_last_layer = skip == 1 and self.has_final_norm
        output: Any = self.model(input_ids=ids.to(self.model.device), output_hidden_states=not is_last_layer)
        pooled: Tensor | None = getattr(output, "text_embeds", None)
        if is_last_layer:
            return TextOutput(output.last_hidden_state, pooled)
        hidden: Tensor = output.hidden_states[-skip]
        text_model: Any = getattr(self.model, "text_model", self.model)
        return TextOutput(text_model.final_layer_norm(hidden) if self.has_final_norm else hidden, pooled)


class TextEncoder:
    """The text towers of a base, which read the same tokens: one in an SD1 or SD2, two in an SDXL.

    Their vectors are joined token by token; the pooled prompt is that of the last tower.
    """

    def __init__(self, encoders: Sequence[ClipTextEncoder]) -> None:
        self.encoders = tuple(encoders)
        self.token_registry = TokenRegistry()

    def __getstate__(self) -> dict[str, object]:
        """What deepcopy and pickle make of it: no words, whose vectors its copied towers do not know."""
        return {"encoders": self.encoders, "token_registry": TokenRegistry()}

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first tower's tokenizer, whose ids all towers read."""
        return self.encoders[0].tokenizer

    @property
    def model(self) -> CLIPTextModel | CLIPTextModelWithProjection:
        """The first tower's model."""
        return self.encoders[0].model

    @property
    def width(self) -> int:
        """Features of a token's vector, of all towers together."""
        return sum(encoder.width for encoder in self.encoders)

    def deep_copy(self) -> TextEncoder:
        """The same with models of its own."""
        return TextEncoder([replace(encoder, model=deepcopy(encoder.model)) for encoder in self.encoders])

    @property
    def takes_clip_skip(self) -> bool:
        """Whether a clip skip changes what is read."""
        return any(encoder.takes_clip_skip for encoder in self.encoders)

    def check_clip_skip(self, clip_skip: int) -> None:
        """Raise BadRecipe for a layer that a tower lacks."""
        layer_counts = [encoder.layer_count for encoder in self.encoders if encoder.takes_clip_skip]
        if layer_counts and not 1 <= clip_skip <= min(layer_counts):
            raise BadRecipe(
                f"a clip skip of {clip_skip} reads no layer: this base has 1 (the last) to {min(layer_counts)}"
            )

    def token_ids(self, text: str) -> list[int]:
        """Turn text of any length into ids, without start, end and padding."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def tokenize(self, text: str) -> list[tuple[int, ...]]:
        """What text says in ids: each token by itself, and those that stand for an embedding's vectors together."""
        return self.token_registry.tokenize(text, self.token_ids)

    def encode_chunks(self, chunks: Sequence[Sequence[int]], clip_skip: int | None = None) -> list[TextOutput]:
        """What each tower says of chunks of up to 75 ids.

        clip_skip: which layer from the end is read, 1 being the last; None for that which the base was trained with.
        """
        if clip_skip is not None:
            self.check_clip_skip(clip_skip)
        return [
            encoder.encode_ids(torch.tensor([encoder.pad_to_77(chunk) for chunk in chunks]), clip_skip)
            for encoder in self.encoders
        ]

    def conditioning(self, texts: Iterable[str], clip_skip: int | None = None) -> Conditioning:
        """Encode plain texts; what is past 75 tokens is cut off with a warning."""
        chunks = self._truncate_all(list(texts))
        outputs = self.encode_chunks(chunks, clip_skip)
        context = torch.cat([output.hidden for output in outputs], dim=-1)  # (batch, 77, width)
        return Conditioning(context, outputs[-1].pooled)

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Encode plain texts into contexts (batch, 77, width); what is past 75 tokens is cut off with a warning."""
        return self.conditioning(texts).context

    def _truncate_all(self, texts: Sequence[str]) -> list[list[int]]:
        truncated: list[list[int]] = []
        for row, text in enumerate(texts):
            with encoding_row(row=row, rows=len(texts)):
                truncated.append(self._truncate(text))
        return truncated

    def _truncate(self, text: str) -> list[int]:
        ids: list[int] = []
        token_groups = self.tokenize(text)
        for tokens in token_groups:
            if len(ids) + len(tokens) > CHUNK_LENGTH:
                token_count = sum(map(len, token_groups))
                message = f"{text[:40]!r}... has {token_count} tokens, of which the first {len(ids)} are read: make it shorter"
                warnings.warn(message, VelaturaWarning, stacklevel=5)
                break
            ids += tokens
        return ids


def _special_token_id(token_id: object) -> int:
    assert isinstance(token_id, int)
    return token_id
