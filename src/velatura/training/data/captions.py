"""What is said of the pictures while an overlay trains: their captions, worded anew where the plan says so."""

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

MAX_CACHED_TEXTS = 256  # texts; what an SD1 is told by one takes 240 kB, an SDXL 630


def caption_name(overlay: Overlay) -> str:
    """What an overlay is called by in captions: its first trigger word, or else its name."""
    return (*overlay.card.trigger_words, overlay.card.name)[0]


class CaptionConditioning:
    """What the base is told of each picture, by its caption.

    is_learned: whether the overlay changes what words say, so that they are encoded at every step, with gradients.
    Else each text is encoded once, and where it is the same at each step, before the first; encodings: where what is
    said is kept then between runs.
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
        self.captions, self.template, self.trains_text = tuple(captions), template or CaptionTemplate(), trains_text
        self._text, self._caption_cache = text, CaptionCache(text, encoding_cache)
        self._recent_conds: OrderedDict[tuple[str, int], Conditioning] = OrderedDict()
        self._fixed_cond = self.encode_fixed() if self.template.is_fixed and not trains_text else None

    @property
    def picture_count(self) -> int:
        """How many pictures there are."""
        return len(self.captions)

    def encode_batch(self, pictures: Tensor, captionless: Tensor, seed: int, offset: int) -> Conditioning:
        """What is said of pictures (batch,), nothing of those that are captionless (batch,).

        first: how many pictures were learned from before these.
        """
        if self._fixed_cond:
            return self._fixed_cond.select_rows(torch.where(captionless, self.picture_count, pictures))
        texts = [self._draw_text(picture, seed, offset + row) for row, picture in enumerate(_to_ints(pictures))]
        return self._encode_texts(
            ["" if is_empty else text for text, is_empty in zip(texts, _to_ints(captionless), strict=True)]
        )

    def encode_for_validation(self, pictures: Tensor) -> Conditioning:
        """What is said of pictures (batch,) when they are examined: worded the same at each try, and for each seed."""
        if self._fixed_cond:
            return self._fixed_cond.select_rows(pictures)
        return self._encode_texts([self._draw_text(picture, 0, picture) for picture in _to_ints(pictures)])

    def is_affected_by(self, vectors: Sequence[Tensor], picture: int) -> bool:
        """Whether some vectors have a part in what is said of a picture."""
        context = self.encode_for_validation(torch.tensor([picture])).context
        if not context.requires_grad:
            return False
        gradients = torch.autograd.grad(context.square().sum(), vectors, materialize_grads=True)
        return any(bool(gradient.any()) for gradient in gradients)

    @torch.no_grad()
    def encode_fixed(self) -> Conditioning:
        """A row for each caption, and a last one for none, which says what an empty negative prompt does."""
        texts = [*(self.template.draw(caption, Random(0)) for caption in self.captions), ""]
        encode = self._encode if self.trains_text else self._caption_cache.encode
        conds = {line: encode(Prompt(line, line), self._chunk_count) for line in set(texts)}
        return Conditioning.concatenate([conds[line] for line in texts])

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
        """How many chunks the longest caption takes, so that contexts are as long at each step, or nearly."""
        lines = [line.replace(NAME_PLACEHOLDER, self.template.name) for line in self.template.lines]
        texts = {line.replace(FILEWORDS_PLACEHOLDER, caption) for line in lines for caption in self.captions}
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
