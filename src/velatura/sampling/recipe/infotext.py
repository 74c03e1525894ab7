"""Infotext: the text inside a picture that says how it was made, as A1111 writes and reads it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from velatura.errors import warn

NEGATIVE_PREFIX = "Negative prompt:"
FIELD_PATTERN = re.compile(r'(?P<key>\w[\w \-/]{1,99}):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MIN_FIELDS = 3  # a last line with fewer fields is part of the prompt

# What tells that a text without a line of settings should have one
SETTING = re.compile(rf"^\s*{NEGATIVE_PREFIX}|\b(Steps|Sampler|CFG scale|Seed|Size):")
FIELD_LINE_START = re.compile(r"\s*Steps\s*:")
KEY_AT_START = re.compile(r"\s*\w[\w \-/]+:")
# Settings on the line of the prompt, as in generation data that was pasted into one line
INLINE_FIELDS = re.compile(r"\s(?=Steps:\s*\d+\s*,\s*\w[\w \-/]+:)")
INLINE_NEGATIVE = re.compile(rf"\s(?={NEGATIVE_PREFIX})")
# Lines that extensions for wildcards write behind the fields; the prompt above is what they became
TEMPLATE, NEGATIVE_TEMPLATE = "Template", "Negative Template"
TEMPLATE_LINE = re.compile(rf"\s*(?P<key>{NEGATIVE_TEMPLATE}|{TEMPLATE})\s*:(?P<text>.*)", re.DOTALL)
OPEN_QUOTE = re.compile(r':\s*"(?:\\.|[^"\\])*\Z')
CLOSING_QUOTE = re.compile(r'(?:\\.|[^"\\])*"')
LORA_WEIGHTS = "Lora weights"  # a field of Fooocus, whose prompts have no tags
MAX_SHOWN_LENGTH = 80  # of a text that a warning shows


class Infotext(NamedTuple):
    """A parsed infotext: prompt, negative prompt, and the fields of the last line, all as text."""

    prompt: str
    negative: str
    fields: dict[str, str]


class InfotextLines(NamedTuple):
    """Lines of an infotext.

    Attributes:
        prompts: Lines of both prompts.
        fields: The text of the fields.
        unread: Lines that nothing reads.
        templates: What the prompts were drawn from, by TEMPLATE and NEGATIVE_TEMPLATE.
    """

    prompts: list[str]
    fields: str
    unread: list[str]
    templates: Mapping[str, str] = {}


def write_infotext(
    prompt: str, negative: str, fields: Mapping[str, object], templates: Mapping[str, str | None] | None = None
) -> str:
    """Write infotext: the prompt, the negative prompt, a line of fields, and lines of templates.

    Args:
        prompt, negative: The prompts; an empty negative prompt is left out.
        fields: The fields in their order; those that are None are left out.
        templates: What the prompts were drawn from, by TEMPLATE and NEGATIVE_TEMPLATE, as the web UI's extension for
            dynamic prompts writes it; those that are None are left out.
    """
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    template_lines = [f"{key}: {_quote_template(text)}" for key, text in (templates or {}).items() if text]
    negative_lines = [f"{NEGATIVE_PREFIX} {negative}"] if negative else []
    return "\n".join([prompt, *negative_lines, line, *template_lines]).strip()


def read_infotext(text: str) -> Infotext:
    """Parse infotext; a text without a line of fields is all prompt.

    The line of fields is the last one that starts with "Steps:", or else the last line of the text.
    """
    lines = split_infotext(text)
    fields = {key: unquote(value) for key, value in find_fields(lines.fields) if value}
    fields |= lines.templates
    prompt, negative = _split_prompts([line.strip() for line in lines.prompts])
    return Infotext(prompt + _old_hypernetwork_tag(fields) + _fooocus_lora_tags(fields, prompt), negative, fields)


def warn_of_infotext(text: str) -> None:
    """Warn of what an infotext does not say, or says in a place where it may be missed."""
    lines = split_infotext(text)
    if not lines.fields and any(map(SETTING.search, lines.prompts)):
        warn(
            'the text has no line of settings such as "Steps: 20, Sampler: Euler a, ...": all of it is the prompt, and '
            "the defaults of velatura are used for the rest"
        )
    for line in lines.prompts:
        if FIELD_LINE_START.match(line) and _is_field_line(line):
            warn(
                f"the prompt has a line that looks like settings, {_shorten(line)!r}: it is read as words of the "
                "prompt, because only the last such line holds the settings"
            )
    if lines.unread:
        warn(f"the text behind the settings is not read: {_shorten(' '.join(lines.unread))!r}")
    if leftovers := _find_leftovers(lines.fields):
        warn(f"these parts of the settings are not read: {_shorten(', '.join(leftovers))!r}")
    if repeated := _find_contradictions(lines.fields):
        warn(
            f"settings that are given twice with different values: {_shorten('; '.join(repeated))}; the last one counts"
        )
    if empty_keys := [key for key, value in find_fields(lines.fields) if not value]:
        warn(f"settings without a value are left out: {', '.join(empty_keys)}")


def split_infotext(text: str) -> InfotextLines:
    """Split infotext into the lines of its prompts, the text of its fields, and what stands behind them."""
    lines = text.strip().replace("\r\n", "\n").split("\n")
    index = _find_field_line(lines)
    if index is None:
        return _split_single_line(lines) or InfotextLines(lines, "", [])
    if not FIELD_LINE_START.match(lines[index]) and (inline := _split_single_line(lines)):
        return inline
    fields, unread = _join_fields(lines[index], lines[index + 1 :])
    return InfotextLines(lines[:index], fields, unread, _find_templates(lines[index + 1 :]))


def find_fields(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of fields and their values as they are written; a value may be a JSON list or object."""
    for key, value, _ in _scan_fields(text):
        if key:
            yield key, value


