"""How the tokens of a prompt are laid into chunks of 75, and how names of embeddings are found among them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from velatura.errors import BadOverlay
from velatura.prompts.grammar import BREAK, Run

ROOM = 75  # of the 77 tokens that an encoder reads, between start and end
LOOK_BACK = 20  # tokens after the last comma of a full chunk that move to the next with their phrase, A1111's default


class Piece(NamedTuple):
    """A token and its emphasis."""

    token: int
    emphasis: float


class Word(NamedTuple):
    """A name that stands for vectors: the tokens it is spelled with, and those that stand for its vectors."""

    name: str
    spelling: tuple[int, ...]
    vectors: tuple[int, ...]


Chunk = list[Piece]


class Words:
    """The names of embeddings, found where a prompt spells them, token by token: the longest one first.

    A name that is part of a longer word of the tokenizer's is not found in it; one of several words is.
    """

    def __init__(self, words: Iterable[Word] = ()) -> None:
        self._by_first: dict[int, dict[tuple[int, ...], Word]] = {}
        for word in words:
            if len(word.vectors) > ROOM:
                reason = (
                    f"{word.name} has {len(word.vectors)} vectors; a prompt has room for up to {ROOM} of one embedding"
                )
                raise BadOverlay(reason)
            if word.spelling:
                self._by_first.setdefault(word.spelling[0], {})[word.spelling] = word
        self._lengths = {
            first: sorted({len(spelling) for spelling in words}, reverse=True)
            for first, words in self._by_first.items()
        }

    def read(self, tokens: Sequence[int]) -> Iterator[int | Word]:
        """The tokens in their order, and in place of those that spell a name its word."""
        place = 0
        while place < len(tokens):
            word = self._at(tokens, place)
            yield tokens[place] if word is None else word
            place += 1 if word is None else len(word.spelling)

    def spelled(self, tokens: Sequence[int]) -> list[str]:
        """The names that the tokens spell, in their order."""
        return [each.name for each in self.read(tokens) if isinstance(each, Word)]

    def _at(self, tokens: Sequence[int], place: int) -> Word | None:
        words = self._by_first.get(tokens[place])
        if words is None:
            return None
        spellings = (tuple(tokens[place : place + length]) for length in self._lengths[tokens[place]])
        return next((words[each] for each in spellings if each in words), None)


NO_WORDS = Words()


def chunked(
    runs: Iterable[Run],
    token_ids: Callable[[str], list[int]],
    comma: int,
    look_back: int = LOOK_BACK,
    words: Words = NO_WORDS,
) -> list[Chunk]:
    """Lay the tokens of a prompt into chunks of up to 75, the last of them open.

    A chunk that is full gives what follows its last comma to the next, if that is near. A BREAK closes a chunk, even an
    empty one. The vectors of an embedding stay together.
    """
    closed, chunk = _laid(runs, token_ids, comma, look_back, words)
    return [*closed, chunk] if chunk or not closed else closed


def token_count(
    runs: Iterable[Run],
    token_ids: Callable[[str], list[int]],
    comma: int,
    look_back: int = LOOK_BACK,
    words: Words = NO_WORDS,
) -> int:
    """The length of a prompt as the webui shows it: closed chunks count 75 tokens, however many they hold."""
    closed, chunk = _laid(runs, token_ids, comma, look_back, words)
    return ROOM * len(closed) + len(chunk)


def _laid(
    runs: Iterable[Run], token_ids: Callable[[str], list[int]], comma: int, look_back: int, words: Words
) -> tuple[list[Chunk], Chunk]:
    """The chunks that are closed, and the open one."""
    closed: list[Chunk] = []
    chunk: Chunk = []
    for run in runs:
        if run == BREAK:
            closed.append(chunk)
            chunk = []
            continue
        for each in words.read(token_ids(run.text)):
            if len(chunk) == ROOM:
                kept = ROOM if each == comma else _end_of_phrase(chunk, comma, look_back)
                closed.append(chunk[:kept])
                chunk = chunk[kept:]
            tokens = each.vectors if isinstance(each, Word) else (each,)
            if len(chunk) + len(tokens) > ROOM:
                closed.append(chunk)
                chunk = []
            chunk.extend(Piece(token, run.emphasis) for token in tokens)
    return closed, chunk


def _end_of_phrase(chunk: Chunk, comma: int, look_back: int) -> int:
    """How many pieces of a full chunk stay in it."""
    nearest = next((i for i in reversed(range(len(chunk))) if chunk[i].token == comma), None)
    return len(chunk) if nearest is None or len(chunk) - nearest > look_back else nearest + 1
