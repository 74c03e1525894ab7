"""A training of A1111's web UI goes on with its optimizer's state, step for step as torch's own optimizer does."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats.hypernetworks.optim import write_optim
from velatura.tensors import open_tensors, write_torch
from velatura.training.kinds.a1111_start import load_a1111_state
from velatura.training.optimizers import create_overlay_optimizer
from velatura.training.precision import make_trainable

GOLDEN = Path(__file__).parents[2] / "data" / "optim"
PLAN = velatura.Plan(steps=2, batch_size=1, pixels=16, learning_rate="1e-3", precision="float32", snapshot_every=0)


def open_start(path, **fields):
    overlay = make_trainable(velatura.open_overlay(path))
    return overlay, create_overlay_optimizer(PLAN.replace(**fields) if fields else PLAN, overlay)


def test_moments_and_steps_of_a1111s_own_file_come_to_their_weights():
    overlay, optimizer = open_start(GOLDEN / "resumable.pt")
    assert load_a1111_state(overlay, optimizer)
    stored = torch.load(GOLDEN / "resumable.pt.optim", weights_only=True)["optimizer_state_dict"]
    for index, weight in enumerate(overlay.parameters()):
        state = optimizer.state[weight]
        assert torch.equal(state["exp_avg"], stored["state"][index]["exp_avg"])
        assert torch.equal(state["exp_avg_sq"], stored["state"][index]["exp_avg_sq"])
        assert float(state["step"]) == float(stored["state"][index]["step"]) > 0
    assert optimizer.param_groups[0]["weight_decay"] == PLAN.weight_decay


@pytest.fixture
def started(tmp_path):
    """Return a hypernetwork that torch's AdamW has trained for 3 steps, its optimizer, and its file as A1111's."""
    base = velatura.tiny()
    overlay = velatura.Hypernetwork.for_base(base, layers=(1, 1.5, 1), layer_norm=True, seed=3, name="old")
    optimizer = torch.optim.AdamW(overlay.parameters(), lr=1e-2)
    for _ in range(3):
        take_step(overlay, optimizer)
    overlay.card = overlay.card.replace(steps=3)
    velatura.save(overlay, tmp_path / "old.pt")
    write_optim(tmp_path / "old.pt", "AdamW", optimizer.state_dict())
    return overlay, optimizer, tmp_path / "old.pt"


def take_step(overlay, optimizer):
    optimizer.zero_grad()
    sum((parameter - 0.3).square().sum() for parameter in overlay.parameters()).backward()
    optimizer.step()


def test_the_next_step_is_that_of_the_first_optimizer(started):
    overlay, optimizer, path = started
    again, new_optimizer = open_start(path)
    assert load_a1111_state(again, new_optimizer)
    for group in (*optimizer.param_groups, *new_optimizer.param_groups):
        group.update(lr=1e-3, weight_decay=0.01)
    take_step(overlay, optimizer)
    take_step(again, new_optimizer)
    for first, second in zip(overlay.parameters(), again.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-7)


def test_a_training_goes_on_and_counts_on(started, tiny, photos, tmp_path):
    _, _, path = started
    run = velatura.train(tiny, velatura.open_overlay(path), photos, PLAN.replace(a1111=True), out=tmp_path / "run")
    assert run.overlay.card.steps == 5
    state = open_tensors(next((tmp_path / "run").glob("*.pt.optim"))).payload["optimizer_state_dict"]["state"]
    assert {float(moments["step"]) for moments in state.values()} == {5.0}


def test_without_the_file_of_the_weights_training_starts_with_a_new_optimizer(started):
    _, _, path = started
    overlay, optimizer = open_start(path)
    with torch.no_grad():
        next(overlay.parameters()).add_(1)  # trained since it was opened
    with pytest.warns(VelaturaWarning, match=r"old\.pt\.optim belongs to the weights in old\.pt, .* a new optimizer"):
        assert not load_a1111_state(overlay, optimizer)
    path.with_name("old.pt.optim").unlink()
    assert not load_a1111_state(*open_start(path))
    assert not optimizer.state


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Adafactor", r"is of the optimizer Adafactor, and this training uses AdamW; choose the optimizer adafactor"),
        ("SGD", r"is of the optimizer SGD, .* which velatura does not train with"),
    ],
)
def test_another_optimizer_is_said(started, name, message):
    overlay, _, path = started
    other = getattr(torch.optim, name)(overlay.parameters(), lr=1e-3)
    take_step(overlay, other)
    velatura.save(overlay, path)
    write_optim(path, name, other.state_dict())
    with pytest.warns(VelaturaWarning, match=message):
        assert not load_a1111_state(*open_start(path))


def test_adafactor_goes_on_where_it_is_planned(started):
    overlay, _, path = started
    other = torch.optim.Adafactor(overlay.parameters(), lr=1e-3)
    take_step(overlay, other)
    velatura.save(overlay, path)
    write_optim(path, "Adafactor", other.state_dict())
    again, optimizer = open_start(path, optimizer="adafactor")
    assert load_a1111_state(again, optimizer)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_other_weights_and_empty_states_are_said(started):
    overlay, _, path = started
    write_optim(path, "AdamW", torch.optim.AdamW(overlay.parameters()).state_dict())
    with pytest.warns(VelaturaWarning, match="has no moments: training starts with a new optimizer"):
        assert not load_a1111_state(*open_start(path))
    shutil.copy(GOLDEN / "resumable.pt.optim", path.with_name("old.pt.optim"))
    with pytest.warns(VelaturaWarning, match="belongs to other weights"):
        assert not load_a1111_state(*open_start(path))


def test_what_opening_warns_of_is_not_said_again(started):
    _, optimizer, path = started
    payload = open_tensors(path).payload
    write_torch(path, payload | {"foo_unknown": 1})
    write_optim(path, "AdamW", optimizer.state_dict())
    with pytest.warns(VelaturaWarning, match="foo_unknown"):
        overlay, new_optimizer = open_start(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_a1111_state(overlay, new_optimizer)


def test_a_damaged_state_is_refused_before_training(started, tiny, photos, tmp_path):
    _, _, path = started
    payload = open_tensors(path.with_name("old.pt.optim")).payload
    del payload["optimizer_state_dict"]["state"][0]["exp_avg_sq"]
    write_torch(path.with_name("old.pt.optim"), payload)
    with pytest.raises(BadFile, match="no exp_avg_sq of parameter 0"):
        velatura.train(tiny, velatura.open_overlay(path), photos, PLAN, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
