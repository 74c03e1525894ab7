"""How the tokens of a prompt are laid into chunks of 75."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from velatura.prompts.grammar import BREAK, Fragment

CHUNK_LENGTH = 75  # of the 77 tokens that an encoder reads, between start and end
COMMA_BACKTRACK = (
    20  # tokens after the last comma of a full chunk that move to the next with their phrase, A1111's default
)


class EmphasizedToken(NamedTuple):
    """A token and its emphasis."""

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
    """Lay the tokens of a prompt into chunks of up to 75, the last of them open.

    A chunk that is full gives what follows its last comma to the next, if that is near. A BREAK closes a chunk, even an
    empty one. read: what a text says in tokens, those of an embedding's vectors in one group, which stays together.
    """
    closed, chunk = _fill_chunks(fragments, tokenize, comma_id, comma_backtrack)
    return [*closed, chunk] if chunk or not closed else closed


def token_count(
    fragments: Iterable[Fragment],
    tokenize: TokenizeText,
    comma_id: int,
    comma_backtrack: int = COMMA_BACKTRACK,
) -> int:
    """The length of a prompt as the webui shows it: closed chunks count 75 tokens, however many they hold."""
    closed, chunk = _fill_chunks(fragments, tokenize, comma_id, comma_backtrack)
    return CHUNK_LENGTH * len(closed) + len(chunk)


def _fill_chunks(
    fragments: Iterable[Fragment], tokenize: TokenizeText, comma_id: int, comma_backtrack: int
) -> tuple[list[Chunk], Chunk]:
    """The chunks that are closed, and the open one."""
    closed: list[Chunk] = []
    chunk: Chunk = []
    for fragment in fragments:
        if fragment == BREAK:
            closed.append(chunk)
            chunk = []
            continue
        for tokens in tokenize(fragment.text):
            if len(chunk) == CHUNK_LENGTH:
                kept_count = (
                    CHUNK_LENGTH if tuple(tokens) == (comma_id,) else _end_of_phrase(chunk, comma_id, comma_backtrack)
                )
                closed.append(chunk[:kept_count])
                chunk = chunk[kept_count:]
            if len(chunk) + len(tokens) > CHUNK_LENGTH:
                closed.append(chunk)
                chunk = []
            chunk.extend(EmphasizedToken(token, fragment.emphasis) for token in tokens)
    return closed, chunk


def _end_of_phrase(chunk: Chunk, comma_id: int, comma_backtrack: int) -> int:
    """How many pieces of a full chunk stay in it."""
    last_comma = next((i for i in reversed(range(len(chunk))) if chunk[i].token == comma_id), None)
    return len(chunk) if last_comma is None or len(chunk) - last_comma > comma_backtrack else last_comma + 1
