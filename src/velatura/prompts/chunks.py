"""Chunks of 75 tokens: long prompts are encoded chunk by chunk."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from velatura.prompts.emphasis import BREAK, Fragment

CHUNK_LENGTH = 75  # CLIP reads 77 tokens, with BOS and EOS
COMMA_BACKTRACK = 20  # tokens; A1111's default of comma_padding_backtrack


class EmphasizedToken(NamedTuple):
    """A token id with its emphasis."""

    token: int
    emphasis: float


Chunk = list[EmphasizedToken]
TokenizeText = Callable[[str], Iterable[tuple[int, ...]]]


def split_into_chunks(
    fragments: Iterable[Fragment],
    tokenize: TokenizeText,
    comma_id: int,
    comma_backtrack: int = COMMA_BACKTRACK,
) -> list[Chunk]:
    """Split the tokens of a prompt into chunks of up to 75.

    If a chunk is full, the tokens after its last comma move to the next chunk. A BREAK ends a chunk, even an empty one.

    Args:
        fragments: Words with their emphasis.
        tokenize: Returns the token ids of a text in groups; a group, such as the vectors of an embedding, stays in one
            chunk.
        comma_id: Token id of a comma.
        comma_backtrack: Maximum number of tokens that move to the next chunk.

    Returns:
        At least one chunk, which may be empty.
    """
    closed, chunk = _fill_chunks(fragments, tokenize, comma_id, comma_backtrack)
    return [*closed, chunk] if chunk or not closed else closed


def token_count(
    fragments: Iterable[Fragment],
    tokenize: TokenizeText,
    comma_id: int,
    comma_backtrack: int = COMMA_BACKTRACK,
) -> int:
    """Return the length of a prompt as A1111 shows it: a complete chunk counts 75 tokens, however many it holds."""
    closed, chunk = _fill_chunks(fragments, tokenize, comma_id, comma_backtrack)
    return CHUNK_LENGTH * len(closed) + len(chunk)


def _fill_chunks(
    fragments: Iterable[Fragment], tokenize: TokenizeText, comma_id: int, comma_backtrack: int
) -> tuple[list[Chunk], Chunk]:
    """Return the complete chunks, and the last one, which may have room for more."""
    closed: list[Chunk] = []
    chunk: Chunk = []
    for fragment in fragments:
        if fragment == BREAK:
            closed.append(chunk)
            chunk = []
            continue
        for tokens in tokenize(fragment.text):
            if len(chunk) == CHUNK_LENGTH:
                is_comma = tuple(tokens) == (comma_id,)
                kept_count = CHUNK_LENGTH if is_comma else _end_of_phrase(chunk, comma_id, comma_backtrack)
                closed.append(chunk[:kept_count])
                chunk = chunk[kept_count:]
            if len(chunk) + len(tokens) > CHUNK_LENGTH:
                closed.append(chunk)
                chunk = []
            chunk.extend(EmphasizedToken(token, fragment.emphasis) for token in tokens)
    return closed, chunk


def _end_of_phrase(chunk: Chunk, comma_id: int, comma_backtrack: int) -> int:
    """Return how many tokens of a full chunk stay in it."""
    last_comma = next((i for i in reversed(range(len(chunk))) if chunk[i].token == comma_id), None)
    if last_comma is None or len(chunk) - last_comma > comma_backtrack:
        return len(chunk)
    return last_comma + 1
