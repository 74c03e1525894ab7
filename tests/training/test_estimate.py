"""What is said of a run before it begins is near what it takes, and to measure it changes nothing."""

import itertools

import pytest
import torch

from velatura.training.estimate import Estimate, estimate
from velatura.training.plan import Plan

PLAN = Plan(steps=20, batch_size=2, pixels=32, precision="float32")


def test_measuring_leaves_the_overlay_and_chance_alone(tiny, hyper):
    overlay, before = hyper(dropout=0.2), torch.random.get_rng_state()
    weights = [weight.detach().clone() for weight in overlay.parameters()]
    estimate(tiny, overlay, PLAN)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, overlay.parameters(), weights))
    assert not overlay.training
    assert all(weight.grad is None for weight in overlay.parameters())


def test_more_pictures_take_more_memory_and_more_steps_more_time(tiny, hyper):
    one, four = (estimate(tiny, hyper(), PLAN.replace(batch_size=size, pixels=64)) for size in (1, 4))
    assert four.memory > one.memory > tiny.byte_count
    few, many = (estimate(tiny, hyper(), PLAN.replace(steps=steps)) for steps in (10, 1000))
    assert many.seconds > 10 * few.seconds


def test_the_time_is_that_of_one_measured_step_times_all(tiny, hyper, monkeypatch):
    clock = itertools.count(step=3.0)  # seconds: every look at the clock finds three more gone
    monkeypatch.setattr("velatura.training.estimate.time.perf_counter", lambda: next(clock))
    assert estimate(tiny, hyper(), PLAN).seconds == 3 * 20
    assert estimate(tiny, hyper(), PLAN.replace(accumulation=4)).seconds == 3 * 4 * 20


@pytest.mark.parametrize(
    ("seconds", "said"), [(7, "7 s"), (600, "10 minutes"), (9000, "2.5 hours")], ids=["seconds", "minutes", "hours"]
)
def test_it_is_said_in_fitting_units(seconds, said):
    assert str(Estimate(seconds, 3 * 2**29)) == f"about {said} and 1.5 GiB of memory"
