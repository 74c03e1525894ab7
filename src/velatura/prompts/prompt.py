"""A prompt as it was written, and what it says."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from velatura.errors import VelaturaWarning
from velatura.prompts.grammar import TAG, Run, Tag, read_emphasis, take_tags, unread, without_comments


@dataclass(frozen=True)
class Prompt:
    """What the text encoders are told, brackets still in, and the overlays that tags in it call."""

    text: str
    words: str
    tags: tuple[Tag, ...] = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a prompt; raises BadPrompt for a malformed tag, warns of grammar that is taken as plain words."""
        words, tags = take_tags(without_comments(text))
        _warn_of_unread(words)
        return cls(text, words, tuple(tags))

    @classmethod
    def read_negative(cls, text: str) -> Self:
        """Read a negative prompt, in which tags are words: overlays are called by the prompt only."""
        words = without_comments(text)
        if tag := TAG.search(words):
            said = f"{tag.group()} in the negative prompt calls no overlay; put it into the prompt, with on=negative"
            warnings.warn(said, VelaturaWarning, 2)
        _warn_of_unread(words)
        return cls(text, words)

    @cached_property
    def runs(self) -> list[Run]:
        """The words with their emphasis."""
        return read_emphasis(self.words)


def _warn_of_unread(words: str) -> None:
    for found in unread(words):
        warnings.warn(f"{found} is taken as plain words: this version does not read it yet", VelaturaWarning, 3)
