"""From prompts to the conditioning that the UNet reads: chunks of 75 tokens, emphasis, and a cache of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import encoding_row
from velatura.base.text_encoder import CONTEXT_LENGTH, TextEncoder, TextOutput
from velatura.prompts.chunks import Chunk, split_into_chunks
from velatura.prompts.emphasis import EmphasisMode
from velatura.prompts.prompt import Prompt, ScheduledPrompt, WeightedText
from velatura.prompts.prompt_editing import Timing

EncoderInput = Prompt | WeightedText  # with equal `words` they are encoded alike

MAX_CACHED_TEXTS = 256  # texts in a ConditioningCache; one takes 240 KB for SD1


@dataclass(frozen=True)
class PromptPair:
    """A prompt and negative prompt of one picture, each as a schedule over the calls of the model."""

    positive: Sequence[ScheduledPrompt]
    negative: Sequence[ScheduledPrompt]

    @classmethod
    def schedule(cls, prompt: Prompt, negative: Prompt, timing: Timing, emphasis: EmphasisMode) -> PromptPair:
        """Schedule two prompts over the calls of the model that a pass makes."""
        return cls(prompt.schedule(timing, emphasis), negative.schedule(timing, emphasis))

    @property
    def is_single_static_prompt(self) -> bool:
        """True if the prompt is one text that never changes and has a weight of 1."""
        return len(self.positive) == 1 and self.is_single_prompt

    @property
    def is_single_prompt(self) -> bool:
        """True if the prompt is one text of weight 1 at each step, so that a guidance of 1 needs no negative prompt."""
        return all([text.weight for text in entry.texts] == [1.0] for entry in self.positive)

    @property
    def texts(self) -> list[WeightedText]:
        """Every text of both schedules, as often as it occurs."""
        return [text for schedule in (self.positive, self.negative) for entry in schedule for text in entry.texts]

    def chunk_count(self, base: Base) -> int:
        """Return the number of chunks of the longest text."""
        sides = ((self.positive, False), (self.negative, True))
        return max(
            len(chunks_of(base.text, text, is_negative=is_negative))
            for schedule, is_negative in sides
            for entry in schedule
            for text in entry.texts
        )


class ConditioningCache:
    """A cache of conditionings, so that a base encodes each text once, however many pictures use it."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._conditionings: dict[object, Conditioning] = {}

    def encode(
        self,
        text: WeightedText,
        chunk_count: int,
        *,
        clip_skip: int | None = None,
        restores_mean: bool = True,
        is_negative: bool = False,
        text_strengths: tuple[float, ...] = (),
    ) -> Conditioning:
        """Return the conditioning of one text, as a batch of one.

        Args:
            text: The text.
            chunk_count: The number of chunks that it is padded to.
            clip_skip, restores_mean, is_negative: As in encode_prompts.
            text_strengths: The current strengths of overlays that change what texts are encoded to.
        """
        key = text.words, text.emphasis, chunk_count, clip_skip, is_negative, text_strengths
        if key not in self._conditionings:
            while len(self._conditionings) >= MAX_CACHED_TEXTS:
                del self._conditionings[next(iter(self._conditionings))]
            self._conditionings[key] = encode_prompts(
                self._base.text,
                [text],
                chunk_count,
                clip_skip=clip_skip,
                restores_mean=restores_mean,
                is_negative=is_negative,
            )
        return self._conditionings[key]


def chunks_of(text: TextEncoder, prompt: EncoderInput, *, is_negative: bool = False) -> list[Chunk]:
    """Tokenize a prompt and split it into chunks of 75 tokens, with the embeddings that are attached now."""
    with encoding_row(negative=is_negative):
        return split_into_chunks(prompt.fragments, text.tokenize, comma_id=text.token_ids(",")[-1])


