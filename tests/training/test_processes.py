"""Several processes learn what one would of all their pictures together, and end together however one of them ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import velatura
from tests.training.together import PLAN, WAYS, of_two_shapes
from velatura.cli.app import main
from velatura.errors import BadPlan, ProcessFailed
from velatura.training.processes import Team, move_to_device
from velatura.training.run.folder import RunFolder
from velatura.training.run.launching import launch

UNDISTURBED = ("plain", "buckets")
HERE = Path(__file__).parent
# softmax does not see what is added to all keys, so their gradient is rounding alone, which AdamW then makes large
KEY_BIAS = re.compile(r"\d+_0\.linear\.2\.bias")


def learned_together(drawn, folder, *ways):
    """What came of some ways in two processes, and the folder of their runs."""
    command = [sys.executable, str(HERE / "together.py"), str(drawn), str(folder), *ways]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=_environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


@pytest.fixture(scope="module")
def runs(drawn, tmp_path_factory):
    """Runs that nothing disturbs."""
    return learned_together(drawn, tmp_path_factory.mktemp("together"), *UNDISTURBED)


@pytest.fixture(scope="module")
def disturbed(drawn, tmp_path_factory):
    """Those that something happens to, and one of a LoRA."""
    return learned_together(
        drawn, tmp_path_factory.mktemp("disturbed"), *[way for way in WAYS if way not in UNDISTURBED]
    )


def _environment():
    return os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", UNDISTURBED)
def test_two_processes_learn_what_one_does_of_a_batch_twice_as_large(tiny, drawn, runs, tmp_path, way):
    came, folder = runs
    assert [each["said"] for each in came[way]] == ["", ""]
    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
    photos = of_two_shapes(drawn, tmp_path / "shapes") if way == "buckets" else drawn
    alone = velatura.train(tiny, overlay, photos, PLAN.replace(batch_size=4, **WAYS[way]), out=tmp_path / "alone")
    together = velatura.open_overlay(folder / way / "inca.safetensors")
    untrained = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3)
    ways = zip(alone.overlay.named_parameters(), together.parameters(), untrained.parameters(), strict=True)
    for (name, one), two, before in ways:
        assert not torch.equal(one, before)
        if not KEY_BIAS.fullmatch(name):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    losses = [each["loss"] for each in records(folder / way) if "loss" in each]
    assert losses == pytest.approx(alone.losses, abs=1e-6)


def test_all_processes_end_with_the_same_weights_though_they_began_with_others(runs):
    came, _ = runs
    assert len({each["weights"] for each in came["plain"]}) == 1


def test_one_process_alone_writes_the_run(runs):
    _, folder = runs
    beginning, *others = records(folder / "plain")
    assert beginning["processes"] == 2
    assert [each["step"] for each in others if "loss" in each] == [1, 2, 3, 4]
    assert (folder / "plain" / "inca.safetensors").exists()


@pytest.mark.slow
def test_a_run_gone_wrong_goes_back_in_all_processes(disturbed):
    came, folder = disturbed
    assert [each["said"] for each in came["rescued"]] == ["", ""]
    assert len({each["weights"] for each in came["rescued"]}) == 1
    assert any("back_to" in each for each in records(folder / "rescued"))


@pytest.mark.slow
def test_what_breaks_one_process_ends_all_of_them_with_one_message(disturbed):
    came, folder = disturbed
    first, second = came["failing"]
    assert first["said"] == "ProcessFailed: process 1 of 2: MemoryError: no room for 7 pictures"
    assert second["said"] == "MemoryError: no room for 7 pictures"
    assert [each.step for each in RunFolder(folder / "failing", "inca", None).snapshots][-1] == 2


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_who_keep_what_they_learned(disturbed):
    came, folder = disturbed
    first, second = came["killed"]
    assert second is None
    assert first["said"].startswith("ProcessFailed: another process of this training is gone")
    assert [each.step for each in RunFolder(folder / "killed", "inca", None).snapshots][-1] == 2


@pytest.mark.slow
def test_a_signal_to_one_process_ends_the_step_in_all_and_the_run_goes_on_to_the_same_end(runs, disturbed):
    came, _ = disturbed
    first, second = came["stopped"]
    assert first["said"] == "KeyboardInterrupt: SIGTERM"
    assert second["said"].startswith("KeyboardInterrupt: the training was broken off")
    assert [each["said"] for each in came["resumed"]] == ["", ""]
    assert came["resumed"][0]["weights"] == came["resumed"][1]["weights"] == runs[0]["plain"][0]["weights"]


@pytest.mark.slow
def test_a_lora_with_a_word_learns_in_two_processes_and_goes_on_to_the_same_end(disturbed):
    came, _ = disturbed
    assert [each["said"] for each in came["lora"] + came["resumed lora"]] == [""] * 4
    assert len({each["weights"] for each in came["lora"] + came["resumed lora"]}) == 1
    assert came["stopped lora"][0]["weights"] != came["lora"][0]["weights"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_not_resumed_by_one(tiny, disturbed):
    _, folder = disturbed
    with pytest.raises(BadPlan, match="began in 2 processes, these are 1: resume it with --processes 2"):
        velatura.resume(tiny, folder / "failing")


def test_a_process_alone_waits_for_nobody(tiny):
    team = Team.join(tiny.device)
    assert (team.is_alone, team.leads, team.rows(3)) == (True, True, slice(0, 3))
    team.wait()
    team.call("learn", 1)
    with team.lead():
        assert team.mean(lambda: torch.tensor(2.0), []).item() == 2
    team.check()


def test_an_error_of_one_is_said_as_it_is(monkeypatch):
    team = Team(0, 2)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", _gone)
    with pytest.raises(ProcessFailed, match=r"see why .* then resume the run"):
        team.broadcast("anything")


def _gone(*_, **__):
    raise RuntimeError("Connection closed by peer")


def test_tensors_inside_anything_are_moved():
    state = {"a": [torch.ones(2), 3], "b": (torch.zeros(1), "text")}
    there = move_to_device(state, torch.device("meta"))
    assert there["a"][0].device.type == there["b"][0].device.type == "meta"
    assert (there["a"][1], there["b"][1]) == (3, "text")


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_number_of_processes_that_cannot_be_is_refused(count):
    with pytest.raises(BadPlan, match="choose 1 to 64"):
        launch(["hypernet"], count)


def command(photos, out, *more, processes=("--processes", "2")):
    options = ["--name", "inca", "--steps", "3", "--pixels", "16", "--batch", "2", *processes]
    return ["train", "hypernet", str(photos), *options, "--out", str(out), *more]


@pytest.mark.slow
def test_the_command_line_trains_in_two_processes(photos, tmp_path, capfd):
    assert main(command(photos, tmp_path / "run")) == 0
    said = capfd.readouterr()
    assert said.out.count("try: ") == 1
    assert len(velatura.open_overlay(tmp_path / "run" / "inca.safetensors").state_dict()) == 32
    assert main(command(tmp_path / "nowhere", tmp_path / "other")) == 2
    said = capfd.readouterr()
    assert said.err.count("error: ") == 1
    assert "nowhere does not exist" in said.err


@pytest.mark.slow
def test_one_process_alone_makes_class_pictures_and_writes_the_checkpoint(photos, tmp_path, capfd):
    words = command(photos, tmp_path / "run", "--class-prompt", "a ball", "--class-pictures", "2", "--as", "checkpoint")
    assert main(["train", "dreambooth", *words[2:]]) == 0
    said = capfd.readouterr()
    assert said.out.count("2 class pictures of a ball") == 1
    assert sorted(each.name for each in (photos / "reg").glob("*.png")) == ["class-0001.png", "class-0002.png"]
    assert [each.name for each in (tmp_path / "run").glob("*checkpoint*")] == ["inca-checkpoint.safetensors"]


@pytest.mark.slow
def test_other_launchers_launch_it_too(photos, tmp_path):
    """By what accelerate itself launches processes with, where there are GPUs."""
    words = command(photos, tmp_path / "run", processes=())[1:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    done = subprocess.run(
        [*launcher, "-m", "velatura.training", *words],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("try: ") == 1
    assert records(tmp_path / "run")[0]["processes"] == 2


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_once_and_the_run_can_be_resumed(photos, tmp_path):
    words = command(photos, tmp_path / "run", "--set", "steps=400")
    run = subprocess.Popen(
        [sys.executable, "-m", "velatura", *words], stderr=subprocess.PIPE, text=True, env=_environment()
    )
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and '"loss"' in log.read_text()):
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    assert said.count("interrupted") == 1
    assert "velatura resume" in said
