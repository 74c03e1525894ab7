"""Styles: words that are kept under a name and added to prompts, as in the webui's styles.csv."""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import NamedTuple

from velatura.errors import BadFile

HOLE = "{prompt}"  # where a style takes the prompt in; without it the style is put behind
BETWEEN = ", "


class Style(NamedTuple):
    """What is added to a prompt and to its negative prompt."""

    name: str
    prompt: str = ""
    negative: str = ""


def read_styles(text: str) -> dict[str, Style]:
    """The styles of a file by their names; those whose name starts with # are notes.

    The file is a table of commas with the columns name, prompt and negative_prompt, or name and text in old ones.
    """
    try:
        rows = list(csv.DictReader(StringIO(text.removeprefix("\ufeff"), newline="")))
    except csv.Error as error:
        raise BadFile(f"the styles are no table ({error}); write them as name,prompt,negative_prompt") from None
    if rows and "name" not in rows[0]:
        raise BadFile("the styles have no column 'name'; the first line must be name,prompt,negative_prompt")
    styles = (
        Style(row["name"] or "", row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
    )
    return {style.name: style for style in styles if style.name and not style.name.startswith("#")}


def apply_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[str, str]:
    """Both prompts with styles added, one after the other."""
    for style in styles:
        prompt, negative = _added(prompt, style.prompt), _added(negative, style.negative)
    return prompt, negative


def take_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[list[Style], str, str]:
    """The styles that both prompts were made with, in their order, and the prompts without them."""
    left = [style for style in styles if style.prompt or style.negative]
    found: list[Style] = []
    while fitting := [each for each in left if _fits(prompt, negative, each)]:
        style = fitting[0]
        left.remove(style)
        found.append(style)
        prompt, negative = _without(prompt, style.prompt) or "", _without(negative, style.negative) or ""
    return found[::-1], prompt, negative


def _added(prompt: str, style: str) -> str:
    if HOLE in style:
        return style.replace(HOLE, prompt)
    return BETWEEN.join(filter(None, (prompt.strip(), style.strip())))


def _fits(prompt: str, negative: str, style: Style) -> bool:
    """Whether both prompts were made with a style."""
    return _without(prompt, style.prompt) is not None and _without(negative, style.negative) is not None


def _without(prompt: str, style: str) -> str | None:
    """What a prompt was before a style was added, or None where none was."""
    if HOLE in style:
        before, _, behind = style.partition(HOLE)
        fits = prompt.startswith(before) and prompt.endswith(behind) and len(prompt) >= len(before) + len(behind)
        return prompt[len(before) : len(prompt) - len(behind)] if fits else None
    if prompt == style:
        return ""
    ending = BETWEEN + style if style else ""
    return prompt.removesuffix(ending) if prompt.endswith(ending) else None
