"""Every optimizer of the table learns, and a run with it can be broken off; what is not installed is said."""

import sys
from importlib.util import find_spec

import pytest
import torch

import velatura
from velatura.errors import BadPlan
from velatura.training.optimizers import OPTIMIZERS, Lion, create_optimizer
from velatura.training.plan import Plan

PLAN = velatura.Plan(
    steps=4, batch_size=2, pixels=16, learning_rate=1e-3, snapshot_every=2, precision="float32", validation_pictures=2
)
INSTALLED = [name for name, choice in OPTIMIZERS.items() if find_spec(choice.module.partition(".")[0])]
RATES = {"prodigy": {"learning_rate": 1.0}}  # which finds its own rate, from far below
WAYS = [
    *({"optimizer": name, **RATES.get(name, {})} for name in INSTALLED),
    {"ema": 0.9},
    {"accumulation": 2, "noise_offset": 0.1},
]


def test_a_plan_names_all_that_there_are_and_no_other():
    assert set(Plan.model_fields["optimizer"].annotation.__args__) == set(OPTIMIZERS)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_that_is_broken_off_ends_the_same_in_every_way_to_learn(tiny, photos, tmp_path, way):
    def learn(out, until=None):
        def stop(step):
            if step.done == until:
                raise KeyboardInterrupt

        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", dropout=0.1, seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, PLAN.replace(**way), out=tmp_path / out, on_step=stop)

    whole = learn("whole")
    for until in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            learn(f"stopped {until}", until)
        resumed = velatura.resume(tiny, tmp_path / f"stopped {until}")
        assert resumed.file.read_bytes() == whole.file.read_bytes()
    assert whole.validation_losses[4] < whole.validation_losses[0]


# By hand: the momentum begins at 0, so the first direction is the gradient's sign, and m = 0.01 g; the second is that
# of 0.9 m + 0.1 g = 0.009 * 4 + 0.1 * -0.3 = 0.006, upward still though the gradient has turned
def test_lion_goes_by_the_sign_of_what_it_remembers_and_sees():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    lion = Lion([weight], lr=0.1, weight_decay=0.5)
    for gradient in (4.0, -0.3):
        weight.grad = torch.tensor([gradient])
        lion.step()
    first = 1 * (1 - 0.1 * 0.5) - 0.1
    assert weight.item() == pytest.approx(first * (1 - 0.1 * 0.5) - 0.1)
    assert lion.state[weight]["exp_avg"].item() == pytest.approx(0.99 * 0.04 + 0.01 * -0.3)


@pytest.mark.parametrize("name", ["prodigy", "adamw8bit", "schedule_free"])
def test_what_is_not_installed_is_said_with_its_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, OPTIMIZERS[name].module.partition(".")[0], None)
    with pytest.raises(BadPlan, match=f"{name} needs the package {OPTIMIZERS[name].package}.*choose adamw, lion"):
        create_optimizer(Plan(optimizer=name), [torch.nn.Parameter(torch.zeros(2))])


def test_several_batches_make_the_gradient_of_one_that_is_as_large(tiny, photos, tmp_path):
    def first_loss(**changes):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3)
        out = tmp_path / str(changes)
        return velatura.train(
            tiny, overlay, photos, PLAN.replace(steps=1, snapshot_every=0, **changes), out=out
        ).losses[0]

    halves = [first_loss(seed=4, batch_size=2), first_loss(seed=4, accumulation=2)]
    assert halves[0] != halves[1]  # the second batch has noise and timesteps of its own
    assert halves[1] == pytest.approx(halves[0], rel=0.8)


def test_the_average_is_what_is_saved(tiny, photos, tmp_path):
    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
    before = [weight.detach().clone() for weight in overlay.parameters()]
    plan = PLAN.replace(steps=1, ema=0.999, snapshot_every=0, learning_rate=1e-3)
    run = velatura.train(tiny, overlay, photos, plan, out=tmp_path / "run")
    plain = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
    velatura.train(tiny, plain, photos, plan.replace(ema=None), out=tmp_path / "plain")
    for old, learned, average in zip(before, plain.parameters(), run.overlay.parameters(), strict=True):
        torch.testing.assert_close(average, old + (learned - old) * (1 - 2 / 11))  # (1 + n) / (10 + n), n = 1
