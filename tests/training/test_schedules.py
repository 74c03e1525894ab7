"""Rates that go up and come down, against diffusers' own (tests/data/training_formulas.json)."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadPlan
from velatura.training.plan import Plan

GOLDEN = Path(__file__).parents[1] / "data" / "training_formulas.json"
CASES = [case for case in json.loads(GOLDEN.read_text())["lr_schedules_diffusers"] if case["name"] != "polynomial"]
NAMES = {"constant_with_warmup": "constant", "cosine_with_restarts": "restarts"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_step_has_the_rate_that_diffusers_gives_it(case):
    options = {"warmup": case["args"].get("num_warmup_steps", 0), "cycles": case["args"].get("num_cycles", 1)}
    schedule = NAMES.get(case["name"], case["name"])
    rates = Plan(steps=case["total"], learning_rate=case["base_lr"], schedule=schedule, **options).step_rates()
    for step, rate in case["lr"]:
        if step < case["total"]:  # theirs say one step more than there is
            assert rates[step] == pytest.approx(rate, rel=1e-9, abs=1e-15)


def test_a_schedule_shapes_the_rates_of_the_grammar():
    rates = Plan(steps=4, learning_rate="2e-3:2, 1e-3", schedule="linear").step_rates()
    assert rates == pytest.approx([2e-3, 1.5e-3, 5e-4, 2.5e-4])


def test_without_a_schedule_rates_are_the_grammars_to_the_bit():
    plan = Plan(steps=9, learning_rate="5e-5:3, 5e-6:5, 5e-7")
    assert plan.step_rates() == list(plan.rates())


def test_a_warm_up_as_long_as_the_training_is_refused():
    with pytest.raises(BadPlan, match="warm-up of 10 steps is as long as the training of 10"):
        Plan(steps=10, warmup=10)
