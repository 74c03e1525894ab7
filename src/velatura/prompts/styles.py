"""Styles: words that are kept under a name and added to prompts, as in the webui's styles.csv."""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import NamedTuple

from velatura.errors import BadFile

PROMPT_PLACEHOLDER = "{prompt}"  # where a style takes the prompt in; without it the style is put behind
STYLE_SEPARATOR = ", "


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
        prompt, negative = _add_style(prompt, style.prompt), _add_style(negative, style.negative)
    return prompt, negative


def extract_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[list[Style], str, str]:
    """The styles that both prompts were made with, in their order, and the prompts without them."""
    candidates = [style for style in styles if style.prompt or style.negative]
    extracted: list[Style] = []
    while matching := [candidate for candidate in candidates if _has_style(prompt, negative, candidate)]:
        style = matching[0]
        candidates.remove(style)
        extracted.append(style)
        prompt, negative = _remove_style(prompt, style.prompt) or "", _remove_style(negative, style.negative) or ""
    return extracted[::-1], prompt, negative


def _add_style(prompt: str, style: str) -> str:
    if PROMPT_PLACEHOLDER in style:
        return style.replace(PROMPT_PLACEHOLDER, prompt)
    return STYLE_SEPARATOR.join(filter(None, (prompt.strip(), style.strip())))


def _has_style(prompt: str, negative: str, style: Style) -> bool:
    """Whether both prompts were made with a style."""
    return _remove_style(prompt, style.prompt) is not None and _remove_style(negative, style.negative) is not None


def _remove_style(prompt: str, style: str) -> str | None:
    """What a prompt was before a style was added, or None where none was."""
    if PROMPT_PLACEHOLDER in style:
        before, _, behind = style.partition(PROMPT_PLACEHOLDER)
        is_match = prompt.startswith(before) and prompt.endswith(behind) and len(prompt) >= len(before) + len(behind)
        return prompt[len(before) : len(prompt) - len(behind)] if is_match else None
    if prompt == style:
        return ""
    ending = STYLE_SEPARATOR + style if style else ""
    return prompt.removesuffix(ending) if prompt.endswith(ending) else None
