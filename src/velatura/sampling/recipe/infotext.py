"""Infotext: the text inside a picture that says how it was made, as A1111 writes and reads it."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

NEGATIVE_PREFIX = "Negative prompt:"
FIELD_PATTERN = re.compile(r'\s*(?P<key>\w[\w \-/]+):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MIN_FIELDS = 3  # a last line with fewer fields is part of the prompt


class Infotext(NamedTuple):
    """A parsed infotext: prompt, negative prompt, and the fields of the last line, all as text."""

    prompt: str
    negative: str
    fields: dict[str, str]


def write_infotext(prompt: str, negative: str, fields: Mapping[str, object]) -> str:
    """Write infotext: the prompt, the negative prompt, and a line of fields.

    Args:
        prompt, negative: The prompts; an empty negative prompt is left out.
        fields: The fields in their order; those that are None are left out.
    """
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"{NEGATIVE_PREFIX} {negative}"] if negative else []), line]).strip()


def read_infotext(text: str) -> Infotext:
    """Parse infotext; a text without a line of fields is all prompt."""
    *lines, last_line = text.strip().split("\n")
    matches = list(FIELD_PATTERN.finditer(last_line))
    if len(matches) < MIN_FIELDS:
        lines, matches = [*lines, last_line], []
    fields = {field["key"]: unquote(field["value"]) for field in matches if field["value"]}
    prompt, negative = _split_prompts([line.strip() for line in lines])
    return Infotext(prompt + _old_hypernetwork_tag(fields), negative, fields)


def quote(value: object) -> str:
    """Format a value for the line of fields: as a JSON string if it has a comma, a colon or a line break."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def unquote(text: str) -> str:
    """Undo quote; a text that is not valid JSON is returned unchanged."""
    if not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        return text


def _split_prompts(lines: list[str]) -> tuple[str, str]:
    """Split lines at the first that starts the negative prompt; later markers are removed."""
    first_negative = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE_PREFIX)), len(lines))
    negative = [line.removeprefix(NEGATIVE_PREFIX).strip() for line in lines[first_negative:]]
    return "\n".join(lines[:first_negative]).lstrip("\n"), "\n".join(negative).lstrip("\n")


def _old_hypernetwork_tag(fields: Mapping[str, str]) -> str:
    """Return a tag for the hypernetwork that pictures of 2022 record in fields, or an empty text."""
    if "Hypernet" not in fields:
        return ""
    return f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"
