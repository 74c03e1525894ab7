"""Prompt files: one prompt a line, with options, such as `a red house --n blurry --w 512 --s 30 --d 7`."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches

from velatura.errors import BadPrompt, warn
from velatura.prompts.passage import prompt_error

OPTION_PATTERN = re.compile(r"(?<!\S)--([A-Za-z][\w-]*)(?:=|(?!\S))")
# As in shlex, with which the script "Prompts from file" splits a line: \" and \\ within double quotes stand for " and \
QUOTED_VALUE_PATTERN = re.compile(r"\s*(?:\"((?:[^\"\\]|\\.)*)\"|'([^']*)')(?!\S)")
ESCAPED_MARK = re.compile(r"\\([\"\\])")
OPEN_QUOTE = re.compile(r"\s*\"(?:[^\"\\]|\\.)*$")
# As in generation data that was pasted, whose lines would each become a prompt
PICTURE_SETTINGS = re.compile(r"(?<!\S)(Steps:\s*\d+\s*,\s*\w[\w ]*:|Negative prompt:)")
MAX_PICTURES_PER_LINE = 10_000
# Dashes that editors put in place of two hyphens, one hyphen, or an option without a space before or a value after it
LIKE_AN_OPTION = re.compile(
    r"(?:(?<!\S)[-\u2010-\u2015\u2212]+|(?<=\S)--|(?<!\S)--\s+)[\u200b-\u200d]*"
    r"(?P<name>[A-Za-z][\w-]*)[:;,.]?(?=[\s=]|$)"
)

# Letters of kohya-ss/sd-scripts, and names of A1111's script "Prompts from file"
OPTION_ALIASES = {
    "n": "negative",
    "w": "width",
    "h": "height",
    "s": "steps",
    "d": "seed",
    "l": "guidance",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "negative_prompt": "negative",
    "sampler_name": "sampler",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
}
COUNT_OPTIONS = ("count", "batch_size", "n_iter")  # their values are multiplied
OPTIONS_ALLOWED_EMPTY = ("prompt", "negative")


@dataclass(frozen=True)
class PromptLine:
    """A line of a prompt file: recipe fields as they are written, and the number of pictures."""

    number: int
    settings: dict[str, str] = field(default_factory=dict[str, str])
    count: int = 1


def parse_prompt_lines(text: str, fields: Collection[str]) -> list[PromptLine]:
    """Parse a prompt file. Empty lines and lines that start with # are skipped.

    A value ends at the next option, or is in quotes; in double quotes, a backslash stands before a quotation mark. A
    line that starts with an option has no prompt unless it has --prompt.

    Args:
        text: Contents of the file.
        fields: Fields of a recipe, which are the options.

    Raises:
        BadPrompt: for a wrong option or value, with the line number.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [_parse_line(number, line, fields) for number, line in lines if line and not line.startswith("#")]


def _parse_line(number: int, text: str, fields: Collection[str]) -> PromptLine:
    first = OPTION_PATTERN.search(text)
    prompt = text[: first.start()].strip() if first else text
    if settings_of_picture := PICTURE_SETTINGS.search(prompt):
        reason = "these are the settings of a picture; give its text by --recipe, or write --steps and the like"
        raise prompt_error(text, settings_of_picture.start(), f"line {number}: {reason}")
    _warn_of_words_like_options(number, prompt, fields)
    settings = {"prompt": prompt} if prompt else {}
    count = 1
    option = first
    while option is not None:
        name = _option_name(number, text, option, fields)
        value, next_option = _option_value(number, text, option)
        if not value and name not in OPTIONS_ALLOWED_EMPTY:
            raise _option_error(number, text, option, f"--{option[1]} has no value; write one after it")
        if name in settings:
            raise _option_error(number, text, option, f"{name} is given twice; leave one out")
        if not QUOTED_VALUE_PATTERN.match(text, option.end()):
            _warn_of_words_like_options(number, value, fields)
        if name in COUNT_OPTIONS:
            count *= _parse_count(number, text, option, value)
        else:
            settings[name] = value
        option = next_option
    return PromptLine(number, settings, count)


def _option_value(number: int, text: str, option: re.Match[str]) -> tuple[str, re.Match[str] | None]:
    """Return the value of an option, and the next option."""
    if quoted := QUOTED_VALUE_PATTERN.match(text, option.end()):
        next_option = OPTION_PATTERN.search(text, quoted.end())
        if not text[quoted.end() : next_option.start() if next_option else None].strip():
            value = quoted[2] or "" if quoted[1] is None else ESCAPED_MARK.sub(r"\1", quoted[1])
            return value, next_option
    if OPEN_QUOTE.match(text, option.end()):
        reason = (
            f'the quotation mark after --{option[1]} is not closed; close it, and write \\" for one within the text'
        )
        raise _option_error(number, text, option, reason)
    next_option = OPTION_PATTERN.search(text, option.end())
    return text[option.end() : next_option.start() if next_option else None].strip(), next_option


def _option_name(number: int, text: str, option: re.Match[str], fields: Collection[str]) -> str:
    """Return the recipe field, or the count option, that an option stands for."""
    name = option[1].replace("-", "_")
    name = OPTION_ALIASES.get(name, name)
    if name in fields or name in COUNT_OPTIONS:
        return name
    suggestions = get_close_matches(name, [*fields, *OPTION_ALIASES, *COUNT_OPTIONS], n=1)
    advice = (
        f"did you mean --{suggestions[0]}" if suggestions else "use --n --w --h --s --d --l or a field of the recipe"
    )
    raise _option_error(number, text, option, f"--{option[1]} is not an option; {advice}")


def _warn_of_words_like_options(number: int, text: str, fields: Collection[str]) -> None:
    """Warn of what looks like an option and is read as words, such as a dash that an editor made of two hyphens."""
    for match in LIKE_AN_OPTION.finditer(text):
        name = match["name"].replace("-", "_")
        if name in OPTION_ALIASES or name in fields or name in COUNT_OPTIONS:
            warn(
                f"line {number}: {match[0]!r} is read as words of the prompt: for the option, write --{match['name']} "
                "with a space before it"
            )


def _parse_count(number: int, text: str, option: re.Match[str], value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= MAX_PICTURES_PER_LINE:
        raise _option_error(
            number,
            text,
            option,
            f"{value!r} is not a number of pictures; write one from 1 to {MAX_PICTURES_PER_LINE:,}",
        )
    return int(value)


def _option_error(number: int, text: str, option: re.Match[str], reason: str) -> BadPrompt:
    return prompt_error(text, option.start(), f"line {number}: {reason}")
