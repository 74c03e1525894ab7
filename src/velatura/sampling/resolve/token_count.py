"""Count the tokens of prompts as A1111 shows them while a prompt is typed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from velatura.base.token_registry import Placeholder, PlaceholderMatcher
from velatura.card import Card
from velatura.errors import BadPrompt, ignore_warnings
from velatura.prompts.chunks import CHUNK_LENGTH, token_count
from velatura.prompts.prompt import Prompt

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

COUNTED_STEPS = 20  # words may change between steps: the longest text of so many counts


class TokenCount(NamedTuple):
    """Length of a prompt.

    Attributes:
        tokens: Tokens; a complete chunk counts 75, however many it holds.
        capacity: Tokens that fit without one more chunk of 75.
    """

    tokens: int
    capacity: int


class TokenCounter:
    """Counts tokens for one base. It has a tokenizer of its own, so that another thread may paint meanwhile.

    Args:
        tokenizer: The base's tokenizer.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = deepcopy(tokenizer)
        self._lock = Lock()

    def count(self, prompt: str, embeddings: Mapping[str, int], *, is_negative: bool = False) -> TokenCount:
        """Return the length of a prompt: of its longest text, if words change between steps or AND separates parts.

        Args:
            prompt: The prompt; what is wrong in it counts as words.
            embeddings: Vectors by the names of embeddings.
            is_negative: Read it as a negative prompt.
        """
        with self._lock, ignore_warnings():
            try:
                parsed = Prompt.parse_negative(prompt) if is_negative else Prompt.parse(prompt, lenient=True)
                schedule = parsed.schedule(COUNTED_STEPS)
            except BadPrompt:
                parsed = Prompt(prompt, prompt)
                schedule = parsed.schedule(COUNTED_STEPS)
            matcher = PlaceholderMatcher(self._placeholders(embeddings, prompt))
            comma = self._ids(",")[-1]

            def tokenize(words: str) -> Iterable[tuple[int, ...]]:
                return matcher.substitute(self._ids(words))

            texts = {text.words: text for entry in schedule for text in entry.texts}
            counts = [token_count(text.fragments, tokenize, comma) for text in texts.values()]
        tokens = max(counts, default=0)
        return TokenCount(tokens, max(1, -(-tokens // CHUNK_LENGTH)) * CHUNK_LENGTH)

    def _placeholders(self, embeddings: Mapping[str, int], prompt: str) -> list[Placeholder]:
        """Return the placeholders of the embeddings whose names may be in a prompt."""
        folded = prompt.casefold()
        named = [name for name in embeddings if name.casefold() in folded and 1 <= embeddings[name] <= CHUNK_LENGTH]
        return [Placeholder(name, tuple(self._ids(name)), tuple(-1 for _ in range(embeddings[name]))) for name in named]

    def _ids(self, words: str) -> list[int]:
        ids: list[int] = self._tokenizer(words, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids


def vector_count(card: Card) -> int:
    """Return how many vectors an embedding has, as its card says; 1 if it does not say it."""
    count = re.match(r"\d+(?= vector)", card.outline)
    return int(count[0]) if count else 1
