"""Tags in prompts, such as <hypernet:inca:0.6>, and comments, as A1111 reads them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple, TypeVar

from velatura.errors import BadPrompt, UnknownName, warn
from velatura.files import is_path_outside
from velatura.prompts.passage import excerpt_at, prompt_error
from velatura.prompts.strengths import (
    POSITIONAL_ARGUMENTS,
    AestheticStrengths,
    StrengthSchedule,
    TextUnetStrengths,
    warn_of_ignored_arguments,
)

TAG_PATTERN = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^>]+)>")
# Not "<lora:" alone, without a name and an end, which is words
MALFORMED_TAG_PATTERN = re.compile(
    r"<\s*(hypernet|lora|lyco)\b(?!:\s*(?:<|$))[^<>]*>?  |  \b(hypernet|lora|lyco):[^<>\s]{0,99}>",
    re.IGNORECASE | re.VERBOSE,
)
TEXT_UNET_KINDS = ("lora", "lyco", "difference")  # whose tags have a strength in the text encoders too
TAG_KINDS = ("hypernet", *TEXT_UNET_KINDS, "embedding", "aesthetic")
MAX_TAGS = 100  # of one prompt; A1111 and ComfyUI take minutes for as many overlays
# ../x, /x, ~/x and C:\x
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MAX_SHOWN_CHARACTERS = 60  # of a tag in a warning


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
    def is_foreign(self) -> bool:
        """Return True for a kind of another program; a kind that is nearly one of ours is a mistake in it."""
        return self.kind not in TAG_KINDS and not get_close_matches(self.kind.lower(), TAG_KINDS, n=1)

    def check(self) -> None:
        """Refuse arguments that cannot be read; warn of those that nothing reads, and of a name that no overlay has.

        Raises:
            BadPrompt: An argument is not valid.
        """
        arguments, prompt, position = self._arguments_after_name
        if self.kind in TEXT_UNET_KINDS:
            TextUnetStrengths.parse(arguments, prompt, position, reads_text=False)
        elif self.kind == "aesthetic":
            AestheticStrengths.parse(arguments, prompt, position)
        elif self.kind in TAG_KINDS:
            StrengthSchedule.parse(arguments, prompt, position)
        warn_of_ignored_arguments(arguments, len(POSITIONAL_ARGUMENTS) if self.kind in TEXT_UNET_KINDS else 1)
        shown = repr(str(self)[:MAX_SHOWN_CHARACTERS])
        if is_path_outside(self.name):
            warn(f"{shown} has a path for a name: only files of a library are looked for by it, and no other is opened")
        if CONTROL_CHARACTER.search(self.name):
            warn(f"{shown} has a control character in its name, which no overlay has: write the tag again")

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
        The prompt without tags, and the tags in order. A tag without a name is left out with a warning.

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
    errors = list(_malformed_tags(text, matches))
    if errors and not lenient:
        raise errors[0]
    for error in [*errors, *(_nameless_tag_error(tag) for tag in tags if not tag.name)]:
        warn(f"{error}; it calls nothing")
    return "".join(between), [tag for tag in tags if tag.name]


def check_tags(tags: Sequence[Tag]) -> list[Tag]:
    """Check the tags of a prompt, and return those that call overlays; those of other programs are warned of.

    Raises:
        BadPrompt: There are more than MAX_TAGS, or an argument cannot be read.
    """
    if len(tags) > MAX_TAGS:
        reason = f"the prompt has {len(tags):,} tags: write {MAX_TAGS} at most"
        raise prompt_error(tags[MAX_TAGS].prompt, tags[MAX_TAGS].start, reason)
    for tag in tags:
        if tag.is_foreign:
            kinds = ", ".join(TAG_KINDS)
            warn(f"{str(tag)[:MAX_SHOWN_CHARACTERS]!r} calls nothing, because velatura only has tags of {kinds}")
        else:
            tag.check()
    return [tag for tag in tags if not tag.is_foreign]


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
