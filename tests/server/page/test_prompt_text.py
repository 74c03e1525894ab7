"""Changes of a prompt's text that keys, cards and sliders make."""

from __future__ import annotations

import pytest

RUN = """async ([name, values]) => (await import("/page/paint/prompt_text.js"))[name](...values)"""
LORA = {"kind": "lora", "name": "ink"}
WORD = {"kind": "embedding", "name": "my-style"}


def edit(text: str) -> dict[str, object]:
    """A text in which | is the cursor, or two of them are around the selection."""
    first, *others = text.split("|")
    return {"text": "".join([first, *others]), "start": len(first), "end": len(first) + len("".join(others[:-1]))}


CASES = [
    # weights, as A1111's keys change them: by 0.1, in brackets that go away at 1
    ("changeWeight", [edit("a red| cat"), 1], edit("a (|red|:1.1) cat")),
    ("changeWeight", [edit("a |red cat|"), -1], edit("a (|red cat|:0.9)")),
    ("changeWeight", [edit("a (|red|:1.1) cat"), 1], edit("a (|red|:1.2) cat")),
    ("changeWeight", [edit("a (r|ed:1.2) cat"), -1], edit("a (|red|:1.1) cat")),
    ("changeWeight", [edit("a (|red|:1.1) cat"), -1], edit("a |red| cat")),
    ("changeWeight", [edit("a cat | "), 1], edit("a cat | ")),
    ("changeWeight", [edit("a <lora:in|k:0.8>"), 1], edit("a |<lora:ink:0.85>|")),
    ("changeWeight", [edit("a <hypernet:in|k>"), -1], edit("a |<hypernet:ink:0.95>|")),
    # cards
    ("addCall", ["", LORA, 0.8], "<lora:ink:0.8>"),
    ("addCall", ["a cat ", LORA, 1], "a cat <lora:ink:1>"),
    ("addCall", ["a cat # note", LORA, 1], "a cat # note\n<lora:ink:1>"),
    ("addCall", ["a cat", LORA, 1, "inked lines"], "a cat <lora:ink:1>, inked lines"),
    ("addCall", ["Inked lines, a cat", LORA, 1, "inked lines"], "Inked lines, a cat <lora:ink:1>"),
    ("addCall", ["a cat", WORD, 1], "a cat, my-style"),
    ("addCall", ["a cat", WORD, 0.5], "a cat, (my-style:0.5)"),
    ("removeCall", ["a cat <lora:ink:1>, inked lines", LORA, "inked lines"], "a cat"),
    ("removeCall", ["<lora:INK:1> a <lora:ink:0.5:0.2> cat", LORA], "a cat"),
    ("removeCall", ["a cat, (my-style:0.5), a dog", WORD], "a cat, a dog"),
    ("removeCall", ["a my-styles cat", WORD], "a my-styles cat"),
    # sliders
    ("setStrength", ["a <lora:ink:1> b", LORA, 0.35], "a <lora:ink:0.35> b"),
    ("setStrength", ["<lora:ink>", LORA, 0.5], "<lora:ink:0.5>"),
    ("setStrength", ["<lyco:Ink:1:0.5:on=negative>", LORA, 0], "<lyco:Ink:0:0.5:on=negative>"),
    ("setStrength", ["a my-style cat", WORD, 1.5], "a (my-style:1.5) cat"),
    ("setStrength", ["a (my-style:1.5) cat", WORD, 1], "a my-style cat"),
    ("setStrength", ["a cat", LORA, 1], "a cat"),
]


@pytest.mark.parametrize(("function", "values", "expected"), CASES)
def test_a_prompt_is_changed(blank, function, values, expected):
    assert blank.evaluate(RUN, [function, values]) == expected


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("a cat", []),
        ("<lora:ink:0.8> <hypernet:inca>", [0.8, 1]),
        ("<lora:ink:[0:1:0.5]>", [None]),  # a schedule has no single strength
        ("<lora::1> <lora> <not a tag", []),
    ],
)
def test_tags_are_found_with_their_strengths(blank, text, strengths):
    assert [tag["strength"] for tag in blank.evaluate(RUN, ["findTags", [text]])] == strengths