def encode_prompts(
    text: TextEncoder,
    prompts: Sequence[EncoderInput],
    chunk_count: int,
    *,
    clip_skip: int | None = None,
    restores_mean: bool = True,
    is_negative: bool = False,
) -> Conditioning:
    """Encode prompts one by one, so that the result of one does not depend on the others.

    Args:
        text: The text encoders of a base.
        prompts: The prompts; equal ones are encoded once.
        chunk_count: The number of chunks that every prompt is padded to.
        clip_skip: As in TextEncoder.encode_chunks.
        restores_mean: Keep the mean of all token vectors as it is without emphasis, as A1111 does ("Original").
        is_negative: True for negative prompts. SDXL gets zeros for an empty one.

    Returns:
        Conditioning with contexts of (prompts, 77 * chunk_count, width).
    """
    encoder = _PromptEncoder(text, chunk_count, clip_skip, restores_mean, is_negative)
    prompt_by_words = {prompt.words: prompt for prompt in prompts}
    conditioning_by_words = {words: encoder.encode_prompt(prompt) for words, prompt in prompt_by_words.items()}
    if is_negative and "" in conditioning_by_words and conditioning_by_words[""].pooled is not None:
        conditioning_by_words[""] = conditioning_by_words[""].zero_out()
    return Conditioning.stack([conditioning_by_words[prompt.words] for prompt in prompts])


def apply_emphasis(hidden: Tensor, emphasis: Tensor) -> Tensor:
    """Multiply token vectors by their emphasis, and restore the mean over all of them as A1111 does.

    Args:
        hidden: (..., tokens, width).
        emphasis: (..., tokens), 1 for plain tokens.
    """
    emphasized = hidden * emphasis.unsqueeze(-1)
    return emphasized * (hidden.mean() / emphasized.mean())


@dataclass(frozen=True)
class _PromptEncoder:
    """Options of encode_prompts, with the steps that encode one prompt."""

    text: TextEncoder
    chunk_count: int
    clip_skip: int | None
    restores_mean: bool
    is_negative: bool

    def encode_prompt(self, prompt: EncoderInput) -> Conditioning:
        """Encode one prompt: the context is (77 * chunk_count, width), the pooled first chunk (width,)."""
        chunks = chunks_of(self.text, prompt, is_negative=self.is_negative)
        chunks += [[] for _ in range(self.chunk_count - len(chunks))]
        has_emphasis = any(piece.emphasis != 1 for chunk in chunks for piece in chunk)
        needs_empty = has_emphasis and isinstance(prompt, WeightedText) and prompt.emphasis == "ComfyUI"
        tokens = [[piece.token for piece in chunk] for chunk in chunks]
        with encoding_row(negative=self.is_negative):
            outputs = self.text.encode_chunks([*tokens, []] if needs_empty else tokens, self.clip_skip)
        # The mean is restored for every encoder by itself
        emphasize = self._emphasize_relative if needs_empty else self._emphasize_output
        context = torch.cat([emphasize(output, chunks) for output in outputs], dim=-1)
        pooled = outputs[-1].pooled
        return Conditioning(context, None if pooled is None else pooled[0].float())

    def _emphasize_output(self, output: TextOutput, chunks: Sequence[Chunk]) -> Tensor:
        """Apply the emphasis to one encoder's output, and join the chunks: (tokens, width)."""
        hidden = output.hidden.float()  # (chunks, 77, width); float16 is too coarse for a mean over all of it
        emphasized = [
            self._emphasize_chunk(chunk_hidden, chunk) for chunk_hidden, chunk in zip(hidden, chunks, strict=True)
        ]
        return torch.cat(emphasized)

    def _emphasize_relative(self, output: TextOutput, chunks: Sequence[Chunk]) -> Tensor:
        """Apply the emphasis as ComfyUI does, to the difference from an empty prompt, the last chunk of the output."""
        *hidden, empty = output.hidden.float()  # each (77, width)
        return torch.cat(
            [
                empty + (chunk_hidden - empty) * _token_emphasis(chunk).to(chunk_hidden).unsqueeze(-1)
                for chunk_hidden, chunk in zip(hidden, chunks, strict=True)
            ]
        )

    def _emphasize_chunk(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        if all(piece.emphasis == 1 for piece in chunk):
            return hidden
        emphasis = _token_emphasis(chunk).to(hidden)
        return apply_emphasis(hidden, emphasis) if self.restores_mean else hidden * emphasis.unsqueeze(-1)


def _token_emphasis(chunk: Chunk) -> Tensor:
    """Return the emphasis of all 77 tokens; that of the start, the end and the padding is 1."""
    emphasis = torch.ones(CONTEXT_LENGTH)
    emphasis[1 : 1 + len(chunk)] = torch.tensor([piece.emphasis for piece in chunk])
    return emphasis
