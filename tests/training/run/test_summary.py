"""A run folder is read without its lock, whatever state it is in and whatever is in its log."""

import json

import pytest

from velatura.errors import BadFile
from velatura.training.plan import Plan
from velatura.training.run.summary import Rescue, find_runs, is_run_folder, read_high_noise_errors, read_run

HEADER = {"files": "inca", "base": "sd15", "overlay": {"kind": "hypernet"}, "folder": "/photos", "pictures": 12}


@pytest.fixture
def write(tmp_path):
    """Write a run folder with these records behind its header."""

    def make(*records, header=HEADER, plan='{"steps": 200, "learning_rate": "1e-3"}', out="run"):
        folder = tmp_path / out
        folder.mkdir(parents=True)
        lines = [header, *records]
        (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (folder / "plan.json").write_text(plan)
        return folder

    return make


def test_losses_of_steps_that_a_rescue_undid_do_not_count(write):
    steps = [{"step": step, "loss": 1 - step / 100, "rate": 1e-3, "seconds": step} for step in range(1, 61)]
    undone = {"back_to": 50, "from": 60, "because": "the validation loss rose", "factor": 0.2}
    summary = read_run(write({"validated": 0, "validation": 0.5}, *steps, {"validated": 60, "validation": 0.9}, undone))
    assert (summary.state, summary.steps, summary.planned_steps, summary.seconds) == ("interrupted", 50, 200, 60)
    # By hand: the means of 0.99, ..., 0.80 and of 0.69, ..., 0.50
    assert (summary.first_loss, summary.last_loss) == (pytest.approx(0.895), pytest.approx(0.595))
    assert summary.validation == {0: 0.5}
    assert summary.rescues == (Rescue(back_to=50, step=60, because="the validation loss rose", rate=1e-3 * 0.2),)
    assert (summary.overlay_kind, summary.base, summary.picture_count) == ("hypernet", "sd15", 12)


def test_the_best_step_is_that_of_the_lowest_validation_loss(write):
    folder = write(*({"validated": step, "validation": loss} for step, loss in ((0, 0.5), (10, 0.3), (20, 0.4))))
    assert read_run(folder).best_step is None
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "inca-best.safetensors").touch()
    summary = read_run(folder)
    assert (summary.best_step, summary.best_loss, summary.best.name) == (10, 0.3, "inca-best.safetensors")


def test_losses_at_high_noise_are_read_where_the_log_has_them(write):
    losses = ((0, 0.5, 0.09), (10, 0.3, 0.07))
    folder = write(*({"validated": step, "validation": loss, "high_noise": high} for step, loss, high in losses))
    assert read_run(folder).high_noise == {0: 0.09, 10: 0.07}
    assert read_run(write({"validated": 0, "validation": 0.5}, out="plain")).high_noise == {}


def test_errors_at_high_noise_are_read_without_those_that_a_rescue_undid(write):
    def validated(step, *errors):
        return {"validated": step, "validation": 0.5, "high_noise_errors": errors}

    undone = {"back_to": 10, "from": 20, "because": "the validation loss rose", "factor": 0.2}
    folder = write(validated(0, 0.4, 0.2), validated(10, 0.3, 0.1), validated(20, 0.9, 0.9), undone)
    assert read_high_noise_errors(folder) == {0: (0.4, 0.2), 10: (0.3, 0.1)}
    assert read_high_noise_errors(write({"validated": 0, "validation": 0.5}, out="plain")) == {}


def test_snapshots_count_only_with_their_state(write):
    folder = write()
    (folder / "snapshots").mkdir()
    for name in ("inca-000010.safetensors", "inca-000010.state", "inca-000020.safetensors", "maya-000030.safetensors"):
        (folder / "snapshots" / name).touch()
    summary = read_run(folder)
    assert [snapshot.step for snapshot in summary.snapshots] == [10]
    assert summary.next == {"continue": f"velatura resume {folder}"}
    assert read_run(write(out="bare")).next == {}  # without a snapshot it cannot be resumed


def test_a_finished_run_is_followed_by_pictures_and_other_programs(write):
    folder = write(plan=Plan(preview_every=5, preview_prompt="a lake\na hill").model_dump_json())
    (folder / "inca.safetensors").touch()
    summary = read_run(folder)
    assert (summary.state, summary.overlay) == ("finished", folder / "inca.safetensors")
    assert "a lake <hypernet:inca:{strength}>" in summary.next["compare strengths"]
    assert "--base sd15" in summary.next["compare strengths"]
    (folder / "strengths.png").touch()
    (folder / "inca.pt").touch()
    assert read_run(folder).next == {}


@pytest.mark.parametrize(
    "record",
    [
        {"loss": "high"},
        {"loss": None},
        {"back_to": "x"},
        {"back_to": -5, "from": 3},
        {"validated": 1, "validation": float("nan")},
        {"validated": [], "validation": 0.1},
        {"seconds": True},
        {"back_to": 1, "from": 2, "because": ["x"], "factor": "y"},
    ],
)
def test_records_that_no_training_writes_are_passed_over(write, record):
    summary = read_run(write({"loss": 0.5}, record, {"loss": 0.25}))
    assert summary.validation == {}
    assert summary.last_loss == pytest.approx(0.25 if summary.steps == 1 else 0.375)
    assert json.loads(summary.model_dump_json())["name"] == "inca"


@pytest.mark.parametrize("plan", ["{", "[]", '{"steps": -1}', '{"unknown": 1}', "\0"])
def test_a_plan_that_cannot_be_read_leaves_the_rest(write, plan):
    summary = read_run(write({"loss": 0.5}, plan=plan))
    assert (summary.planned_steps, summary.learning_rate, summary.steps) == (None, None, 1)


@pytest.mark.parametrize("name", ["", "../inca", "a/b", None])
def test_a_header_that_leads_out_of_the_folder_is_refused(write, name):
    with pytest.raises(BadFile, match="no valid header"):
        read_run(write(header=HEADER | {"files": name}))


def test_runs_are_found_at_any_depth_and_not_inside_each_other(write, tmp_path):
    for out in ("runs/inca", "runs/deep/maya", "runs/inca/snapshots/inner", ".hidden/run", "venv/run"):
        write(out=out)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "log.jsonl").touch()  # of another program
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == ["runs/deep/maya", "runs/inca"]
    assert find_runs(tmp_path / "runs" / "inca") == [tmp_path / "runs" / "inca"]
    assert not is_run_folder(tmp_path / "logs")
    with pytest.raises(BadFile, match="is not a run folder"):
        read_run(tmp_path / "logs")
