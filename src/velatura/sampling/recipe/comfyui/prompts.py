"""Translate texts of ComfyUI into prompts of ours: emphasis, embeddings, and syntax that ComfyUI does not have.

In ComfyUI only round brackets and `embedding:` have a meaning. A number in brackets replaces the emphasis outside them:
the word in `((word:1.2))` has 1.2. Everything else is a word there, so it is escaped or replaced here.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from velatura.prompts.emphasis import EmphasisMode
from velatura.sampling.recipe.comfyui.graph import Report, graph_error

BRACKET_EMPHASIS = 1.1
MAX_BRACKETS = 100  # open at once
OPEN, CLOSE = "\0", "\1"  # stand for escaped brackets
WEIGHTS_FILES = re.compile(r"\.(safetensors|sft|ckpt|pth?|bin|gguf)$", re.IGNORECASE)
EMBEDDING_PATTERN = re.compile(r"(?P<before>^|[ \n])embedding:(?P<name>[^\s,]+)")
TAG_PATTERN = re.compile(r"<\w{1,64}:[^<>]+>")
CHOICE_PATTERN = re.compile(r"\{[^{}|]*\|[^{}]*\}")
LORA_TAG_PATTERN = re.compile(r"<lora:(?P<name>[^:<>]+)(?P<strengths>(?::[^:<>]*)*)>", re.IGNORECASE)


class WeightedWords(NamedTuple):
    """Words with the same emphasis."""

    words: str
    emphasis: float


class TranslatedText(NamedTuple):
    """A text as a prompt of ours.

    Attributes:
        prompt: The prompt.
        has_emphasis: True if any of its words have an emphasis.
        emphasis: How emphasis is applied.
    """

    prompt: str
    has_emphasis: bool
    emphasis: EmphasisMode = "ComfyUI"


def translate_text(text: str, report: Report) -> TranslatedText:
    """Translate a text that ComfyUI encodes into a prompt.

    Args:
        text: The text as it stands in the graph.
        report: Takes a remark about everything that cannot be translated.
    """
    if "\0" in text or "\1" in text:
        raise graph_error("its prompt has characters that are not text")
    without_tags = TAG_PATTERN.sub("", text)
    if without_tags != text:
        report.remark(f"{TAG_PATTERN.findall(text)[0]} in its prompt calls nothing in ComfyUI: it is left out")
    if CHOICE_PATTERN.search(text):
        report.remark("its prompt has a choice such as {a|b}, which is read as it stands")
    if "#" in without_tags:
        report.remark("its prompt has the character #, which begins a comment here: it is left out")
    parts = split_emphasis(without_tags.replace("#", "").replace("\\(", OPEN).replace("\\)", CLOSE))
    translated = [_write_part(part, report) for part in parts if part.words]
    prompt = "".join(translated)
    return TranslatedText(prompt, any(part.emphasis != 1 and part.words.strip() for part in parts))


def split_emphasis(text: str, emphasis: float = 1.0, depth: int = 0) -> list[WeightedWords]:
    """Split a text into words of equal emphasis, by round brackets as ComfyUI reads them.

    Args:
        text: The text; escaped brackets are OPEN and CLOSE.
        emphasis: The emphasis outside all brackets.
        depth: How many brackets are open.

    Raises:
        BadRecipe: More than MAX_BRACKETS are open at once.
    """
    if depth > MAX_BRACKETS:
        raise graph_error(f"its prompt has more than {MAX_BRACKETS} brackets inside each other")
    parts: list[WeightedWords] = []
    for item in _split_brackets(text):
        if len(item) < 2 or item[0] != "(" or item[-1] != ")":
            parts.append(WeightedWords(item, emphasis))
            continue
        words, colon, number = item[1:-1].rpartition(":")
        inner_emphasis = _parse_emphasis(number) if colon and words else None
        if inner_emphasis is None:
            words, inner_emphasis = item[1:-1], emphasis * BRACKET_EMPHASIS
        parts += split_emphasis(words, inner_emphasis, depth + 1)
    return parts


def file_stem(name: str) -> str:
    """Return the name of a file of weights without its folders and its suffix.

    Args:
        name: The name in ComfyUI, which separates folders by slashes or backslashes.
    """
    return WEIGHTS_FILES.sub("", re.split(r"[\\/]", name.strip())[-1]).strip()


def _split_brackets(text: str) -> list[str]:
    """Split a text into outermost brackets and what is between them. Only a bracket at depth 0 opens a part."""
    items: list[str] = []
    start, depth = 0, 0
    for position, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and position > start:
                items.append(text[start:position])
                start = position
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                items.append(text[start : position + 1])
                start = position + 1
    return [*items, text[start:]] if start < len(text) else items


def _parse_emphasis(number: str) -> float | None:
    try:
        emphasis = float(number)
    except ValueError:
        return None
    if not math.isfinite(emphasis):
        raise graph_error(f"the emphasis {number.strip()} in its prompt is infinite or NaN: write a finite number")
    return emphasis


def _write_part(part: WeightedWords, report: Report) -> str:
    """Write words of equal emphasis in our syntax."""
    words = EMBEDDING_PATTERN.sub(lambda match: match["before"] + _embedding_name(match["name"], report), part.words)
    words = re.sub(r"([\\()\[\]])", r"\\\1", words).replace(OPEN, "\\(").replace(CLOSE, "\\)")
    words = re.sub(r"\b(AND|BREAK)\b", lambda match: match[0].lower(), words)  # CLIP reads lower case in any case
    words = re.sub(r":(\s*[+-]?[\d.]+\s*)$", r":\\\1", words)  # at the end, a number would be an emphasis or a weight
    return write_emphasis(words, part.emphasis)


def write_emphasis(words: str, emphasis: float) -> str:
    """Write words of equal emphasis with the brackets of our syntax, if they need some.

    Args:
        words: The words, whose own brackets are escaped.
        emphasis: Their emphasis.
    """
    if emphasis == 1 or not words.strip():
        return words
    if math.isclose(emphasis, BRACKET_EMPHASIS):
        return f"({words})"
    return f"({words}:{_format_number(emphasis)})"


def _format_number(number: float) -> str:
    """Format a number without an exponent, which our emphasis does not have."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _embedding_name(name: str, report: Report) -> str:
    stem = file_stem(name.replace(OPEN, "(").replace(CLOSE, ")"))
    report.remark(
        f"its prompts name the embedding {stem!r}: keep it in the library, else its name is read as plain words"
    )
    return stem.replace("(", OPEN).replace(")", CLOSE)
