"""A piece of a prompt that knows where it stands, so that what is wrong with it can be pointed at."""

from dataclasses import dataclass
from typing import Self

from velatura.errors import BadPrompt

EXCERPT_CHARACTERS = 40  # characters to either side of the caret


def excerpt_at(text: str, position: int) -> str:
    """What surrounds a place of the prompt, with a caret before it, in one line."""
    before, after = (
        text[max(0, position - EXCERPT_CHARACTERS) : position],
        text[position : position + EXCERPT_CHARACTERS],
    )
    excerpt = f"{'...' if position > EXCERPT_CHARACTERS else ''}{before}^{after}{'...' if len(text) > position + EXCERPT_CHARACTERS else ''}"
    return f'at the ^ in "{" ".join(excerpt.split())}"'


def prompt_error(text: str, position: int, reason: str) -> BadPrompt:
    """The error that shows the place in the prompt, all in one line."""
    return BadPrompt(f"{reason}; {excerpt_at(text, position)}")


@dataclass(frozen=True)
class Passage:
    """Some text, the prompt it is taken from, and where in it the text starts."""

    text: str
    prompt: str
    start: int

    def split(self, separator: str) -> list[Self]:
        """The passages between separators."""
        passages: list[Self] = []
        start = self.start
        for text in self.text.split(separator):
            passages.append(type(self)(text, self.prompt, start))
            start += len(text) + len(separator)
        return passages

    def strip(self) -> Self:
        """The passage without the spaces around it."""
        indent = len(self.text) - len(self.text.lstrip())
        return type(self)(self.text.strip(), self.prompt, self.start + indent)

    def error(self, reason: str) -> BadPrompt:
        """The error that points at its first character."""
        return prompt_error(self.prompt, self.start, reason)
