"""The webui's own answers (tests/data/a1111/schedule*.json) are what prompt editing is held to."""

import json
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadPrompt
from velatura.prompts.prompt_editing import EditedText, Timing

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["cases"]


def laid_out(case):
    timing = Timing(case["steps"], case["hires_steps"], case["old_scheduling"])
    return [list(entry) for entry in EditedText(case["prompt"]).schedule(timing)]


@pytest.mark.parametrize(
    "case",
    golden("schedule"),
    ids=lambda case: f"{case['prompt']} {case['steps']} {case['hires_steps']} {case['old_scheduling']}",
)
def test_words_change_when_they_do_in_the_webui(case):
    assert laid_out(case) == case["schedule"]


@pytest.mark.parametrize("case", golden("schedule_unstable"), ids=lambda case: case["prompt"])
def test_where_the_webui_answers_by_chance_ours_is_one_of_its_answers(case):
    assert laid_out(case) in case["answers_seen"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[cat:dog:0,5]", "'0,5' is not a number of steps"),
        ("[cat:dog:half]", "'half' is not a number of steps"),
        ("a | b, [cat:dog:3]", r"write \| for a bar"),
        ("[(red|blue):green:3]", "turns all prompt editing into plain words"),
        ("[a:b|c:3]", "turns all prompt editing into plain words"),
    ],
)
def test_malformed_editing_gives_an_issue(text, reason):
    edited_text = EditedText(text)
    assert edited_text.schedule(Timing(5)) == [(5, text)]
    [issue] = edited_text.issues
    assert reason in issue.reason


def test_an_issue_has_a_position():
    [reason] = EditedText("a lighthouse, a | b, [cat:dog:3]").issues
    assert reason.position == len("a lighthouse, a ")
    [reason] = EditedText("a [cat:dog:half]").issues
    assert reason.position == len("a ")


@pytest.mark.parametrize(
    "text", ["a [cat]", "score: [5:]", "[a note: red]", r"\[a\|b\]", "(a:1.5)", "a | b", "x (a|b) [c]"]
)
def test_plain_words_give_no_issue(text):
    edited_text = EditedText(text)
    assert edited_text.is_constant
    assert edited_text.issues == []


def test_positions_inside_edits_are_known():
    edited_text = EditedText("a [b:c:3] [d] [e|f]")
    assert [i for i in range(20) if edited_text.changes_at(i)] == [*range(3, 9), *range(15, 19)]


def test_huge_numbers_are_the_last_step():
    assert EditedText(f"[a:b:{'9' * 400}]").schedule(Timing(5)) == [(5, "a")]
    assert EditedText(f"[a:b:-{'9' * 400}.0]").schedule(Timing(5)) == [(5, "b")]


@given(st.text("ab[]():|\\.1 2\n", max_size=60), st.integers(1, 12))
def test_any_text_is_scheduled_over_all_steps(text, steps):
    rows = EditedText(text).schedule(Timing(steps))
    ends = [end for end, _ in rows]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps
    assert all(words == text or len(words) < len(text) for _, words in rows)


HOSTILE = {
    "open": "[",
    "open rounds": "(a",
    "closed in the wrong order": "[)",
    "unfinished edits": "[a:b",
    "edits": "[a:b:3]",
    "escapes": "\\",
    "bars": "[a|",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_no_text_takes_time_by_its_length_squared(piece):
    text = piece * (100_000 // len(piece)) + "]:"
    start = process_time()
    EditedText(text).schedule(Timing(20))
    assert process_time() - start < 5  # about half a second on a busy machine; squared it would be a minute and more


def test_a_hundred_edits_may_be_inside_each_other_and_more_are_refused():
    assert EditedText("[a:" * 100 + "b" + ":3]" * 100).schedule(Timing(4)) == [(3, "a"), (4, "b")]
    assert EditedText("[[a:b:3]|c]" + "[" * 500 + "]" * 500).schedule(Timing(1))[-1][0] == 1
    for depth in (101, 2000):
        for text in ("[a:" * depth + "b" + ":3]" * depth, "[" * depth + "b" + "|a]" * depth):
            with pytest.raises(BadPrompt, match=r"more than 100 edits are inside each other here; .* at the \^ in"):
                EditedText(text)
