"""The rate grammar against the webui's own answers (tests/data/lr_schedule.json: v1.8.0, run, 110 schedules)."""

import itertools
import json
import re
from pathlib import Path

import pytest

from velatura.errors import BadPlan, VelaturaWarning
from velatura.training.plan import Plan
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
        ("5e-5:2500, foo, 1e-6", ['"foo" in the rate .* cannot be read, and would stop a longer training']),
        ("5e-5:2500, 5e-6, 1e-6:9", ['"1e-6:9" in the rate .* because "5e-6" has no step count']),
        ("5e-5:-1, 5e-6", ['"5e-6" in the rate .* because "5e-5:-1" has no step count']),
        ("5e-5, 5e-6:1:2", ['"5e-6:1:2" in the rate .* because "5e-5" has no step count, so it lasts to the end']),
        ("1e-4, 1e-5:500", ['"1e-5:500" in the rate .* is never used']),
        ("1e-4, foo, 1e-5", ['"foo, 1e-5" in the rate .* is never used']),
        ("1e-4:0, 1e-5:-2, 1e-6", ['"1e-4:0, 1e-5:-2" in the rate .* gets no step']),
        ("5e-5:100", ["ends the training after 100 of 2,000 steps: end it with a rate without a step count"]),
        (
            "5e-5:1000, 5e-6:500",
            [
                '"5e-6:500" in the rate .* gets a single step, because it ends before step 1000:',
                "after 1001 of 2,000 steps",
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


# Commas that people write in numbers; each text would otherwise be a rate of 5, 0, 1 or 1e-4 for a single step
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("5,0e-5", "5.0e-5"),
        ("0,00005", "0.00005"),
        ("1,5E-4:100, 1e-5", "1.5E-4:100, 1e-5"),
        ("1e-4:100, 0,5e-5", "1e-4:100, 0.5e-5"),
        ("5,0e-5:100,2,5e-6", "5.0e-5:100,2.5e-6"),
        ("1e-4:12,5%, 1e-5", "1e-4:12.5%, 1e-5"),
        ("1e-4:1,000, 1e-5", "1e-4:1000, 1e-5"),
        ("1e-4:1,000,000", "1e-4:1000000"),
    ],
)
def test_a_comma_in_a_number_is_refused_with_what_was_meant(text, meant):
    with pytest.raises(BadPlan, match=re.escape(f'write "{meant}"')):
        LearningRates.parse(text, 2000)
    assert LearningRates.parse(meant, 2000).end > 100  # what is advised can be read


def test_a_step_count_can_be_a_share_of_the_training():
    # By hand: 10 % and 50 % of 40 steps are 4 and 20
    rates = LearningRates.parse("3e-5:10%, 2e-5: 50 %, 1e-5", 40)
    assert list(rates) == [3e-5] * 4 + [2e-5] * 16 + [1e-5] * 20
    assert rates.warnings == ()


@pytest.mark.parametrize("share", ["-5%", "101%", "nan%", "%", "50%%"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BadPlan, match="cannot be read"):
        LearningRates.parse(f"1e-4:{share}, 1e-5", 100)


def test_parts_that_a_resumed_training_has_passed_are_not_warned_of():
    assert LearningRates.parse("5e-5:10, 5e-6:20, 5e-7", 30, start_step=25).warnings == ()


def test_rates_of_parts_are_warned_of_too():
    with pytest.warns(VelaturaWarning, match='"1e-5" in the rate "1e-4, 1e-5" is never used'):
        Plan(steps=4, text_rate="1e-4, 1e-5")