def _scan_fields(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the key and value of every field, with the text before it that belongs to none; the last key is empty."""
    position = 0
    while field := FIELD_PATTERN.search(text, position):
        before, start = text[position : field.start()], field.start("value")
        json_end = _find_json_end(text, start) if text[start : start + 1] in {"{", "["} else None
        yield field["key"], field["value"] if json_end is None else text[start:json_end], before
        position = field.end() if json_end is None else json_end
    yield "", "", text[position:]


def _find_leftovers(text: str) -> list[str]:
    """Return what stands between fields and is none, such as the rest of a value with commas."""
    return [leftover for _, _, before in _scan_fields(text) if (leftover := before.strip(", \t\r\n"))]


def _find_contradictions(text: str) -> list[str]:
    """Return the settings that are given several times with different values."""
    values: dict[str, dict[str, None]] = {}
    for key, value in find_fields(text):
        if value:
            values.setdefault(key, {})[value.strip()] = None
    return [f"{key}: {', '.join(found)}" for key, found in values.items() if len(found) > 1]


def quote(value: object) -> str:
    """Format a value for the line of fields: as a JSON string if it has a comma, a colon or a line break."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def unquote(text: str) -> str:
    """Undo quote; a text that is not valid JSON is returned unchanged. Line breaks within the quotes are allowed."""
    if not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text, strict=False))
    except json.JSONDecodeError:
        return text


def _find_field_line(lines: list[str]) -> int | None:
    """Return the index of the line of fields: the last one that starts with Steps, or else the last line."""
    for index in range(len(lines) - 1, -1, -1):
        if FIELD_LINE_START.match(lines[index]) and _is_field_line(lines[index]):
            return index
    return len(lines) - 1 if _is_field_line(lines[-1]) else None


def _is_field_line(line: str) -> bool:
    fields = find_fields(line)
    return sum(1 for _ in zip(fields, range(MIN_FIELDS), strict=False)) == MIN_FIELDS


def _join_fields(line: str, following: list[str]) -> tuple[str, list[str]]:
    """Return the text of the fields with those of the lines behind it, and the lines that hold none."""
    fields, unread, is_open = [line], list[str](), _leaves_quote_open(line, is_open=False)
    for number, text in enumerate(following):
        if is_open:
            fields.append(f"\n{text}")
        elif TEMPLATE_LINE.match(text):
            break
        elif _starts_with_field(text):
            fields.append(f", {text}")
        elif any(map(KEY_AT_START.match, text.split(",")[1:])):
            fields.append(f"\n{text}")  # the end of a value with a line break, and more fields
        else:
            unread = [line for line in following[number:] if line.strip() and not TEMPLATE_LINE.match(line)]
            break
        is_open = _leaves_quote_open(text, is_open=is_open)
    return "".join(fields), unread


def _find_templates(lines: list[str]) -> dict[str, str]:
    """Return the templates in lines behind the fields; the lines of one go on until the next."""
    templates: dict[str, str] = {}
    key = ""
    for line in lines:
        if match := TEMPLATE_LINE.match(line):
            key, templates[match["key"]] = match["key"], match["text"].strip()
        elif key:
            templates[key] += f"\n{line}"
    return {key: unquote(text.strip()) for key, text in templates.items() if text.strip()}


def _quote_template(text: str) -> str:
    """Format a template for a line of its own: as a JSON string if it has line breaks, or quotes around it."""
    return json.dumps(text, ensure_ascii=False) if "\n" in text or text.startswith('"') else text


def _leaves_quote_open(line: str, *, is_open: bool) -> bool:
    """Return True if a value in quotes goes on behind the line."""
    if is_open:
        closing = CLOSING_QUOTE.match(line)
        if closing is None:
            return True
        line = line[closing.end() :]
    return OPEN_QUOTE.search(line) is not None


def _split_single_line(lines: list[str]) -> InfotextLines | None:
    """Split a last line that holds the prompts too, as text has that went through a field of one line."""
    last_line = lines[-1]
    match = None if _starts_with_field(last_line) else INLINE_FIELDS.search(last_line)
    if match is None:
        return None
    prompts = [*lines[:-1], *INLINE_NEGATIVE.split(last_line[: match.start()], maxsplit=1)]
    return InfotextLines(prompts, last_line[match.end() :], [])


def _starts_with_field(line: str) -> bool:
    return KEY_AT_START.match(line) is not None and not line.lstrip().startswith(NEGATIVE_PREFIX)


def _find_json_end(text: str, start: int) -> int | None:
    """Return the position behind the JSON value that starts there, or None if it is not JSON."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


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


def _fooocus_lora_tags(fields: Mapping[str, str], prompt: str) -> str:
    """Return tags for the LoRAs that Fooocus records in a field, with their weights."""
    entries = [entry.rpartition(":") for entry in fields.get(LORA_WEIGHTS, "").split(",")]
    tags = [f"<lora:{name.strip()}:{weight.strip()}>" for name, _, weight in entries if name.strip()]
    return "".join(f" {tag}" for tag in tags if tag.rpartition(":")[0] not in prompt)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."
