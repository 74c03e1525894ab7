"""Styles: named texts that are added to prompts, as in A1111's styles.csv."""

import csv
from collections.abc import Collection, Iterable
from io import StringIO
from typing import NamedTuple

from velatura.errors import BadFile, quantity, warn

PROMPT_PLACEHOLDER = "{prompt}"  # is replaced by the prompt; without it the style is appended
STYLE_SEPARATOR = ", "
STYLE_COLUMNS = {"name", "prompt", "text", "negative_prompt"}
MAX_SHOWN_LENGTH = 80  # characters of a stranger's text in a message


class Style(NamedTuple):
    """A style: texts that are added to the prompt and to the negative prompt."""

    name: str
    prompt: str = ""
    negative: str = ""


def read_styles(text: str) -> dict[str, Style]:
    """Parse a styles.csv. Rows whose name starts with # are comments.

    Spaces after the separators do not count. The separator is the comma, or what a spreadsheet put in its place: a
    semicolon or a tab, if the first line has it.

    Args:
        text: CSV with the columns name, prompt and negative_prompt; old files have name and text.

    Returns:
        Styles by name.

    Raises:
        BadFile: if the text is not such a table, or a row has more texts than there are columns.
    """
    rows = _read_rows(text.removeprefix("\ufeff"))
    if not rows:
        return {}
    columns = [column.strip().lower() for column in rows[0].cells]
    while columns and not columns[-1]:
        columns.pop()
    if "name" not in columns:
        raise BadFile("the styles do not have a column 'name'; the first line must be name,prompt,negative_prompt")
    if not {"prompt", "text", "negative_prompt"} & set(columns):
        raise BadFile(
            f"the styles have the columns {', '.join(columns)}, so none of them adds anything; "
            "the first line must be name,prompt,negative_prompt"
        )
    _warn_of_unread_columns(columns)
    styles: dict[str, Style] = {}
    for line, cells, has_spaces in rows[1:]:
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise BadFile(
                f"line {line} of the styles, {cells[0]!r}, has {quantity(len(cells), 'text')} for "
                f"{quantity(len(columns), 'column')}: "
                'put each text with commas in quotes, master,"masterpiece, best quality",blurry'
            )
        if has_spaces and not rows[0].has_spaces and any(cells[2:]):
            warn(
                f"line {line} of the styles, {cells[0]!r}, has a space after a comma without quotes, so {cells[2]!r} "
                'goes to the negative prompt: if it belongs to the prompt, write master,"masterpiece, best quality",'
            )
        row = dict(zip(columns, cells, strict=False))
        name = row.get("name", "")
        if name and not name.startswith("#"):
            _warn_of_second_style(styles, name, line)
            styles[name] = Style(name, row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
    return styles


def _warn_of_unread_columns(columns: list[str]) -> None:
    unread = [column for column in columns if column not in STYLE_COLUMNS]
    if unread:
        shown = ", ".join("".join(filter(str.isprintable, column)) or "without a name" for column in unread)
        warn(f"the styles have columns that are not read ({shown[:MAX_SHOWN_LENGTH]}): they have no effect")


def _warn_of_second_style(styles: Collection[str], name: str, line: int) -> None:
    if name in styles:
        shown = name[:MAX_SHOWN_LENGTH]
        warn(f"line {line} of the styles gives {shown!r} again: the later one counts, so rename one of them")


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


class _Row(NamedTuple):
    """A row with the number of its first line; `has_spaces` is True for a line without quotes and one after a comma."""

    line: int
    cells: list[str]
    has_spaces: bool


def _read_rows(text: str) -> list[_Row]:
    """Return the rows that are not empty."""
    lines = text.split("\n")
    delimiter = next((mark for mark in ",;\t" if mark in lines[0]), ",")
    # strict: a quotation mark that is not closed would take the following rows into its text
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[_Row] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadFile(
                f"the styles are not a CSV table, because the row from line {line} on has an error ({error}); "
                'close each quotation mark, write "" for one inside a text, and separate name,prompt,negative_prompt'
            ) from None
        if cells is None:
            return rows
        if any(cells):
            source = lines[line - 1] if line <= len(lines) else ""
            rows.append(_Row(line, cells, has_spaces=f"{delimiter} " in source and '"' not in source))


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
