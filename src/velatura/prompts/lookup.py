"""From the tags of a prompt to what they call, strictly or leniently."""

import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

from velatura.errors import UnknownName, VelaturaWarning
from velatura.prompts.grammar import Tag, split_tags, strip_comments
from velatura.prompts.passage import excerpt_at

LookupResult = TypeVar("LookupResult")


def look_up(tags: Iterable[Tag], find: Callable[[Tag], LookupResult], *, lenient: bool = False) -> list[LookupResult]:
    """What tags call, in their order: what the function gives for each of them.

    Where it raises UnknownName the error points at the tag too; lenient: a warning does, and the tag calls nothing.
    """
    results: list[LookupResult] = []
    for tag in tags:
        try:
            results.append(find(tag))
        except UnknownName as error:
            message = f"{error}; {excerpt_at(tag.prompt, tag.start)}"
            if not lenient:
                raise UnknownName(message) from None
            warnings.warn(f"{message}; it is left out", VelaturaWarning, 2)
    return results


def add_tag(text: str, kind: str, name: str, strength: str = "1.0") -> str:
    """The prompt with an overlay called at its end, unless a tag in it calls that one already."""
    words = strip_comments(text)
    if any((tag.kind, tag.arguments[0]) == (kind, name) for tag in split_tags(words)[1]):
        return text
    line_break = "\n" if "#" in text.rpartition("\n")[2] else ""  # behind a comment on its line it would be one too
    return f"{text}{line_break}<{kind}:{name}:{strength}>"
