"""What a run leaves beside its overlay: a plot, and on request what other programs read."""

import csv
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import velatura
from velatura.errors import BadPlan
from velatura.formats.hypernetworks.optim import read_optim
from velatura.training.run.plot import HIGH_NOISE_COLOR, MEAN_COLOR, VALIDATION_COLOR, loss_plot
from velatura.training.run.report import Run

PLAN = velatura.Plan(steps=4, batch_size=2, pixels=16, learning_rate="1e-3:2, 5e-4", precision="float32")


@pytest.fixture
def learn(tiny, photos, tmp_path):
    def run(out="run", overlay=None, **changes):
        overlay = overlay or velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, PLAN.replace(**changes), out=tmp_path / out)

    return run


def test_the_losses_are_drawn(learn):
    with Image.open(learn().folder / "loss.png") as image:
        assert image.size == (960, 480)


def test_a_plot_falls_where_the_losses_do():
    falling = {0: 1.0, 50: 0.5, 100: 0.01}
    image = loss_plot([1 - step / 100 for step in range(100)], falling, falling)
    drawn = (MEAN_COLOR, VALIDATION_COLOR, HIGH_NOISE_COLOR)
    for color in (tuple(int(color[at : at + 2], 16) for at in (1, 3, 5)) for color in drawn):
        places = [(x, y) for x in range(73, 960) for y in range(44, 480) if image.getpixel((x, y)) == color]
        left = [y for x, y in places if x < 120]
        right = [y for x, y in places if x > 900]
        assert max(left) < min(right)


def test_a_run_keeps_the_order_of_its_first_fields():
    names = [field.name for field in fields(Run)]
    assert names == ["overlay", "file", "losses", "folder", "validation_losses", "best", "verdict", "high_noise_losses"]
    assert Run("overlay", Path("x"), [1.0], Path("y"), {1: 0.5}, Path("z")).verdict is None


def test_one_step_can_be_drawn_too():
    assert loss_plot([0.5], {}, {}).size == (960, 480)


@pytest.mark.parametrize(("optimizer", "name"), [("adamw", "AdamW"), ("adafactor", "Adafactor")])
def test_a1111_finds_the_optimizers_state_beside_the_overlay(learn, optimizer, name):
    run = learn(a1111=True, optimizer=optimizer)
    state = read_optim(run.folder / "inca.pt")
    assert state.name == name
    assert state.state["state"][0]["step"] == 4
    saved = velatura.open_overlay(run.folder / "inca.pt")
    assert saved.card.steps == 4
    assert all((a == b).all() for a, b in zip(saved.parameters(), run.overlay.parameters(), strict=True))


# hypernetwork.py of the web UI: epoch = (step - 1) // steps per epoch, 3 pictures in batches of 2 make 1 step an epoch
def test_a1111s_table_has_a_row_for_every_step(learn, tiny):
    trained_before = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
    trained_before.card = trained_before.card.replace(steps=10)
    run = learn(overlay=trained_before, a1111=True)
    rows = list(csv.DictReader((run.folder / "hypernetwork_loss.csv").read_text().splitlines()))
    assert list(rows[0]) == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    assert [(row["step"], row["epoch"], row["epoch_step"]) for row in rows] == [
        (str(step), str(step - 1), "0") for step in (11, 12, 13, 14)
    ]
    assert [float(row["loss"]) for row in rows] == pytest.approx(run.losses, abs=1e-7)
    assert [float(row["learn_rate"]) for row in rows] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_an_optimizer_unknown_to_a1111_is_refused_before_the_run(learn, tmp_path):
    with pytest.raises(BadPlan, match="does not know the optimizer Lion: choose adamw"):
        learn(a1111=True, optimizer="lion")
    assert not (tmp_path / "run").exists()


def test_a_missing_tensorboard_is_reported_before_the_run(learn, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadPlan, match="pip install tensorboard"):
        learn(tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_what_the_log_has(learn, monkeypatch):
    drawn = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            drawn.append(("began", folder, purge_step))

        def add_scalar(self, name, value, step):
            drawn.append((name, value, step))

        def close(self):
            drawn.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    run = learn(tensorboard=True, snapshot_every=2)
    logged = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert drawn[0] == ("began", str(run.folder / "tensorboard"), 1)
    assert [event[1] for event in drawn if event[0] == "loss"] == [
        record["loss"] for record in logged if "loss" in record
    ]
    assert [event[2] for event in drawn if event[0] == "validation"] == [2, 4]
    assert drawn[-1] == "closed"
