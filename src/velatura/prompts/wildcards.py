"""Wildcards and variants: `a __colour__ {cat|dog}` draws a line of colour.txt and one of the variants.

The templates are those of dynamicprompts, the library of A1111's extension sd-dynamic-prompts.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from velatura.errors import BadFile, BadPrompt, UnknownName, warn
from velatura.prompts.passage import prompt_error

# Each pattern takes time in proportion to the prompt, whatever a stranger wrote
WILDCARD_PATTERN = re.compile(
    r"(?<![^\W_])__[~@!]?(?![\s_])(?P<name>[\w*?/.\- ]{1,100}?)(?<![\s_])(?:\([^()]{1,200}\))?__(?![^\W_])"
)
VARIANTS_PATTERN = re.compile(r"\{(?:[^{}|$]|\$(?!\$))*+(?:\||\$\$)[^{}]*\}")
VARIABLE_PATTERN = re.compile(r"\$\{\w{1,200}")
BRACES_PATTERN = re.compile(r"(?<![$%])\{[^\w{}|$]*\w[^{}|$]*\}")
BRACKETS_PATTERN = re.compile(r"\[[^\[\]{}|]*\|[^\[\]{}]*\]")
TAG_PATTERN = re.compile(r"<[^<>{}$]{0,500}>")
# What dynamicprompts takes for syntax where it opens nothing, and the characters that stand for it meanwhile, which
# Unicode keeps out of texts
LITERAL_PATTERN = re.compile(
    rf"(?P<syntax>{WILDCARD_PATTERN.pattern}|__(?=[{{$])|(?<=\}})__|[$%]\{{|\$\$)|__|[$%]", re.UNICODE
)
STAND_INS = str.maketrans("%$_", "\ufdd0\ufdd1\ufdd2")
RESTORED = str.maketrans("\ufdd0\ufdd1\ufdd2", "%$_")
TEMPLATE_PATTERNS = (WILDCARD_PATTERN, VARIANTS_PATTERN, VARIABLE_PATTERN)
MAX_SHOWN_TEMPLATES, MAX_SHOWN_CHARACTERS = 5, 60  # in a message


def find_template(text: str) -> str | None:
    """Return the first wildcard, variant or variable in a prompt, None if it has none."""
    return next(iter(_find_templates(text)), None)


def _find_templates(text: str) -> list[str]:
    """Return the first wildcards, variants and variables in a prompt, no more than a message can show and one."""
    plain = _blank_tags(text)
    found = [islice(pattern.finditer(plain), MAX_SHOWN_TEMPLATES + 1) for pattern in TEMPLATE_PATTERNS]
    matches = sorted((match for matches in found for match in matches), key=lambda match: match.start())
    return list(dict.fromkeys(match.group() for match in matches))[: MAX_SHOWN_TEMPLATES + 1]


def expand_template(text: str, folder: Path, seed: int) -> str:
    """Draw what the wildcards and variants of a prompt stand for.

    `__colour__` is a line of colour.txt in the folder, `{a|b}` one of the variants, `{2$$a|b|c}` two of them,
    `{0.3::a|0.7::b}` weighs them, `${x=!{a|b}}` draws once for all `${x}`.

    Args:
        text: The prompt. One without wildcards and variants is returned as it is.
        folder: Folder of the wildcard files: .txt, .json or .yaml.
        seed: The same seed draws the same.

    Warns of braces and brackets that the drawing takes apart.

    Raises:
        BadFile: The folder does not exist.
        BadPrompt: The template cannot be parsed or drawn.
        UnknownName: A wildcard has no file, or an empty one.
    """
    if find_template(text) is None:
        return text
    if not folder.is_dir():
        raise BadFile(f"{folder} is not a folder: give the folder of the wildcard files (--wildcards)")
    from dynamicprompts.generators import RandomPromptGenerator
    from dynamicprompts.wildcards import WildcardManager
    from pyparsing import ParseException

    for match in WILDCARD_PATTERN.finditer(_blank_tags(text)):
        if ".." in match["name"].split("/"):
            raise prompt_error(text, match.start(), f"{match.group()} leads out of the folder: wildcards must be in it")
    _warn_of_lost_marks(text)
    logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # a missing wildcard is an error here
    manager = WildcardManager(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pyparsing, for names that dynamicprompts uses
            generator: Any = RandomPromptGenerator(manager, seed=seed)
            drawn = str(generator.generate(_protect_literals(text), 1)[0]).translate(RESTORED)
    except ParseException as error:
        reason = "the wildcards and variants cannot be parsed; write __name__, {a|b} or {2$$a|b|c}"
        raise prompt_error(text, int(error.loc), reason) from None
    except RecursionError:
        raise BadPrompt("the wildcards refer to each other without end: take one out of its own lines") from None
    except KeyError as error:
        raise BadPrompt(f"{str(error.args[0])[:80]}: give it a value before, as ${{name=!{{a|b}}}}") from None
    except (ValueError, IndexError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadPrompt(f"the wildcards and variants of {text[:60]!r} cannot be drawn: {reason}") from None
    _refuse_missing(drawn, map(str, manager.get_collection_names()), folder)
    return drawn


def _refuse_missing(drawn: str, known: Iterable[str], folder: Path) -> None:
    """Refuse wildcards without a file, which are left when all others are drawn."""
    missing = list(dict.fromkeys(match["name"] for match in WILDCARD_PATTERN.finditer(_blank_tags(drawn))))
    if not missing:
        return
    error = UnknownName.with_suggestions("wildcard", missing[0], known, str(folder))
    raise UnknownName(f"{error} Missing too: {_quote_first(missing[1:])}") if missing[1:] else error


def _blank_tags(text: str) -> str:
    """Replace tags, whose names may have underscores, by as many spaces."""
    return TAG_PATTERN.sub(lambda match: " " * len(match.group()), text)


def _protect_literals(text: str) -> str:
    """Replace what looks like syntax of dynamicprompts and is none by stand-ins of the same length."""
    text = TAG_PATTERN.sub(lambda match: match.group().translate(STAND_INS), text)
    return LITERAL_PATTERN.sub(lambda match: match["syntax"] or match.group().translate(STAND_INS), text)


def _quote_first(texts: Iterable[str]) -> str:
    """Return the first of some texts in quotes, for a message."""
    shown = [repr(text[:MAX_SHOWN_CHARACTERS]) for text in islice(dict.fromkeys(texts), MAX_SHOWN_TEMPLATES + 1)]
    return ", ".join([*shown[:MAX_SHOWN_TEMPLATES], *(["..."] if len(shown) > MAX_SHOWN_TEMPLATES else [])])


def _warn_of_lost_marks(text: str) -> None:
    braces = [match.group() for match in BRACES_PATTERN.finditer(text)]
    if braces:
        warn(
            f"the prompt has braces that are lost, because variants are drawn ({_quote_first(braces)}): NovelAI's "
            "emphasis {word} is (word:1.05) here"
        )
    brackets = [
        match.group()
        for variants in VARIANTS_PATTERN.finditer(text)
        for match in BRACKETS_PATTERN.finditer(variants.group())
    ]
    if brackets:
        warn(
            f"the prompt has brackets in a variant, which ends at their |, so the words no longer alternate "
            f"({_quote_first(brackets)}): put the brackets outside, [{{a|b}}|c]"
        )


def warn_of_letters(text: str) -> None:
    """Warn of wildcards, variants and NovelAI's braces in a prompt that is painted as it is."""
    templates = _find_templates(text)
    if templates:
        warn(
            f"the prompt has wildcards or variants that are painted as letters ({_quote_first(templates)}): give the "
            "folder of your wildcards (--wildcards) to draw them"
        )
    elif braces := [match.group() for match in BRACES_PATTERN.finditer(text)]:
        warn(
            f"the prompt has braces that are painted ({_quote_first(braces)}): NovelAI's emphasis {{word}} is "
            "(word:1.05) here"
        )
