"""Conditioning of single texts by a base's text encoders, kept on disk between runs."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.text_encoder import TextEncoder
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, encode_prompts
from velatura.training.data.encoding_cache import EncodingCache, cache_key, fingerprint_models


class CaptionCache:
    """Encodes texts with a base on which no overlay acts, or reads them from an `EncodingCache`."""

    def __init__(self, text: TextEncoder, encoding_cache: EncodingCache | None = None) -> None:
        self._text = text
        self._encoding_cache = encoding_cache or EncodingCache()

    @torch.no_grad()
    def encode(self, prompt: Prompt, chunk_count: int) -> Conditioning:
        """Return the conditioning of a prompt, one row; an empty prompt is encoded as an empty negative prompt.

        Args:
            prompt: Text without overlay tags.
            chunk_count: Number of chunks of 77 tokens to pad to.
        """
        tensors = self._encoding_cache.get_or_make(
            self._key(prompt, chunk_count), lambda: self._encode(prompt, chunk_count)
        )
        device = self._text.model.device
        pooled = tensors.get("pooled")
        return Conditioning(tensors["context"].to(device), None if pooled is None else pooled.to(device))

    def _key(self, prompt: Prompt, chunk_count: int) -> str | None:
        """Return a key made from token ids, because the same words may have other ids in another vocabulary."""
        if self._encoder_fingerprint is None:
            return None
        chunks = chunks_of(self._text, prompt)
        encoder_settings = [
            (encoder.default_clip_skip, encoder.has_final_norm, encoder.bos_id, encoder.eos_id, encoder.pad_id)
            for encoder in self._text.encoders
        ]
        inputs = {"chunks": chunks, "count": chunk_count, "silent": not prompt.words, "frames": encoder_settings}
        return cache_key(inputs, self._encoder_fingerprint)

    @cached_property
    def _encoder_fingerprint(self) -> str | None:
        return fingerprint_models([encoder.model for encoder in self._text.encoders])

    def _encode(self, prompt: Prompt, chunk_count: int) -> dict[str, Tensor]:
        cond = encode_prompts(self._text, [prompt], chunk_count, is_negative=not prompt.words)
        pooled = {} if cond.pooled is None else {"pooled": cond.pooled}
        return {"context": cond.context} | pooled
