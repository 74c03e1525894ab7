"""Captions as conditioning: encoded once, or at every step if a template or the trained overlay changes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import cast

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.text_encoder import TextEncoder
from velatura.datasets.templates import FILEWORDS_PLACEHOLDER, NAME_PLACEHOLDER, CaptionTemplate
from velatura.overlays.overlay import Overlay
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, encode_prompts
from velatura.training.data.caption_cache import CaptionCache
from velatura.training.data.encoding_cache import EncodingCache
from velatura.training.noise import derive_seed

MAX_CACHED_TEXTS = 256  # the conditioning of one takes 240 kB for SD1, 630 kB for SDXL


def caption_name(overlay: Overlay) -> str:
    """Return the word for an overlay in captions: its first trigger word, or else its name."""
    return (*overlay.card.trigger_words, overlay.card.name)[0]


class CaptionConditioning:
    """Turns the captions of pictures into conditioning for training steps and validation.

    Args:
        text: The base's text encoders.
        captions: One caption per picture.
        template: Turns a caption into the text of a step; by default the caption itself.
        trains_text: The overlay acts in the text encoders, so texts are encoded at every step, with gradients.
            Otherwise every text is encoded once, and before the first step if it never changes.
        encoding_cache: Keeps texts that never change on disk between runs.
    """

    def __init__(
        self,
        text: TextEncoder,
        captions: Sequence[str],
        template: CaptionTemplate | None = None,
        *,
        trains_text: bool = False,
        encoding_cache: EncodingCache | None = None,
    ) -> None:
        self.captions = tuple(captions)
        self.template = template or CaptionTemplate()
        self.trains_text = trains_text
        self._text = text
        self._caption_cache = CaptionCache(text, encoding_cache)
        self._recent_conds: OrderedDict[tuple[str, int], Conditioning] = OrderedDict()
        self._fixed_cond = self.encode_fixed() if self.template.is_fixed and not trains_text else None

    @property
    def picture_count(self) -> int:
        """Return the number of pictures."""
        return len(self.captions)

    def encode_batch(self, pictures: Tensor, captionless: Tensor, seed: int, offset: int) -> Conditioning:
        """Return the conditioning of a batch.

        Args:
            pictures: Indices of pictures, (batch,).
            captionless: True where an empty text replaces the caption, (batch,).
            seed: Seed of the template's random choices.
            offset: Number of pictures trained on before this batch.
        """
        if self._fixed_cond:
            return self._fixed_cond.select_rows(torch.where(captionless, self.picture_count, pictures))
        texts = [
            "" if is_captionless else self._draw_text(picture, seed, offset + row)
            for row, (picture, is_captionless) in enumerate(zip(_to_ints(pictures), _to_ints(captionless), strict=True))
        ]
        return self._encode_texts(texts)

    def encode_for_validation(self, pictures: Tensor) -> Conditioning:
        """Return the conditioning of pictures, (batch,), from texts that never change with step or seed."""
        if self._fixed_cond:
            return self._fixed_cond.select_rows(pictures)
        return self._encode_texts([self._draw_text(picture, 0, picture) for picture in _to_ints(pictures)])

    def is_affected_by(self, vectors: Sequence[Tensor], picture: int) -> bool:
        """Return True if the conditioning of a picture depends on any of the given vectors."""
        context = self.encode_for_validation(torch.tensor([picture])).context
        if not context.requires_grad:
            return False
        gradients = torch.autograd.grad(context.square().sum(), vectors, materialize_grads=True)
        return any(bool(gradient.any()) for gradient in gradients)

    @torch.no_grad()
    def encode_fixed(self) -> Conditioning:
        """Return one row per caption, and a last row for the empty text (as negative prompt), without gradients."""
        texts = [*(self.template.draw(caption, Random(0)) for caption in self.captions), ""]
        encode = self._encode if self.trains_text else self._caption_cache.encode
        conds = {text: encode(Prompt(text, text), self._chunk_count) for text in set(texts)}
        return Conditioning.concatenate([conds[text] for text in texts])

    def _draw_text(self, picture: int, seed: int, number: int) -> str:
        return self.template.draw(self.captions[picture], Random(derive_seed(seed, "wording", number)))

    def _encode_texts(self, texts: Sequence[str]) -> Conditioning:
        prompts = {text: Prompt(text, text) for text in texts}
        count = max(self._chunk_count, *(len(chunks_of(self._text, prompt)) for prompt in prompts.values()))
        encode = self._encode if self.trains_text else self._encode_cached
        conds = {text: encode(prompt, count) for text, prompt in prompts.items()}
        return Conditioning.concatenate([conds[text] for text in texts])

    @cached_property
    def _chunk_count(self) -> int:
        """Return the number of chunks of the longest caption, so that contexts have (nearly) the same length always."""
        lines = [line.replace(NAME_PLACEHOLDER, self.template.name) for line in self.template.lines]
        captions = {choice for caption in self.captions for choice in self.template.caption_choices(caption)}
        texts = {line.replace(FILEWORDS_PLACEHOLDER, caption) for line in lines for caption in captions}
        return max(len(chunks_of(self._text, Prompt(text, text))) for text in texts)

    @torch.no_grad()
    def _encode_cached(self, prompt: Prompt, count: int) -> Conditioning:
        key = prompt.words, count
        if key not in self._recent_conds:
            self._recent_conds[key] = self._encode(prompt, count)
        self._recent_conds.move_to_end(key)
        if len(self._recent_conds) > MAX_CACHED_TEXTS:
            self._recent_conds.popitem(last=False)
        return self._recent_conds[key]

    def _encode(self, prompt: Prompt, count: int) -> Conditioning:
        return encode_prompts(self._text, [prompt], count, is_negative=not prompt.words)


def _to_ints(rows: Tensor) -> list[int]:
    return cast("list[int]", rows.tolist())  # pyright: ignore[reportUnknownMemberType]
