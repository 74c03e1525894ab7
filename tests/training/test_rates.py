"""The rate grammar against the webui's own answers (tests/data/lr_schedule.json: v1.8.0, run, 110 schedules)."""

import itertools
import json
import re
from pathlib import Path

import pytest

from velatura.errors import BadPlan
from velatura.training.rates import LearningRates

GOLDEN = Path(__file__).parents[1] / "data" / "lr_schedule.json"
CASES = [case for case in json.loads(GOLDEN.read_text())["cases"] if isinstance(case["schedule"], str)]
READABLE = [case for case in CASES if "error" not in case]
REFUSED = [case for case in CASES if "error" in case]


def name(case):
    return f"{case['schedule']}|{case['start_step']}-{case['max_steps']}"


def read(case):
    return LearningRates.parse(case["schedule"], case["max_steps"], start_step=case["start_step"])


def expected_rates(case):
    """The webui's rate of every step, less the one step it runs past the last (its bug, not copied)."""
    last = case["max_steps"]
    return [float(rate) for rate, first, end in case["lr_segments"] for _ in range(first, min(end, last))]


@pytest.mark.parametrize("case", READABLE, ids=name)
def test_every_step_has_the_rate_that_the_webui_gives_it(case):
    assert list(read(case)) == pytest.approx(expected_rates(case), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("case", READABLE, ids=name)
def test_segments_follow_each_other_and_end_by_the_last_step(case):
    rates = read(case)
    assert rates.end <= case["max_steps"]
    assert all(earlier.end == later.start for earlier, later in itertools.pairwise(rates.segments))


@pytest.mark.parametrize("case", REFUSED, ids=name)
def test_what_the_webui_refuses_is_refused_with_an_example(case):
    with pytest.raises(BadPlan, match="5e-5:100, 5e-6"):
        read(case)


def test_nothing_runs_past_the_last_step():
    assert LearningRates.parse("0.1:10, 0.2", 10).end == 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-5", []),
        ("5e-5:100, 5e-6", []),
        ("5e-5:-1", []),
        ("5e-5:100, 5e-6:2000", []),
        ("5e-5:100, 5e-6:2500, 1", []),
        ("5e-5:2000, 5e-6", []),
        ("5e-5:2000, 5e-6:500", []),
        ("5e-5, 5e-6:1:2", []),
        ("5e-5:100", ["ends the training after 100 of 2000 steps: end it with a rate without a step count"]),
        (
            "5e-5:1000, 5e-6:500",
            [
                '"5e-6:500" in the rate .* gets a single step, because it ends before step 1000:',
                "after 1001 of 2000 steps",
            ],
        ),
        ("5e-5:1000, 5e-6:500, 5e-7", ['"5e-6:500" in the rate .* gets a single step']),
        ("5e-5:100:200", ['"5e-5:100:200" in the rate .* lasts to the end of the training: write one']),
    ],
)
def test_probable_mistakes_are_warned_of(text, expected):
    found = LearningRates.parse(text, 2000).warnings
    assert len(found) == len(expected)
    assert all(re.search(pattern, message) for pattern, message in zip(expected, found, strict=True))


def test_text_after_the_part_that_reaches_the_end_is_not_read():
    assert list(LearningRates.parse("0.1, what ever:x", 3)) == [0.1, 0.1, 0.1]
