"""CLIP text encoders: from text to the conditioning that the UNet reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import encoding_row
from velatura.base.token_registry import TokenRegistry
from velatura.errors import BadRecipe, warn
from velatura.prompts.chunks import CHUNK_LENGTH

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CONTEXT_LENGTH = CHUNK_LENGTH + 2  # with BOS and EOS


class TextOutput(NamedTuple):
    """Output of one text encoder.

    Attributes:
        hidden: (chunks, 77, width).
        pooled: (chunks, width) of an encoder with a projection, else None.
    """

    hidden: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class ClipTextEncoder:
    """A CLIP text model, its tokenizer, and the layer whose output is used.

    SD1 uses the last layer with its final layer norm, SD2 too (its files keep 23 of 24 layers). SDXL uses the last but
    one of both encoders, without the norm.

    Attributes:
        tokenizer, model: transformers' tokenizer and model.
        default_clip_skip: Layer that is used by default, counted from the end: 1 is the last.
        has_final_norm: True if the final layer norm is applied to the layer's output.
        takes_clip_skip: True if a recipe's clip skip chooses the layer, as on SD1.
    """

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection
    default_clip_skip: int = 1
    has_final_norm: bool = True
    takes_clip_skip: bool = True

    @property
    def bos_id(self) -> int:
        """Return the id of the token at the beginning of a chunk."""
        return _special_token_id(self.tokenizer.bos_token_id)

    @property
    def eos_id(self) -> int:
        """Return the id of the token after the words of a chunk."""
        return _special_token_id(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Return the id that fills a chunk up: EOS for CLIP, 0 for OpenCLIP."""
        return _special_token_id(self.tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Return the features of a token's vector."""
        return int(self.model.config.hidden_size)

    @property
    def layer_count(self) -> int:
        """Return the number of layers."""
        return int(self.model.config.num_hidden_layers)

    def pad_to_77(self, tokens: Sequence[int]) -> list[int]:
        """Add BOS, EOS and padding to up to 75 token ids."""
        ids = [self.bos_id, *tokens, self.eos_id]
        return ids + [self.pad_id] * (CONTEXT_LENGTH - len(ids))

    def encode_ids(self, ids: Tensor, clip_skip: int | None = None) -> TextOutput:
        """Encode chunks of token ids.

        Args:
            ids: (chunks, 77) with BOS, EOS and padding, see `pad_to_77`.
            clip_skip: Layer from the end, 1 being the last; None for the default. It is ignored unless
                `takes_clip_skip`.
        """
        skip = clip_skip if clip_skip and self.takes_clip_skip else self.default_clip_skip
        is_last_layer = skip == 1 and self.has_final_norm
        output: Any = self.model(input_ids=ids.to(self.model.device), output_hidden_states=not is_last_layer)
        pooled: Tensor | None = getattr(output, "text_embeds", None)
        if is_last_layer:
            return TextOutput(output.last_hidden_state, pooled)
        hidden: Tensor = output.hidden_states[-skip]
        text_model: Any = getattr(self.model, "text_model", self.model)
        if self.has_final_norm:
            hidden = text_model.final_layer_norm(hidden)
        return TextOutput(hidden, pooled)


class TextEncoder:
    """Text encoders of a base, which read the same tokens: one in SD1 and SD2, two in SDXL.

    Their vectors are concatenated token by token. The pooled prompt is that of the last encoder.
    """

    def __init__(self, encoders: Sequence[ClipTextEncoder]) -> None:
        self.encoders = tuple(encoders)
        self.token_registry = TokenRegistry()

    def __getstate__(self) -> dict[str, object]:
        """Return the state for deepcopy and pickle, without registered tokens: copied encoders lack their vectors."""
        return {"encoders": self.encoders, "token_registry": TokenRegistry()}

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """Return the first encoder's tokenizer, whose ids all encoders read."""
        return self.encoders[0].tokenizer

    @property
    def model(self) -> CLIPTextModel | CLIPTextModelWithProjection:
        """Return the first encoder's model."""
        return self.encoders[0].model

    @property
    def width(self) -> int:
        """Return the features of a token's vector, all encoders together."""
        return sum(encoder.width for encoder in self.encoders)

    def deep_copy(self) -> TextEncoder:
        """Return a copy with its own models, and without registered tokens."""
        return TextEncoder([replace(encoder, model=deepcopy(encoder.model)) for encoder in self.encoders])

    @property
    def takes_clip_skip(self) -> bool:
        """Return True if a clip skip changes the output of any encoder."""
        return any(encoder.takes_clip_skip for encoder in self.encoders)

    def check_clip_skip(self, clip_skip: int) -> None:
        """Raise BadRecipe if an encoder does not have this layer."""
        layer_counts = [encoder.layer_count for encoder in self.encoders if encoder.takes_clip_skip]
        if layer_counts and not 1 <= clip_skip <= min(layer_counts):
            raise BadRecipe(f"clip_skip is {clip_skip}: this base takes 1 (the last layer) to {min(layer_counts)}")

    def token_ids(self, text: str) -> list[int]:
        """Tokenize text of any length, without BOS, EOS and padding."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def tokenize(self, text: str) -> list[tuple[int, ...]]:
        """Tokenize text, with registered names replaced by their tokens.

        Returns:
            Groups of ids: a single token, or all tokens that stand for the vectors of one embedding.
        """
        return self.token_registry.tokenize(text, self.token_ids)

    def encode_chunks(self, chunks: Sequence[Sequence[int]], clip_skip: int | None = None) -> list[TextOutput]:
        """Encode chunks of up to 75 token ids with all encoders.

        Args:
            chunks: Token ids without BOS, EOS and padding.
            clip_skip: Layer from the end, 1 being the last; None for the layer that the base was trained with.

        Raises:
            BadRecipe: if an encoder does not have this layer.
        """
        if clip_skip is not None:
            self.check_clip_skip(clip_skip)
        return [
            encoder.encode_ids(torch.tensor([encoder.pad_to_77(chunk) for chunk in chunks]), clip_skip)
            for encoder in self.encoders
        ]

    def conditioning(self, texts: Iterable[str], clip_skip: int | None = None) -> Conditioning:
        """Encode plain texts, one chunk each. Tokens after the 75th are dropped with a warning.

        Args:
            texts: Texts without prompt syntax.
            clip_skip: See `encode_chunks`.

        Returns:
            Conditioning with a context (batch, 77, width).
        """
        chunks = self._truncate_all(list(texts))
        outputs = self.encode_chunks(chunks, clip_skip)
        context = torch.cat([output.hidden for output in outputs], dim=-1)  # (batch, 77, width)
        return Conditioning(context, outputs[-1].pooled)

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Encode plain texts into a context (batch, 77, width). Tokens after the 75th are dropped with a warning."""
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
                warn(
                    f"{text[:40]!r}... has {token_count} tokens: the first {len(ids)} are read, the rest is ignored. "
                    "Make it shorter"
                )
                break
            ids += tokens
        return ids


def _special_token_id(token_id: object) -> int:
    assert isinstance(token_id, int)
    return token_id
