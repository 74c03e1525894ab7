"""Wildcards and variants: `a __colour__ {cat|dog}` draws a line of colour.txt and one of the variants.

The templates are those of dynamicprompts, the library of A1111's extension sd-dynamic-prompts.
"""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

from velatura.errors import BadFile, BadPrompt, UnknownName, warn
from velatura.prompts.passage import prompt_error

WILDCARD_PATTERN = re.compile(r"__(?![\s_])(?P<name>[\w*?/.\- ]{1,100}?)(?<![\s_])__")
VARIANTS_PATTERN = re.compile(r"\{(?:[^{}|$]|\$(?!\$))*+(?:\||\$\$)[^{}]*\}")
VARIABLE_PATTERN = re.compile(r"\$\{\w+")
BRACES_PATTERN = re.compile(r"\{(?=[^{}|$\w]*+\w)[^{}|$]*+\}")
TEMPLATE_PATTERNS = (WILDCARD_PATTERN, VARIANTS_PATTERN, VARIABLE_PATTERN)


def find_template(text: str) -> str | None:
    """Return the first wildcard, variant or variable in a prompt, None if it has none."""
    matches = [match for pattern in TEMPLATE_PATTERNS if (match := pattern.search(text))]
    return min(matches, key=lambda match: match.start()).group() if matches else None


def expand_template(text: str, folder: Path, seed: int) -> str:
    """Draw what the wildcards and variants of a prompt stand for.

    `__colour__` is a line of colour.txt in the folder, `{a|b}` one of the variants, `{2$$a|b|c}` two of them,
    `{0.3::a|0.7::b}` weighs them, `${x=!{a|b}}` draws once for all `${x}`.

    Args:
        text: The prompt. One without wildcards and variants is returned as it is.
        folder: Folder of the wildcard files: .txt, .json or .yaml.
        seed: The same seed draws the same.

    Raises:
        BadFile: The folder does not exist.
        BadPrompt: The template cannot be parsed.
        UnknownName: A wildcard has no file, or an empty one.
    """
    if find_template(text) is None:
        return text
    if not folder.is_dir():
        raise BadFile(f"{folder} is not a folder: give the folder of the wildcard files (--wildcards)")
    from dynamicprompts.generators import RandomPromptGenerator
    from dynamicprompts.wildcards import WildcardManager
    from pyparsing import ParseException

    for match in WILDCARD_PATTERN.finditer(text):
        if ".." in match["name"].split("/"):
            raise prompt_error(text, match.start(), f"{match.group()} leads out of the folder: wildcards must be in it")
    logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # a missing wildcard is an error here
    manager = WildcardManager(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pyparsing, for names that dynamicprompts uses
            generator: Any = RandomPromptGenerator(manager, seed=seed)
            drawn = str(generator.generate(text, 1)[0])
    except ParseException as error:
        reason = "the wildcards and variants cannot be parsed; write __name__, {a|b} or {2$$a|b|c}"
        raise prompt_error(text, int(error.loc), reason) from None
    except RecursionError:
        raise BadPrompt("the wildcards refer to each other without end: take one out of its own lines") from None
    missing = WILDCARD_PATTERN.search(drawn)
    if missing:
        raise UnknownName.with_suggestions(
            "wildcard", missing["name"], map(str, manager.get_collection_names()), str(folder)
        )
    return drawn


def warn_of_letters(text: str) -> None:
    """Warn of wildcards, variants and NovelAI's braces in a prompt that is painted as it is."""
    template = find_template(text)
    if template is not None:
        warn(
            f"{template[:60]!r} in the prompt is painted as letters: give the folder of your wildcards "
            "(--wildcards) to draw wildcards and variants"
        )
    elif braces := BRACES_PATTERN.search(text):
        warn(
            f"{braces.group()[:60]!r} in the prompt is painted with its braces: NovelAI's emphasis {{word}} is "
            "(word:1.05) here"
        )
