"""The run folder: named by the overlay, never over another one, whole files only."""

import json

import pytest
import torch
from safetensors import safe_open

import velatura
from velatura.errors import Occupied
from velatura.training.plan import Plan
from velatura.training.run import RunFolder, optimizer_state


def test_a_run_begins_with_its_plan_and_what_it_began_with(tmp_path):
    plan = Plan(steps=3)
    RunFolder.create(tmp_path / "deep" / "run", "inca", plan, {"base": "tiny"})
    assert Plan.model_validate_json((tmp_path / "deep" / "run" / "plan.json").read_text()) == plan
    assert json.loads((tmp_path / "deep" / "run" / "log.jsonl").read_text()) == {"base": "tiny"}


def test_a_run_never_goes_into_a_folder_that_holds_something(tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder.create(tmp_path / "run", "inca", Plan(), {})
    before = (tmp_path / "run" / "plan.json").read_bytes()
    with pytest.raises(Occupied, match="name another folder"):
        RunFolder.create(tmp_path / "run", "inca", Plan(steps=5), {})
    assert (tmp_path / "run" / "plan.json").read_bytes() == before
    with pytest.raises(Occupied, match="name another folder"):
        RunFolder.create(tmp_path / "run" / "plan.json", "inca", Plan(), {})


@pytest.mark.parametrize(
    ("name", "file"),
    [("inca", "inca"), ("in/../ca", "in..ca"), ("../..", "overlay"), ("", "overlay"), ("Été 2-b.v1", "Été 2-b.v1")],
)
def test_files_are_called_by_the_overlays_name_and_stay_in_the_folder(tmp_path, name, file):
    run = RunFolder.create(tmp_path / "run", name, Plan(), {})
    assert run.overlay == tmp_path / "run" / f"{file}.safetensors"


def test_a_snapshot_is_an_overlay_with_its_optimizers_state_beside_it(tmp_path, hyper):
    overlay = hyper()
    optimizer = torch.optim.AdamW(overlay.parameters())
    sum(weight.sum() for weight in overlay.parameters()).backward()
    optimizer.step()
    path = RunFolder.create(tmp_path / "run", "inca", Plan(), {}).snapshot(overlay, optimizer, 12)
    assert path.name == "inca-000012.safetensors"
    assert all(map(torch.equal, velatura.open_overlay(path).parameters(), overlay.parameters()))
    with safe_open(path.with_suffix(".state"), framework="pt") as state:
        assert state.metadata() == {"step": "12"}
        kept = {key: state.get_tensor(key) for key in state.keys()}  # noqa: SIM118
    for index, weight in enumerate(overlay.parameters()):
        assert torch.equal(kept[f"{index}.exp_avg"], optimizer.state[weight]["exp_avg"])
    assert kept.keys() == optimizer_state(optimizer).keys()
