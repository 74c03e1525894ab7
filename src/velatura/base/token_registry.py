"""Words that stand for vectors: the names of embeddings, found where a text spells them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from velatura.errors import BadOverlay

CHUNK_LENGTH = 75  # of the 77 tokens that an encoder reads, between start and end


class Placeholder(NamedTuple):
    """A name that stands for vectors: the tokens it is spelled with, and those that stand for its vectors."""

    name: str
    spelling: tuple[int, ...]
    vector_ids: tuple[int, ...]


class PlaceholderMatcher:
    """Words to be found in texts, token by token: the longest first, and of two that are spelled alike the later.

    A name that is part of a longer word of the tokenizer's is not found in it; one of several words is.
    """

    def __init__(self, placeholders: Iterable[Placeholder] = ()) -> None:
        self._by_first_id: dict[int, dict[tuple[int, ...], Placeholder]] = {}
        for placeholder in placeholders:
            check_vector_count(placeholder.name, len(placeholder.vector_ids))
            if placeholder.spelling:
                self._by_first_id.setdefault(placeholder.spelling[0], {})[placeholder.spelling] = placeholder
        self._spelling_lengths = {
            first: sorted({len(spelling) for spelling in by_spelling}, reverse=True)
            for first, by_spelling in self._by_first_id.items()
        }

    def substitute(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The tokens in their order, each by itself, and in place of those that spell a name all that stand for it."""
        for token in self._match_all(tokens):
            yield token.vector_ids if isinstance(token, Placeholder) else (token,)

    def find_names(self, tokens: Sequence[int]) -> list[str]:
        """The names that the tokens spell, in their order."""
        return [token.name for token in self._match_all(tokens) if isinstance(token, Placeholder)]

    def _match_all(self, tokens: Sequence[int]) -> Iterator[int | Placeholder]:
        position = 0
        while position < len(tokens):
            placeholder = self._match_at(tokens, position)
            yield tokens[position] if placeholder is None else placeholder
            position += 1 if placeholder is None else len(placeholder.spelling)

    def _match_at(self, tokens: Sequence[int], position: int) -> Placeholder | None:
        by_spelling = self._by_first_id.get(tokens[position])
        if by_spelling is None:
            return None
        spellings = (tuple(tokens[position : position + length]) for length in self._spelling_lengths[tokens[position]])
        return next((by_spelling[spelling] for spelling in spellings if spelling in by_spelling), None)


class RegisteredToken(NamedTuple):
    """A word that was given to a text encoder for a while.

    acts tells whether it does so in the text that is read; told is then told whether that names it.
    """

    placeholder: Placeholder
    is_active: Callable[[], bool]
    on_tokenize: Callable[[bool], None]


class TokenRegistry:
    """The words that a text encoder was given.

    Their tokens are negative: the towers look for the end of a text where the highest number is, and rows past the end
    of their tables would pass for it.
    """

    def __init__(self) -> None:
        self._registered: tuple[RegisteredToken, ...] = ()

    def register(
        self,
        name: str,
        spelling: Sequence[int],
        vector_count: int,
        is_active: Callable[[], bool],
        on_tokenize: Callable[[bool], None],
    ) -> tuple[Placeholder, Callable[[], None]]:
        """Let a name stand for so many vectors, and give back its word and what takes it away again."""
        check_vector_count(name, vector_count)
        first_id = min((token.placeholder.vector_ids[-1] for token in self._registered), default=0) - 1
        registered = RegisteredToken(
            Placeholder(name, tuple(spelling), tuple(range(first_id, first_id - vector_count, -1))),
            is_active,
            on_tokenize,
        )
        self._registered = (*self._registered, registered)

        def unregister() -> None:
            self._registered = tuple(token for token in self._registered if token is not registered)

        return registered.placeholder, unregister

    def tokenize(self, text: str, token_ids: Callable[[str], list[int]]) -> list[tuple[int, ...]]:
        """What a text says in tokens where it stands, those of a word together."""
        active = [token for token in self._registered if token.is_active()]
        matcher = PlaceholderMatcher(token.placeholder for token in active)
        parts = split_around_names(text, [token.placeholder.name for token in active])
        groups = [group for part in parts for group in matcher.substitute(token_ids(part))]
        used_spellings = {token.placeholder.spelling for token in active if token.placeholder.vector_ids in groups}
        for token in active:
            token.on_tokenize(
                token.placeholder.spelling in used_spellings
            )  # another that is called alike may have been heard
        return groups

    @property
    def placeholders(self) -> list[Placeholder]:
        """The words that it was given."""
        return [token.placeholder for token in self._registered]

    def has_spelling(self, spelling: Sequence[int]) -> bool:
        """Whether a word of that spelling was given."""
        return any(token.placeholder.spelling == tuple(spelling) for token in self._registered)


def split_around_names(text: str, names: Iterable[str]) -> list[str]:
    """A text cut around names that begin or end with a sign: tokenizers would make one token of it and its neighbour.

    So <cat> is found in "<cat>, asleep", where the webui finds it only before a space.
    """
    signed = sorted({name for name in names if name and not (name[0] + name[-1]).isalnum()}, key=len, reverse=True)
    if not signed:
        return [text]
    return [part for part in re.split(f"({'|'.join(map(re.escape, signed))})", text, flags=re.IGNORECASE) if part]


def check_vector_count(name: str, vector_count: int) -> None:
    """Refuse more vectors than fit into a chunk, which would have to be cut."""
    if vector_count > CHUNK_LENGTH:
        raise BadOverlay(
            f"{name} has {vector_count} vectors; a prompt has room for up to {CHUNK_LENGTH} of one embedding"
        )
