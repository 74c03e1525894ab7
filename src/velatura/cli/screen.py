"""What is printed, all in one place: texts out of files and their names never reach a terminal raw."""

import json
import sys
import unicodedata
import warnings

from velatura.errors import VelaturaWarning

JOINERS = "\u200c\u200d"  # invisible, but letters of some languages and emoji are written with them


def say(*lines: object) -> None:
    """Print each of these on a line of its own."""
    for line in lines:
        print(_encoded(shown(line), sys.stdout.encoding))


def say_json(text: str) -> None:
    """Print JSON, in which nothing is lost: what a terminal would act on is written as JSON's own escapes."""
    narrow = not (sys.stdout.encoding or "").lower().startswith("utf")
    stays = str.isascii if narrow else _is_harmless
    print("".join(each if each == "\n" or (stays(each) and _is_harmless(each)) else _as_json(each) for each in text))


def complain(text: object) -> None:
    """Print one line on stderr, however many the text has."""
    one = " ".join(part.strip() for part in str(text).splitlines())
    print(_encoded(shown(one), sys.stderr.encoding), file=sys.stderr)


def show_warning(message: Warning | str, category: type[Warning], file: str, line: int, *_more: object) -> None:
    """Complain of a VelaturaWarning in one plain line; all others come with their place, as Python shows them."""
    if issubclass(category, VelaturaWarning):
        complain(f"warning: {message}")
        return
    for each in warnings.formatwarning(message, category, file, line).splitlines():
        complain(each)


def shown(text: object) -> str:
    r"""The text on one line, with all that a terminal would act on written out, as \x1b or \u202e.

    Letters and spaces of any language stay.
    """
    return "".join(each if _is_harmless(each) else each.encode("unicode_escape").decode("ascii") for each in str(text))


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs" or letter in JOINERS


def _as_json(letter: str) -> str:
    return json.dumps(letter)[1:-1]


def _encoded(text: str, encoding: str | None) -> str:
    """The text with what a terminal's encoding lacks written out too: old ones of Windows have few letters."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
