"""From prompts to what the UNet reads: chunks of 75 tokens, and emphasis."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.hearing import hearing
from velatura.base.text import TOKENS, Said, TextEncoder
from velatura.prompts.chunks import Chunk, chunked
from velatura.prompts.prompt import Prompt, Voice

Words = Prompt | Voice  # equal words say the same


def chunks_of(text: TextEncoder, prompt: Words, *, negative: bool = False) -> list[Chunk]:
    """The chunks of a prompt as a base's tokenizer makes them, and the names of embeddings that lie over it."""
    with hearing(negative=negative):
        return chunked(prompt.runs, text.read, comma=text.token_ids(",")[-1])


def conditioning(
    text: TextEncoder,
    prompts: Sequence[Words],
    chunk_count: int,
    *,
    clip_skip: int | None = None,
    restores_mean: bool = True,
    negative: bool = False,
) -> Conditioning:
    """Encode prompts, contexts (prompts, 77 * chunk_count, width); fewer chunks are filled up with empty ones.

    Each is encoded by itself, and once however often it occurs: what comes out does not depend on its neighbours.
    clip_skip: as TextEncoder.encode_chunks has it. restores_mean: whether emphasis leaves alone how much a prompt says
    altogether. negative: whether they are to be kept away from; an SDXL is told nothing at all by an empty one.
    """
    encoder = _Encoder(text, chunk_count, clip_skip, restores_mean, negative)
    by_words = {prompt.words: prompt for prompt in prompts}
    encoded = {words: encoder.conditioning(prompt) for words, prompt in by_words.items()}
    if negative and "" in encoded and encoded[""].pooled is not None:
        encoded[""] = encoded[""].silenced()
    return Conditioning.stacked([encoded[prompt.words] for prompt in prompts])


def contexts(text: TextEncoder, prompts: Sequence[Words], chunk_count: int) -> Tensor:
    """What `conditioning` says to cross-attention: (prompts, 77 * chunk_count, width)."""
    return conditioning(text, prompts, chunk_count).context


def emphasise(encoded: Tensor, emphasis: Tensor) -> Tensor:
    """Multiply token vectors (..., tokens, width) by their emphasis (..., tokens), and restore the mean of them all.

    The mean is A1111's measure of how much a prompt says altogether, which emphasis is not to change.
    """
    stressed = encoded * emphasis.unsqueeze(-1)
    return stressed * (encoded.mean() / stressed.mean())


@dataclass(frozen=True)
class _Encoder:
    """How prompts are encoded, one by one."""

    text: TextEncoder
    chunk_count: int
    clip_skip: int | None
    restores_mean: bool
    negative: bool

    def conditioning(self, prompt: Words) -> Conditioning:
        """Encode one prompt: a context of (77 * chunk_count, width), and its first chunk pooled, (width,)."""
        chunks = chunks_of(self.text, prompt, negative=self.negative)
        chunks += [[] for _ in range(self.chunk_count - len(chunks))]
        with hearing(negative=self.negative):
            said = self.text.encode_chunks([[piece.token for piece in chunk] for chunk in chunks], self.clip_skip)
        context = torch.cat([self._stressed(each, chunks) for each in said], dim=-1)  # each tower's mean is its own
        pooled = said[-1].pooled
        return Conditioning(context, None if pooled is None else pooled[0].float())

    def _stressed(self, said: Said, chunks: Sequence[Chunk]) -> Tensor:
        """What a tower says of all chunks in a row, (tokens, width)."""
        hidden = said.hidden.float()  # (chunks, 77, width); a mean over all of it is too coarse in float16
        stressed = [
            self._stress(each, _emphasis(chunk).to(each)) if any(piece.emphasis != 1 for piece in chunk) else each
            for each, chunk in zip(hidden, chunks, strict=True)
        ]
        return torch.cat(stressed)

    def _stress(self, encoded: Tensor, emphasis: Tensor) -> Tensor:
        return emphasise(encoded, emphasis) if self.restores_mean else encoded * emphasis.unsqueeze(-1)


def _emphasis(chunk: Chunk) -> Tensor:
    """The emphasis of all 77 tokens; start, end and padding are plain."""
    plain = torch.ones(TOKENS)
    plain[1 : 1 + len(chunk)] = torch.tensor([piece.emphasis for piece in chunk])
    return plain
