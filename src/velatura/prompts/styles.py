"""Styles: named texts that are added to prompts, as in A1111's styles.csv."""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import NamedTuple

from velatura.errors import BadFile

PROMPT_PLACEHOLDER = "{prompt}"  # is replaced by the prompt; without it the style is appended
STYLE_SEPARATOR = ", "


class Style(NamedTuple):
    """A style: texts that are added to the prompt and to the negative prompt."""

    name: str
    prompt: str = ""
    negative: str = ""


def read_styles(text: str) -> dict[str, Style]:
    """Parse a styles.csv. Rows whose name starts with # are comments.

    Args:
        text: CSV with the columns name, prompt and negative_prompt; old files have name and text.

    Returns:
        Styles by name.

    Raises:
        BadFile: if the text is not such a table.
    """
    try:
        rows = list(csv.DictReader(StringIO(text.removeprefix("\ufeff"), newline="")))
    except csv.Error as error:
        raise BadFile(f"the styles are not a CSV table ({error}); write name,prompt,negative_prompt") from None
    if rows and "name" not in rows[0]:
        raise BadFile("the styles do not have a column 'name'; the first line must be name,prompt,negative_prompt")
    styles = (
        Style(row["name"] or "", row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
    )
    return {style.name: style for style in styles if style.name and not style.name.startswith("#")}


def apply_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[str, str]:
    """Add styles to a prompt and its negative prompt, in order."""
    for style in styles:
        prompt, negative = _add_style(prompt, style.prompt), _add_style(negative, style.negative)
    return prompt, negative


def extract_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[list[Style], str, str]:
    """Find the styles that were applied to two prompts, and remove them.

    Returns:
        The styles in order, the prompt and the negative prompt without them.
    """
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
    """Return True if a style was added to both prompts."""
    return _remove_style(prompt, style.prompt) is not None and _remove_style(negative, style.negative) is not None


def _remove_style(prompt: str, style: str) -> str | None:
    """Return the prompt without a style, or None if the style was not added to it."""
    if PROMPT_PLACEHOLDER in style:
        before, _, after = style.partition(PROMPT_PLACEHOLDER)
        is_match = prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after)
        return prompt[len(before) : len(prompt) - len(after)] if is_match else None
    if prompt == style:
        return ""
    ending = STYLE_SEPARATOR + style if style else ""
    return prompt.removesuffix(ending) if prompt.endswith(ending) else None
