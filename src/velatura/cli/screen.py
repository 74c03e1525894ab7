"""What is printed, all in one place: texts out of files and their names never reach a terminal raw."""

import json
import sys
import unicodedata
import warnings

from velatura.errors import VelaturaWarning

INVISIBLE_JOINERS = "\u200c\u200d"  # invisible, but letters of some languages and emoji are written with them


def say(*lines: object) -> None:
    """Print each of these on a line of its own."""
    for line in lines:
        print(_escape_unencodable(escape(line), sys.stdout.encoding))


def say_json(text: str) -> None:
    """Print JSON, in which nothing is lost: what a terminal would act on is written as JSON's own escapes."""
    is_ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    is_allowed = str.isascii if is_ascii_only else _is_harmless
    print(
        "".join(
            letter if letter == "\n" or (is_allowed(letter) and _is_harmless(letter)) else _escape_as_json(letter)
            for letter in text
        )
    )


def print_error(text: object) -> None:
    """Print one line on stderr, however many the text has."""
    line = " ".join(part.strip() for part in str(text).splitlines())
    print(_escape_unencodable(escape(line), sys.stderr.encoding), file=sys.stderr)


def show_warning(message: Warning | str, category: type[Warning], file: str, line: int, *_more: object) -> None:
    """Complain of a VelaturaWarning in one plain line; all others come with their place, as Python shows them."""
    if issubclass(category, VelaturaWarning):
        print_error(f"warning: {message}")
        return
    for text in warnings.formatwarning(message, category, file, line).splitlines():
        print_error(text)


def escape(text: object) -> str:
    r"""The text on one line, with all that a terminal would act on written out, as \x1b or \u202e.

    Letters and spaces of any language stay.
    """
    return "".join(
        letter if _is_harmless(letter) else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs" or letter in INVISIBLE_JOINERS


def _escape_as_json(letter: str) -> str:
    return json.dumps(letter)[1:-1]


def _escape_unencodable(text: str, encoding: str | None) -> str:
    """The text with what a terminal's encoding lacks written out too: old ones of Windows have few letters."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
