"""Run folders on the command line: listed, shown, continued, and searched for snapshots."""

import json
import shutil
from dataclasses import replace

import pytest
from filelock import FileLock
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.training.run.stored_verdict import read_verdict, write_verdict

PLAN = velatura.Plan(
    steps=4, batch_size=1, pixels=16, learning_rate="1e-3", precision="float32", validation_pictures=2, snapshot_every=2
)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Two runs of one hypernetwork, one finished and one stopped after three of four steps."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "photos").mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "photos" / "a red wall.png")

    def stop(step):
        if step.done == 3:
            raise KeyboardInterrupt

    for name, on_step in (("inca", None), ("maya", stop)):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name=name)
        try:
            velatura.train(tiny, overlay, folder / "photos", PLAN, out=folder / "runs" / name, on_step=on_step)
        except KeyboardInterrupt:
            assert on_step
    return folder


@pytest.fixture
def desk(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def printed(capsys, *words, status=0):
    assert main(list(words)) == status
    return capsys.readouterr()


def test_runs_are_listed_with_their_state(desk, capsys):
    lines = printed(capsys, "list").out.splitlines()
    [inca], [maya] = ([line for line in lines if line.startswith(f"runs/{name}")] for name in ("inca", "maya"))
    assert "run: hypernet inca on tiny, finished after 4 steps" in inca
    assert "interrupted at step 3 of 4" in maya
    assert maya.endswith("velatura resume runs/maya")
    assert len(printed(capsys, "list", "--kind", "run").out.splitlines()) == 2
    assert len(printed(capsys, "list", "--kind", "run", "--search", "maya").out.splitlines()) == 1
    assert not [line for line in printed(capsys, "list", "--kind", "hypernet").out.splitlines() if "run:" in line]


def test_runs_in_json_have_the_keys_of_files(desk, capsys):
    entries = json.loads(printed(capsys, "list", "runs", "--json").out)
    assert {(entry["name"], entry["kind"]) for entry in entries} == {
        ("inca", "hypernet"),
        ("inca", "run"),
        ("maya", "run"),
    }
    assert {entry["run"]["state"] for entry in entries if entry["kind"] == "run"} == {"finished", "interrupted"}


def test_a_run_is_shown_with_what_to_do_next(desk, capsys):
    shown = printed(capsys, "show", "runs/maya").out
    for part in ("interrupted at step 3 of 4", "hypernet maya", "tiny", "velatura resume runs/maya", "1e-3"):
        assert part in shown
    assert "at steps 2, 3; <hypernet:maya-000003:1>" in shown
    finished = printed(capsys, "show", "runs/inca").out
    assert "velatura convert runs/inca/inca.safetensors runs/inca/inca.pt" in finished
    assert "resume" not in finished
    as_json = json.loads(printed(capsys, "show", "runs/maya", "--json").out)
    assert (as_json["state"], as_json["steps"], as_json["planned_steps"]) == ("interrupted", 3, 4)
    assert as_json["next"] == {"continue": "velatura resume runs/maya"}


def test_a_finished_run_gives_its_verdict_back(desk, capsys):
    verdict = read_verdict(desk / "runs" / "inca")
    assert (verdict.steps, verdict.kind, verdict.file) == (4, "hypernet", desk / "runs" / "inca" / "inca.safetensors")
    judged = replace(verdict, effect=0.02, little_learned=True, strength=0.7, strength_note="best strength 0.7")
    write_verdict(judged, desk / "runs" / "inca")
    shown = printed(capsys, "show", "runs/inca").out.splitlines()
    for label, text in judged.judgement():
        assert f"{label:21}{text}" in shown
    assert "serves best at strength 0.7" in printed(capsys, "list", "--kind", "run").out
    as_json = json.loads(printed(capsys, "show", "runs/inca", "--json").out)["verdict"]
    assert (as_json["effect"], as_json["strength"], as_json["little_learned"]) == (0.02, 0.7, True)
    assert "`velatura show runs/inca` gives its verdict" in printed(capsys, "resume", "runs/inca", status=2).err
    (desk / "runs" / "inca" / "verdict.json").write_text("{")
    assert "verdict.json cannot be read" in printed(capsys, "show", "runs/inca").out


def test_a_run_that_a_process_uses_is_running(desk, capsys):
    with FileLock(desk / "runs" / "maya" / ".lock"):
        assert "running at step 3 of 4" in printed(capsys, "show", "runs/maya").out
        assert "can be resumed (inca is finished, maya is running)" in printed(capsys, "resume", "runs", status=2).err
    assert "interrupted at step 3 of 4" in printed(capsys, "show", "runs/maya").out


def test_a_folder_of_runs_lists_what_can_go_on(desk, capsys):
    assert printed(capsys, "resume", "runs").out == "runs/maya: interrupted at step 3 of 4; velatura resume runs/maya\n"
    shutil.copytree("runs/maya", "runs/olmec")
    two = printed(capsys, "resume", "runs/", status=2)
    assert two.out.count("velatura resume runs/") == 2
    assert "2 runs in runs can be resumed: name one of them" in two.err
    shutil.rmtree("runs/maya")
    shutil.rmtree("runs/olmec")
    assert "no run in runs can be resumed (inca is finished)" in printed(capsys, "resume", "runs", status=2).err
    assert "photos is not a run folder, and holds none" in printed(capsys, "resume", "photos", status=2).err


def test_a_resumed_run_ends_with_its_verdict(desk, capsys):
    said = printed(capsys, "resume", "runs/maya").out
    assert said.startswith("runs/maya/maya.safetensors: hypernet")
    assert "validation loss" in said
    assert "velatura convert runs/maya/maya.safetensors runs/maya/maya.pt" in said


def test_training_into_an_unfinished_run_is_answered_with_resume(desk, capsys):
    words = ["train", "hypernet", "photos", "--name", "maya", "--dry-run"]
    assert "continue it with `velatura resume runs/maya`" in printed(capsys, *words, status=2).err


@pytest.mark.parametrize("name", ["inca-000002", "inca-best"])
def test_tags_reach_the_snapshots_of_the_run_that_is_the_library(desk, capsys, name):
    words = ["generate", f"a red wall <hypernet:{name}:1>", "--steps", "1", "--out", "out"]
    missing = printed(capsys, *words, status=2).err
    assert f"no overlay is called '{name}'" in missing
    assert "add --library runs/inca" in missing
    assert (desk / "out").exists() is False
    printed(capsys, *words, "--library", "runs/inca")
    assert len(list((desk / "out").glob("*.png"))) == 1


def test_an_unfinished_run_is_not_called_by_its_last_snapshot_in_silence(desk, capsys):
    words = ["generate", "a red wall <hypernet:maya:1>", "--steps", "1", "--library", "runs/maya"]
    complaint = printed(capsys, *words, status=2).err
    assert "no overlay is called 'maya' in runs/maya: did you mean 'maya-" in complaint
    assert "continue it with `velatura resume runs/maya`" in complaint


def test_a_name_that_is_nowhere_is_answered_with_the_option(desk, capsys):
    complaint = printed(capsys, "generate", "a wall <hypernet:aztec:1>", status=2).err
    assert "name that with --library" in complaint


def test_a_grid_over_snapshots_keeps_their_names(desk, capsys):
    words = ["grid", "a wall <hypernet:inca-{step}:1>", "--x", "step=000002,000004,best", "--steps", "1"]
    printed(capsys, *words, "--library", "runs/inca", "--out", "steps.png")
    assert (desk / "steps.png").exists()
