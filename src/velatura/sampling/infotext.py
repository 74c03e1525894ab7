"""The text that says how a picture was made, as the AUTOMATIC1111 webui writes and reads it."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

NEGATIVE = "Negative prompt:"
FIELD = re.compile(r'\s*(?P<key>\w[\w \-/]+):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_FIELDS = 3  # a last line with fewer is part of the prompt


class Infotext(NamedTuple):
    """A prompt, a negative prompt and the fields of the last line, all as text."""

    prompt: str
    negative: str
    fields: dict[str, str]


def write_infotext(prompt: str, negative: str, fields: Mapping[str, object]) -> str:
    """Put a recipe into words: prompt, negative prompt, and a line of fields without those that are None."""
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"{NEGATIVE} {negative}"] if negative else []), line]).strip()


def read_infotext(text: str) -> Infotext:
    """Take such a text apart; what does not look like it is all prompt."""
    *lines, last = text.strip().split("\n")
    found = list(FIELD.finditer(last))
    if len(found) < FEWEST_FIELDS:
        lines, found = [*lines, last], []
    fields = {each["key"]: unquote(each["value"]) for each in found if each["value"]}
    prompt, negative = _split_prompts([line.strip() for line in lines])
    return Infotext(prompt + _old_hypernetwork(fields), negative, fields)


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
    first = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = [line.removeprefix(NEGATIVE).strip() for line in lines[first:]]
    return "\n".join(lines[:first]).lstrip("\n"), "\n".join(negative).lstrip("\n")


def _old_hypernetwork(fields: Mapping[str, str]) -> str:
    """The tag that says what pictures of 2022 said in fields."""
    if "Hypernet" not in fields:
        return ""
    return f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"
