"""The text that says how a picture was made, as the AUTOMATIC1111 webui writes and reads it."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

NEGATIVE_PREFIX = "Negative prompt:"
FIELD_PATTERN = re.compile(r'\s*(?P<key>\w[\w \-/]+):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MIN_FIELDS = 3  # a last line with fewer is part of the prompt


class Infotext(NamedTuple):
    """A prompt, a negative prompt and the fields of the last line, all as text."""

    prompt: str
    negative: str
    fields: dict[str, str]


def write_infotext(prompt: str, negative: str, fields: Mapping[str, object]) -> str:
    """Put a recipe into words: prompt, negative prompt, and a line of fields without those that are None."""
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"{NEGATIVE_PREFIX} {negative}"] if negative else []), line]).strip()


def read_infotext(text: str) -> Infotext:
    """Take such a text apart; what does not look like it is all prompt."""
    *lines, last_line = text.strip().split("\n")
    matches = list(FIELD_PATTERN.finditer(last_line))
    if len(matches) < MIN_FIELDS:
        lines, matches = [*lines, last_line], []
    fields = {field["key"]: unquote(field["value"]) for field in matches if field["value"]}
    prompt, negative = _split_prompts([line.strip() for line in lines])
    return Infotext(prompt + _old_hypernetwork_tag(fields), negative, fields)


def quote(value: object) -> str:
    """A value as it stands in the line of fields: in JSON's quotes if it holds a comma, a colon or a line break."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def unquote(text: str) -> str:
    """The value that was written; what only looks quoted stays as it is."""
    if not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        return text


def _split_prompts(lines: list[str]) -> tuple[str, str]:
    """From the first line that is marked as negative on, all is negative; later marks are cut off."""
    first_negative = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE_PREFIX)), len(lines))
    negative = [line.removeprefix(NEGATIVE_PREFIX).strip() for line in lines[first_negative:]]
    return "\n".join(lines[:first_negative]).lstrip("\n"), "\n".join(negative).lstrip("\n")


def _old_hypernetwork_tag(fields: Mapping[str, str]) -> str:
    """The tag that says what pictures of 2022 said in fields."""
    if "Hypernet" not in fields:
        return ""
    return f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"
