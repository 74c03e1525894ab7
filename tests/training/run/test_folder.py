"""The run folder: named by the overlay, never over another one, whole files only."""

import json
from contextlib import ExitStack

import pytest
import torch
from safetensors import safe_open

import velatura
from velatura.errors import AlreadyExists, BadFile
from velatura.tensors import open_tensors, write_safetensors
from velatura.training.plan import Plan
from velatura.training.run.folder import RunFolder
from velatura.training.run.snapshots import Progress, Snapshot, optimizer_state


@pytest.fixture
def create():
    """Make run folders without a first snapshot, and release their logs at the end."""
    with ExitStack() as logs:

        def make(path, name="inca", plan=None, header=None):
            with RunFolder.create(path, name, plan or Plan(), header or {}, {"a.png": "0"}) as hidden:
                pass
            run = hidden.moved_to(path)
            logs.callback(run.log.close)
            return run

        yield make


def test_a_new_run_has_its_plan_and_a_header(create, tmp_path):
    plan = Plan(steps=3)
    create(tmp_path / "deep" / "run", plan=plan, header={"base": "tiny"})
    assert Plan.model_validate_json((tmp_path / "deep" / "run" / "plan.json").read_text()) == plan
    assert json.loads((tmp_path / "deep" / "run" / "log.jsonl").read_text()) == {"base": "tiny", "files": "inca"}


def test_a_run_never_uses_a_folder_that_holds_something(create, tmp_path):
    (tmp_path / "run").mkdir()
    create(tmp_path / "run")
    before = (tmp_path / "run" / "plan.json").read_bytes()
    with pytest.raises(AlreadyExists, match="name another folder"):
        create(tmp_path / "run", plan=Plan(steps=5))
    assert (tmp_path / "run" / "plan.json").read_bytes() == before
    with pytest.raises(AlreadyExists, match="name another folder"):
        create(tmp_path / "run" / "plan.json")


@pytest.mark.parametrize(
    ("name", "file"),
    [("inca", "inca"), ("in/../ca", "in..ca"), ("../..", "overlay"), ("", "overlay"), ("Été 2-b.v1", "Été 2-b.v1")],
)
def test_files_are_named_after_the_overlay_and_stay_in_the_folder(create, tmp_path, name, file):
    run = create(tmp_path / "run", name)
    assert run.overlay == tmp_path / "run" / f"{file}.safetensors"


def test_a_snapshot_is_an_overlay_with_its_optimizers_state_beside_it(create, tmp_path, hyper):
    overlay = hyper()
    optimizer = torch.optim.AdamW(overlay.parameters())
    sum(weight.sum() for weight in overlay.parameters()).backward()
    optimizer.step()
    snapshot = create(tmp_path / "run").snapshot(12)
    snapshot.write(overlay, optimizer, Progress(step=12, log_size=7))
    assert snapshot.path.name == "inca-000012.safetensors"
    assert all(map(torch.equal, velatura.open_overlay(snapshot.path).parameters(), overlay.parameters()))
    with safe_open(snapshot.state_path, framework="pt") as state:
        assert state.metadata()["step"] == "12"
        state_tensors = {key: state.get_tensor(key) for key in state.keys()}  # noqa: SIM118
    for index, weight in enumerate(overlay.parameters()):
        assert torch.equal(state_tensors[f"{index}.exp_avg"], optimizer.state[weight]["exp_avg"])
    assert state_tensors.keys() == optimizer_state(optimizer).keys()
    assert snapshot.progress().log_size == 7


def test_restoring_a_snapshot_restores_weights_and_optimizer(tmp_path, hyper):
    def train(steps):
        overlay = hyper()
        optimizer = torch.optim.AdamW(overlay.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(weight.square().sum() for weight in overlay.parameters()).backward()
            optimizer.step()
        return overlay, optimizer

    (overlay, optimizer), (other, others) = train(3), train(1)
    snapshot = Snapshot(tmp_path / "inca-000003.safetensors")
    snapshot.write(overlay, optimizer, Progress(step=3, log_size=0))
    snapshot.restore(other, others)
    assert all(map(torch.equal, other.parameters(), overlay.parameters()))
    one, two = optimizer_state(optimizer), optimizer_state(others)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert others.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("name", ["0.exp_avg", "0.exp_avg_sq", "0.step", "99.exp_avg", "none.exp_avg"])
def test_a_state_that_fits_no_weight_is_refused_before_a_fused_step_writes_beyond_its_end(tmp_path, hyper, name):
    overlay = hyper()
    optimizer = torch.optim.AdamW(overlay.parameters(), fused=True)
    sum(weight.sum() for weight in overlay.parameters()).backward()
    optimizer.step()
    snapshot = Snapshot(tmp_path / "inca-000003.safetensors")
    snapshot.write(overlay, optimizer, Progress(step=3, log_size=0))
    stored = open_tensors(snapshot.state_path)
    tensors = {key: stored.tensors[key].clone() for key in stored.tensors} | {name: torch.zeros(3)}
    metadata = dict(stored.metadata)
    snapshot.state_path.unlink()
    write_safetensors(snapshot.state_path, tensors, metadata)
    with pytest.raises(BadFile, match=rf"not a state of this run, {name} fits no weight"):
        snapshot.restore(overlay, optimizer)
