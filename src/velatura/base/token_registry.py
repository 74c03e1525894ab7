"""Registry of placeholder tokens: names of embeddings that a text encoder replaces by their vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from velatura.errors import BadOverlay
from velatura.prompts.chunks import CHUNK_LENGTH


class Placeholder(NamedTuple):
    """A name that stands for the vectors of an embedding.

    Attributes:
        name: The name as prompts write it.
        spelling: Ids of the tokenizer's tokens that spell the name.
        vector_ids: Ids that stand for the vectors, one for each.
    """

    name: str
    spelling: tuple[int, ...]
    vector_ids: tuple[int, ...]


class PlaceholderMatcher:
    """Finds placeholders in token sequences.

    The longest spelling wins, and of two with the same spelling the later one. A name inside a longer token is not
    found; a name of several tokens is.

    Args:
        placeholders: Placeholders to find. One without a spelling is never found.

    Raises:
        BadOverlay: if a placeholder has more vectors than a chunk holds.
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
        """Yield the tokens in order, as groups of one, and a group of vector ids in place of each placeholder."""
        for token in self._match_all(tokens):
            yield token.vector_ids if isinstance(token, Placeholder) else (token,)

    def find_names(self, tokens: Sequence[int]) -> list[str]:
        """Return the names that the tokens spell, in order."""
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
    """A placeholder that is registered with a text encoder.

    Attributes:
        placeholder: Name, spelling and vector ids.
        is_active: Returns True if the placeholder is replaced in the text that is being encoded.
        on_tokenize: Called after each text with True if the text contains the placeholder.
    """

    placeholder: Placeholder
    is_active: Callable[[], bool]
    on_tokenize: Callable[[bool], None]


class TokenRegistry:
    """Placeholders of one text encoder.

    Their ids are negative. CLIP takes the position of the highest id for the end of a text, so ids past the end of the
    token table would be mistaken for EOS.
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
        """Register a name as a placeholder.

        Args:
            name: The name as prompts write it.
            spelling: Ids of the tokenizer's tokens that spell the name.
            vector_count: Number of vectors, up to 75.
            is_active, on_tokenize: See RegisteredToken.

        Returns:
            The placeholder, and a function that unregisters it.

        Raises:
            BadOverlay: if there are more vectors than a chunk holds.
        """
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

    def names(self) -> list[str]:
        """Return the names that are registered now."""
        return [token.placeholder.name for token in self._registered]

    def tokenize(self, text: str, token_ids: Callable[[str], list[int]]) -> list[tuple[int, ...]]:
        """Tokenize a text and replace the active placeholders in it.

        Args:
            text: Text without prompt syntax.
            token_ids: The tokenizer, without BOS, EOS and padding.

        Returns:
            Groups of ids: a single token, or all vector ids of a placeholder.
        """
        active = [token for token in self._registered if token.is_active()]
        matcher = PlaceholderMatcher(token.placeholder for token in active)
        parts = split_around_names(text, [token.placeholder.name for token in active])
        groups = [group for part in parts for group in matcher.substitute(token_ids(part))]
        used_spellings = {token.placeholder.spelling for token in active if token.placeholder.vector_ids in groups}
        for token in active:  # by spelling: of two placeholders with the same spelling only the later one is replaced
            token.on_tokenize(token.placeholder.spelling in used_spellings)
        return groups

    @property
    def placeholders(self) -> list[Placeholder]:
        """Return the registered placeholders."""
        return [token.placeholder for token in self._registered]

    def has_spelling(self, spelling: Sequence[int]) -> bool:
        """Return True if a placeholder with this spelling is registered."""
        return any(token.placeholder.spelling == tuple(spelling) for token in self._registered)


def split_around_names(text: str, names: Iterable[str]) -> list[str]:
    """Split a text around names that begin or end with punctuation.

    Tokenizers merge punctuation with its neighbours. After the split <cat> is found in "<cat>, asleep", where A1111
    finds it only before a space.
    """
    signed = sorted({name for name in names if name and not (name[0] + name[-1]).isalnum()}, key=len, reverse=True)
    if not signed:
        return [text]
    return [part for part in re.split(f"({'|'.join(map(re.escape, signed))})", text, flags=re.IGNORECASE) if part]


def check_vector_count(name: str, vector_count: int) -> None:
    """Raise BadOverlay for more vectors than one chunk of a prompt holds."""
    if vector_count > CHUNK_LENGTH:
        raise BadOverlay(
            f"{name} has {vector_count} vectors: one chunk of a prompt holds {CHUNK_LENGTH}. Use fewer vectors"
        )
