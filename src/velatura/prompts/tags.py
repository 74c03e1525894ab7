"""Tags in prompts, such as <hypernet:inca:0.6>, and comments, as A1111 reads them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from velatura.errors import BadPrompt, UnknownName, warn
from velatura.prompts.passage import excerpt_at, prompt_error
from velatura.prompts.strengths import AestheticStrengths, StrengthSchedule, TextUnetStrengths

TAG_PATTERN = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^>]+)>")
MALFORMED_TAG_PATTERN = re.compile(
    r"<\s*(hypernet|lora|lyco)\b[^<>]*>?  |  \b(hypernet|lora|lyco):[^<>\s]{0,99}>", re.IGNORECASE | re.VERBOSE
)


class Tag(NamedTuple):
    """A tag that calls an overlay, such as `<hypernet:inca:0.6>`, and its position in the prompt."""

    kind: str
    arguments: tuple[str, ...]
    prompt: str
    start: int

    @property
    def name(self) -> str:
        """Return the overlay's name without the spaces around it."""
        return self.arguments[0].strip()

    @property
    def strengths(self) -> StrengthSchedule:
        """Return the overlay's strength over the steps; 1 if the tag gives none.

        Raises:
            BadPrompt: if an argument is not valid.
        """
        return StrengthSchedule.parse(*self._arguments_after_name)

    def text_unet_strengths(self, *, reads_text: bool) -> TextUnetStrengths:
        """Return the strengths in the text encoders and in the UNet, for kinds that may change both.

        Args:
            reads_text: True if the overlay changes the text encoders.
        """
        return TextUnetStrengths.parse(*self._arguments_after_name, reads_text=reads_text)

    @property
    def aesthetic_strengths(self) -> AestheticStrengths:
        """Return the strength of an aesthetic gradient, with its steps and its learning rate."""
        return AestheticStrengths.parse(*self._arguments_after_name)

    @property
    def _arguments_after_name(self) -> tuple[Sequence[str], str, int]:
        """Return the arguments after the name, the prompt, and the position of the first argument."""
        name, *others = self.arguments
        return others, self.prompt, self.start + len(f"<{self.kind}:{name}:")

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"


def strip_comments(text: str) -> str:
    """Replace comments, from a # to the end of the line, by line breaks."""
    return re.sub(r"\n?#.*(\n|$)", "\n", text)


def find_tags(text: str) -> list[re.Match[str]]:
    """Return the matches of all tags in a text."""
    return list(TAG_PATTERN.finditer(text, 0, text.rfind(">") + 1))  # the end keeps the search linear


def split_tags(text: str, *, lenient: bool = False) -> tuple[str, list[Tag]]:
    """Split a prompt into its words and its tags.

    Args:
        text: Prompt without comments.
        lenient: Leave malformed tags in the words with a warning. A1111 does so without one.

    Returns:
        The prompt without tags, and the tags in order.

    Raises:
        BadPrompt: for a malformed tag, unless lenient.
    """
    matches = find_tags(text)
    tags = [
        Tag(tag_match["kind"], tuple(tag_match["arguments"].split(":")), text, tag_match.start())
        for tag_match in matches
    ]
    borders = [0, *(border for tag_match in matches for border in tag_match.span()), len(text)]
    between = [text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True)]
    errors = [*_malformed_tags(text, matches), *(_nameless_tag_error(tag) for tag in tags if not tag.name)]
    if errors and not lenient:
        raise errors[0]
    for error in errors:
        warn(f"{error}; it calls nothing")
    return "".join(between), [tag for tag in tags if tag.name]


def _malformed_tags(text: str, matches: Iterable[re.Match[str]]) -> Iterator[BadPrompt]:
    blanked = list(text)
    for tag_match in matches:
        blanked[tag_match.start() : tag_match.end()] = " " * len(tag_match.group())
    for malformed in MALFORMED_TAG_PATTERN.finditer("".join(blanked)):
        kind = (malformed[1] or malformed[2]).lower()
        yield prompt_error(
            text, malformed.start(), f"{malformed.group()!r} is not a tag; a tag looks like <{kind}:name:0.6>"
        )


def _nameless_tag_error(tag: Tag) -> BadPrompt:
    return prompt_error(tag.prompt, tag.start, f"{tag} names nothing; a tag looks like <{tag.kind}:name:0.6>")


LookupResult = TypeVar("LookupResult")


def look_up(tags: Iterable[Tag], find: Callable[[Tag], LookupResult], *, lenient: bool = False) -> list[LookupResult]:
    """Return find(tag) for all tags, in order.

    Args:
        tags: Tags of a prompt.
        find: Returns what a tag calls, or raises UnknownName.
        lenient: Leave unknown tags out with a warning.

    Raises:
        UnknownName: for an unknown tag, with its position in the prompt.
    """
    results: list[LookupResult] = []
    for tag in tags:
        try:
            results.append(find(tag))
        except UnknownName as error:
            message = f"{error}; {excerpt_at(tag.prompt, tag.start)}"
            if not lenient:
                raise UnknownName(message) from None
            warn(f"{message}; it is left out")
    return results


def add_tag(text: str, kind: str, name: str, strength: str = "1.0") -> str:
    """Append a tag to a prompt, unless a tag in it calls the same overlay."""
    words = strip_comments(text)
    if any((tag.kind, tag.arguments[0]) == (kind, name) for tag in split_tags(words)[1]):
        return text
    line_break = "\n" if "#" in text.rpartition("\n")[2] else ""  # after a comment the tag would be part of it
    return f"{text}{line_break}<{kind}:{name}:{strength}>"
