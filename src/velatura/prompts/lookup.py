"""From the tags of a prompt to what they call, strictly or leniently."""

import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

from velatura.errors import UnknownName, VelaturaWarning
from velatura.prompts.grammar import Tag
from velatura.prompts.passage import pointed_at

Called = TypeVar("Called")


def look_up(tags: Iterable[Tag], find: Callable[[Tag], Called], *, lenient: bool = False) -> list[Called]:
    """What tags call, in their order: what the function gives for each of them.

    Where it raises UnknownName the error points at the tag too; lenient: a warning does, and the tag calls nothing.
    """
    found: list[Called] = []
    for tag in tags:
        try:
            found.append(find(tag))
        except UnknownName as error:
            message = f"{error}; {pointed_at(tag.prompt, tag.start)}"
            if not lenient:
                raise UnknownName(message) from None
            warnings.warn(f"{message}; it is left out", VelaturaWarning, 2)
    return found
