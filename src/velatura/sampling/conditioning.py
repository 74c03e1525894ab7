"""From a prompt to the context that cross-attention reads: chunks of 75 tokens, and emphasis."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from velatura.base.text import TOKENS, TextEncoder
from velatura.prompts.grammar import BREAK, Run
from velatura.prompts.prompt import Prompt

ROOM = TOKENS - 2  # of a chunk, between start and end
LOOK_BACK = 20  # tokens after the last comma of a full chunk that move to the next with their phrase, A1111's default


class Piece(NamedTuple):
    """A token and its emphasis."""

    token: int
    emphasis: float


Chunk = list[Piece]


def chunked(
    runs: Iterable[Run], token_ids: Callable[[str], list[int]], comma: int, look_back: int = LOOK_BACK
) -> list[Chunk]:
    """Lay the tokens of a prompt into chunks of up to 75, the last of them open.

    A chunk that is full gives what follows its last comma to the next, if that is near. A BREAK closes a chunk, even an
    empty one.
    """
    closed: list[Chunk] = []
    chunk: Chunk = []
    for run in runs:
        if run == BREAK:
            closed.append(chunk)
            chunk = []
            continue
        for token in token_ids(run.text):
            if len(chunk) == ROOM:
                kept = ROOM if token == comma else _end_of_phrase(chunk, comma, look_back)
                closed.append(chunk[:kept])
                chunk = chunk[kept:]
            chunk.append(Piece(token, run.emphasis))
    return [*closed, chunk] if chunk or not closed else closed


def chunks_of(text: TextEncoder, prompt: Prompt) -> list[Chunk]:
    """The chunks of a prompt as a base's tokenizer makes them."""
    return chunked(prompt.runs, text.token_ids, comma=text.token_ids(",")[-1])


def contexts(text: TextEncoder, prompts: Sequence[Prompt], chunk_count: int) -> Tensor:
    """Encode prompts into (prompts, 77 * chunk_count, width); those with fewer chunks are filled up with empty ones.

    Each is encoded by itself, and once however often it occurs: what comes out does not depend on its neighbours.
    """
    by_words = {prompt.words: prompt for prompt in prompts}
    encoded = {words: _context(text, chunks_of(text, prompt), chunk_count) for words, prompt in by_words.items()}
    return torch.stack([encoded[prompt.words] for prompt in prompts])


def emphasise(encoded: Tensor, emphasis: Tensor) -> Tensor:
    """Multiply token vectors (..., tokens, width) by their emphasis (..., tokens), and restore the mean of them all.

    The mean is A1111's measure of how much a prompt says altogether, which emphasis is not to change.
    """
    stressed = encoded * emphasis.unsqueeze(-1)
    return stressed * (encoded.mean() / stressed.mean())


def _end_of_phrase(chunk: Chunk, comma: int, look_back: int) -> int:
    """How many pieces of a full chunk stay in it."""
    nearest = next((i for i in reversed(range(len(chunk))) if chunk[i].token == comma), None)
    return len(chunk) if nearest is None or len(chunk) - nearest > look_back else nearest + 1


def _context(text: TextEncoder, chunks: list[Chunk], chunk_count: int) -> Tensor:
    """The context of one prompt, (77 * chunk_count, width)."""
    filled: list[Chunk] = [*chunks, *([] for _ in range(chunk_count - len(chunks)))]
    [said] = text.encode_chunks([[piece.token for piece in chunk] for chunk in filled])
    encoded = said.hidden.float()  # (chunks, 77, width); a mean over all of it is too coarse in float16
    stressed = [
        emphasise(each, _emphasis(chunk).to(each)) if any(piece.emphasis != 1 for piece in chunk) else each
        for each, chunk in zip(encoded, filled, strict=True)
    ]
    return torch.cat(stressed)


def _emphasis(chunk: Chunk) -> Tensor:
    """The emphasis of all 77 tokens; start, end and padding are plain."""
    plain = torch.ones(TOKENS)
    plain[1 : 1 + len(chunk)] = torch.tensor([piece.emphasis for piece in chunk])
    return plain
