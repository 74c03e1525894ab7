"""Passages of a prompt with their positions, so that errors can point at a mistake."""

from dataclasses import dataclass
from typing import Self

from velatura.errors import BadPrompt

EXCERPT_CHARACTERS = 40  # characters to either side of the caret


def excerpt_at(text: str, position: int) -> str:
    """Return the text around a position in one line, with a caret at the position."""
    start, end = max(0, position - EXCERPT_CHARACTERS), position + EXCERPT_CHARACTERS
    before = ("..." if start > 0 else "") + text[start:position]
    after = text[position:end] + ("..." if end < len(text) else "")
    excerpt = " ".join(f"{before}^{after}".split())
    return f'at the ^ in "{excerpt}"'


def prompt_error(text: str, position: int, reason: str) -> BadPrompt:
    """Return an error of one line that shows the position in the prompt."""
    return BadPrompt(f"{reason}; {excerpt_at(text, position)}")


@dataclass(frozen=True)
class Passage:
    """A part of a prompt, with the whole prompt and the position of its first character."""

    text: str
    prompt: str
    start: int

    def split(self, separator: str) -> list[Self]:
        """Split at a separator, and keep the positions."""
        passages: list[Self] = []
        start = self.start
        for text in self.text.split(separator):
            passages.append(type(self)(text, self.prompt, start))
            start += len(text) + len(separator)
        return passages

    def strip(self) -> Self:
        """Remove the spaces around the text."""
        indent = len(self.text) - len(self.text.lstrip())
        return type(self)(self.text.strip(), self.prompt, self.start + indent)

    def error(self, reason: str) -> BadPrompt:
        """Return an error that points at the first character."""
        return prompt_error(self.prompt, self.start, reason)
