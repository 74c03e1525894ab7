"""From prompts to what the UNet reads: chunks of 75 tokens, and emphasis."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import encoding_row
from velatura.base.text_encoder import CONTEXT_LENGTH, TextEncoder, TextOutput
from velatura.prompts.chunks import Chunk, split_into_chunks
from velatura.prompts.prompt import Prompt, WeightedText

EncoderInput = Prompt | WeightedText  # equal words say the same


def chunks_of(text: TextEncoder, prompt: EncoderInput, *, is_negative: bool = False) -> list[Chunk]:
    """The chunks of a prompt as a base's tokenizer makes them, and the names of embeddings that lie over it."""
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
    """Encode prompts, contexts (prompts, 77 * chunk_count, width); fewer chunks are filled up with empty ones.

    Each is encoded by itself, and once however often it occurs: what comes out does not depend on its neighbours.
    clip_skip: as TextEncoder.encode_chunks has it. restores_mean: whether emphasis leaves alone how much a prompt says
    altogether. negative: whether they are to be kept away from; an SDXL is told nothing at all by an empty one.
    """
    encoder = _PromptEncoder(text, chunk_count, clip_skip, restores_mean, is_negative)
    prompt_by_words = {prompt.words: prompt for prompt in prompts}
    conditioning_by_words = {words: encoder.encode_prompt(prompt) for words, prompt in prompt_by_words.items()}
    if is_negative and "" in conditioning_by_words and conditioning_by_words[""].pooled is not None:
        conditioning_by_words[""] = conditioning_by_words[""].zero_out()
    return Conditioning.stack([conditioning_by_words[prompt.words] for prompt in prompts])


def encode_contexts(text: TextEncoder, prompts: Sequence[EncoderInput], chunk_count: int) -> Tensor:
    """What `conditioning` says to cross-attention: (prompts, 77 * chunk_count, width)."""
    return encode_prompts(text, prompts, chunk_count).context


def apply_emphasis(hidden: Tensor, emphasis: Tensor) -> Tensor:
    """Multiply token vectors (..., tokens, width) by their emphasis (..., tokens), and restore the mean of them all.

    The mean is A1111's measure of how much a prompt says altogether, which emphasis is not to change.
    """
    emphasized = hidden * emphasis.unsqueeze(-1)
    return emphasized * (hidden.mean() / emphasized.mean())


@dataclass(frozen=True)
class _PromptEncoder:
    """How prompts are encoded, one by one."""

    text: TextEncoder
    chunk_count: int
    clip_skip: int | None
    restores_mean: bool
    is_negative: bool

    def encode_prompt(self, prompt: EncoderInput) -> Conditioning:
        """Encode one prompt: a context of (77 * chunk_count, width), and its first chunk pooled, (width,)."""
        chunks = chunks_of(self.text, prompt, is_negative=self.is_negative)
        chunks += [[] for _ in range(self.chunk_count - len(chunks))]
        with encoding_row(negative=self.is_negative):
            outputs = self.text.encode_chunks([[piece.token for piece in chunk] for chunk in chunks], self.clip_skip)
        context = torch.cat(
            [self._emphasize_output(output, chunks) for output in outputs], dim=-1
        )  # each tower's mean is its own
        pooled = outputs[-1].pooled
        return Conditioning(context, None if pooled is None else pooled[0].float())

    def _emphasize_output(self, output: TextOutput, chunks: Sequence[Chunk]) -> Tensor:
        """What a tower says of all chunks in a row, (tokens, width)."""
        hidden = output.hidden.float()  # (chunks, 77, width); a mean over all of it is too coarse in float16
        emphasized = [
            self._emphasize_chunk(chunk_hidden, _token_emphasis(chunk).to(chunk_hidden))
            if any(piece.emphasis != 1 for piece in chunk)
            else chunk_hidden
            for chunk_hidden, chunk in zip(hidden, chunks, strict=True)
        ]
        return torch.cat(emphasized)

    def _emphasize_chunk(self, hidden: Tensor, emphasis: Tensor) -> Tensor:
        return apply_emphasis(hidden, emphasis) if self.restores_mean else hidden * emphasis.unsqueeze(-1)


def _token_emphasis(chunk: Chunk) -> Tensor:
    """The emphasis of all 77 tokens; start, end and padding are plain."""
    emphasis = torch.ones(CONTEXT_LENGTH)
    emphasis[1 : 1 + len(chunk)] = torch.tensor([piece.emphasis for piece in chunk])
    return emphasis
