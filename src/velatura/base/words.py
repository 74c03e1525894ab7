"""Words that stand for vectors: the names of embeddings, found where a text spells them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from velatura.errors import BadOverlay

ROOM = 75  # of the 77 tokens that an encoder reads, between start and end


class Word(NamedTuple):
    """A name that stands for vectors: the tokens it is spelled with, and those that stand for its vectors."""

    name: str
    spelling: tuple[int, ...]
    vectors: tuple[int, ...]


class Words:
    """Words to be found in texts, token by token: the longest first, and of two that are spelled alike the later.

    A name that is part of a longer word of the tokenizer's is not found in it; one of several words is.
    """

    def __init__(self, words: Iterable[Word] = ()) -> None:
        self._by_first: dict[int, dict[tuple[int, ...], Word]] = {}
        for word in words:
            refuse_crowds(word.name, len(word.vectors))
            if word.spelling:
                self._by_first.setdefault(word.spelling[0], {})[word.spelling] = word
        self._lengths = {
            first: sorted({len(spelling) for spelling in words}, reverse=True)
            for first, words in self._by_first.items()
        }

    def read(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The tokens in their order, each by itself, and in place of those that spell a name all that stand for it."""
        for each in self._found(tokens):
            yield each.vectors if isinstance(each, Word) else (each,)

    def spelled(self, tokens: Sequence[int]) -> list[str]:
        """The names that the tokens spell, in their order."""
        return [each.name for each in self._found(tokens) if isinstance(each, Word)]

    def _found(self, tokens: Sequence[int]) -> Iterator[int | Word]:
        place = 0
        while place < len(tokens):
            word = self._at(tokens, place)
            yield tokens[place] if word is None else word
            place += 1 if word is None else len(word.spelling)

    def _at(self, tokens: Sequence[int], place: int) -> Word | None:
        words = self._by_first.get(tokens[place])
        if words is None:
            return None
        spellings = (tuple(tokens[place : place + length]) for length in self._lengths[tokens[place]])
        return next((words[each] for each in spellings if each in words), None)


class Given(NamedTuple):
    """A word that was given to a text encoder for a while.

    acts tells whether it does so in the text that is read; told is then told whether that names it.
    """

    word: Word
    acts: Callable[[], bool]
    told: Callable[[bool], None]


class Glossary:
    """The words that a text encoder was given.

    Their tokens are negative: the towers look for the end of a text where the highest number is, and rows past the end
    of their tables would pass for it.
    """

    def __init__(self) -> None:
        self._given: tuple[Given, ...] = ()

    def give(
        self, name: str, spelling: Sequence[int], count: int, acts: Callable[[], bool], told: Callable[[bool], None]
    ) -> tuple[Word, Callable[[], None]]:
        """Let a name stand for so many vectors, and give back its word and what takes it away again."""
        refuse_crowds(name, count)
        first = min((each.word.vectors[-1] for each in self._given), default=0) - 1
        given = Given(Word(name, tuple(spelling), tuple(range(first, first - count, -1))), acts, told)
        self._given = (*self._given, given)

        def take() -> None:
            self._given = tuple(each for each in self._given if each is not given)

        return given.word, take

    def read(self, text: str, token_ids: Callable[[str], list[int]]) -> list[tuple[int, ...]]:
        """What a text says in tokens where it stands, those of a word together."""
        given = [each for each in self._given if each.acts()]
        words = Words(each.word for each in given)
        parts = parted(text, [each.word.name for each in given])
        groups = [group for part in parts for group in words.read(token_ids(part))]
        named = {each.word.spelling for each in given if each.word.vectors in groups}
        for each in given:
            each.told(each.word.spelling in named)  # another that is called alike may have been heard
        return groups

    @property
    def words(self) -> list[Word]:
        """The words that it was given."""
        return [given.word for given in self._given]

    def has(self, spelling: Sequence[int]) -> bool:
        """Whether a word of that spelling was given."""
        return any(given.word.spelling == tuple(spelling) for given in self._given)


def parted(text: str, names: Iterable[str]) -> list[str]:
    """A text cut around names that begin or end with a sign: tokenizers would make one token of it and its neighbour.

    So <cat> is found in "<cat>, asleep", where the webui finds it only before a space.
    """
    signed = sorted({name for name in names if name and not (name[0] + name[-1]).isalnum()}, key=len, reverse=True)
    if not signed:
        return [text]
    return [part for part in re.split(f"({'|'.join(map(re.escape, signed))})", text, flags=re.IGNORECASE) if part]


def refuse_crowds(name: str, count: int) -> None:
    """Refuse more vectors than fit into a chunk, which would have to be cut."""
    if count > ROOM:
        raise BadOverlay(f"{name} has {count} vectors; a prompt has room for up to {ROOM} of one embedding")
