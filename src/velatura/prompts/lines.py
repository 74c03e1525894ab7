"""Files of prompts, one on each line, with options behind it: `a red house --n blurry --w 512 --s 30 --d 7`."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches

from velatura.errors import BadPrompt
from velatura.prompts.passage import misread

OPTION = re.compile(r"(?<!\S)--([A-Za-z][\w-]*)(?:=|(?!\S))")
QUOTED = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)')(?!\S)")
MOST = 10_000  # pictures of one line

# kohya-ss/sd-scripts' letters, and the names of the webui's script that are not a recipe's
ALIASES = {
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
COUNTS = ("count", "batch_size", "n_iter")  # they multiply
MAY_BE_EMPTY = ("prompt", "negative")


@dataclass(frozen=True)
class Line:
    """What one line asks for: fields of a recipe as they are written, and how many pictures."""

    number: int
    settings: dict[str, str] = field(default_factory=dict[str, str])
    count: int = 1


def read_lines(text: str, fields: Collection[str]) -> list[Line]:
    """Read the lines of a file of prompts; empty lines and those that start with # ask for nothing.

    fields: the fields of a recipe, each of which is an option. A value reaches to the next option, or stands in quotes.
    A line that starts with an option has no prompt of its own unless it gives one as --prompt. Raises BadPrompt.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [_line(number, line, fields) for number, line in lines if line and not line.startswith("#")]


def _line(number: int, text: str, fields: Collection[str]) -> Line:
    first = OPTION.search(text)
    prompt = text[: first.start()].strip() if first else text
    settings = {"prompt": prompt} if prompt else {}
    count = 1
    option = first
    while option is not None:
        name = _name(number, text, option, fields)
        value, option_after = _value(text, option)
        if not value and name not in MAY_BE_EMPTY:
            raise _misread(number, text, option, f"--{option[1]} has no value; write one behind it")
        if name in settings:
            raise _misread(number, text, option, f"{name} is given twice; leave one out")
        if name in COUNTS:
            count *= _count(number, text, option, value)
        else:
            settings[name] = value
        option = option_after
    return Line(number, settings, count)


def _value(text: str, option: re.Match[str]) -> tuple[str, re.Match[str] | None]:
    """What stands behind an option, and the next option."""
    if quoted := QUOTED.match(text, option.end()):
        following = OPTION.search(text, quoted.end())
        if not text[quoted.end() : following.start() if following else None].strip():
            return quoted[1] or quoted[2] or "", following
    following = OPTION.search(text, option.end())
    return text[option.end() : following.start() if following else None].strip(), following


def _name(number: int, text: str, option: re.Match[str], fields: Collection[str]) -> str:
    """The recipe's name of an option."""
    name = option[1].replace("-", "_")
    name = ALIASES.get(name, name)
    if name in fields or name in COUNTS:
        return name
    near = get_close_matches(name, [*fields, *ALIASES, *COUNTS], n=1)
    advice = f"did you mean --{near[0]}" if near else "use --n --w --h --s --d --l or a field of the recipe"
    raise _misread(number, text, option, f"there is no option --{option[1]}; {advice}")


def _count(number: int, text: str, option: re.Match[str], value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= MOST:
        raise _misread(number, text, option, f"{value!r} is no number of pictures; write one from 1 to {MOST:,}")
    return int(value)


def _misread(number: int, text: str, option: re.Match[str], reason: str) -> BadPrompt:
    return misread(text, option.start(), f"line {number}: {reason}")
