"""How the tokens of a prompt are laid into chunks of 75."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from velatura.prompts.grammar import BREAK, Run

ROOM = 75  # of the 77 tokens that an encoder reads, between start and end
LOOK_BACK = 20  # tokens after the last comma of a full chunk that move to the next with their phrase, A1111's default


class Piece(NamedTuple):
    """A token and its emphasis."""

    token: int
    emphasis: float


Chunk = list[Piece]
Read = Callable[[str], Iterable[tuple[int, ...]]]


def chunked(
    runs: Iterable[Run],
    read: Read,
    comma: int,
    look_back: int = LOOK_BACK,
) -> list[Chunk]:
    """Lay the tokens of a prompt into chunks of up to 75, the last of them open.

    A chunk that is full gives what follows its last comma to the next, if that is near. A BREAK closes a chunk, even an
    empty one. read: what a text says in tokens, those of an embedding's vectors in one group, which stays together.
    """
    closed, chunk = _laid(runs, read, comma, look_back)
    return [*closed, chunk] if chunk or not closed else closed


def token_count(
    runs: Iterable[Run],
    read: Read,
    comma: int,
    look_back: int = LOOK_BACK,
) -> int:
    """The length of a prompt as the webui shows it: closed chunks count 75 tokens, however many they hold."""
    closed, chunk = _laid(runs, read, comma, look_back)
    return ROOM * len(closed) + len(chunk)


def _laid(runs: Iterable[Run], read: Read, comma: int, look_back: int) -> tuple[list[Chunk], Chunk]:
    """The chunks that are closed, and the open one."""
    closed: list[Chunk] = []
    chunk: Chunk = []
    for run in runs:
        if run == BREAK:
            closed.append(chunk)
            chunk = []
            continue
        for tokens in read(run.text):
            if len(chunk) == ROOM:
                kept = ROOM if tuple(tokens) == (comma,) else _end_of_phrase(chunk, comma, look_back)
                closed.append(chunk[:kept])
                chunk = chunk[kept:]
            if len(chunk) + len(tokens) > ROOM:
                closed.append(chunk)
                chunk = []
            chunk.extend(Piece(token, run.emphasis) for token in tokens)
    return closed, chunk


def _end_of_phrase(chunk: Chunk, comma: int, look_back: int) -> int:
    """How many pieces of a full chunk stay in it."""
    nearest = next((i for i in reversed(range(len(chunk))) if chunk[i].token == comma), None)
    return len(chunk) if nearest is None or len(chunk) - nearest > look_back else nearest + 1
