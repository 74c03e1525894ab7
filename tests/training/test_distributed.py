"""Several processes learn what one learns from all their pictures, and end together however one of them ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch

import velatura
from tests.training.two_processes import PLAN, SCENARIOS, copy_in_two_shapes
from velatura.errors import BadPlan, ProcessFailed
from velatura.training.distributed import Processes, is_main_process, process_count
from velatura.training.run.folder import RunFolder

UNDISTURBED = ("plain", "buckets")
HERE = Path(__file__).parent
# softmax does not see what is added to all keys, so their gradient is rounding alone, which AdamW then makes large
KEY_BIAS = re.compile(r"\d+_0\.linear\.2\.bias")


def train_in_two_processes(drawn, folder, *scenarios):
    """Return the results of some scenarios by process, and the folder of their runs."""
    command = [sys.executable, str(HERE / "two_processes.py"), str(drawn), str(folder), *scenarios]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout), folder


@pytest.fixture(scope="module")
def runs(drawn, tmp_path_factory):
    """Run scenarios that nothing disturbs."""
    return train_in_two_processes(drawn, tmp_path_factory.mktemp("together"), *UNDISTURBED)


@pytest.fixture(scope="module")
def disturbed(drawn, tmp_path_factory):
    """Run the scenarios that something happens in, and those of a LoRA."""
    scenarios = [scenario for scenario in SCENARIOS if scenario not in UNDISTURBED]
    return train_in_two_processes(drawn, tmp_path_factory.mktemp("disturbed"), *scenarios)


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("scenario", UNDISTURBED)
def test_two_processes_learn_what_one_does_of_a_batch_twice_as_large(tiny, drawn, runs, tmp_path, scenario):
    results, folder = runs
    assert [result["error"] for result in results[scenario]] == ["", ""]
    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
    photos = copy_in_two_shapes(drawn, tmp_path / "shapes") if scenario == "buckets" else drawn
    plan = PLAN.replace(batch_size=4, **SCENARIOS[scenario])
    alone = velatura.train(tiny, overlay, photos, plan, out=tmp_path / "alone")
    together = velatura.open_overlay(folder / scenario / "inca.safetensors")
    untrained = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3)
    weights = zip(alone.overlay.named_parameters(), together.parameters(), untrained.parameters(), strict=True)
    for (name, of_one_process), of_two_processes, before in weights:
        assert not torch.equal(of_one_process, before)
        if not KEY_BIAS.fullmatch(name):
            torch.testing.assert_close(of_one_process, of_two_processes, rtol=0, atol=1e-6)
    losses = [record["loss"] for record in records(folder / scenario) if "loss" in record]
    assert losses == pytest.approx(alone.losses, abs=1e-6)


def test_all_processes_end_with_the_same_weights_and_losses_though_they_began_with_other_weights(runs):
    results, folder = runs
    assert len({result["weights"] for result in results["plain"]}) == 1
    losses = [record["loss"] for record in records(folder / "plain") if "loss" in record]
    assert [result["losses"] for result in results["plain"]] == [losses, losses]


def test_one_process_alone_writes_the_run(runs):
    _, folder = runs
    header, *others = records(folder / "plain")
    assert header["processes"] == 2
    assert [record["step"] for record in others if "loss" in record] == [1, 2, 3, 4]
    assert (folder / "plain" / "inca.safetensors").exists()


@pytest.mark.slow
def test_a_run_gone_wrong_goes_back_in_all_processes(disturbed):
    results, folder = disturbed
    assert [result["error"] for result in results["rescued"]] == ["", ""]
    assert len({result["weights"] for result in results["rescued"]}) == 1
    assert any("back_to" in record for record in records(folder / "rescued"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_breaks_one_process_ends_all_of_them_with_its_reason(disturbed, rank):
    results, folder = disturbed
    scenario = "main fails" if rank == 0 else "other fails"
    errors = [result["error"] for result in results[scenario]]
    assert errors[rank] == "MemoryError: no room for 7 pictures"
    assert errors[1 - rank] == f"ProcessFailed: process {rank} of 2: MemoryError: no room for 7 pictures"
    assert [snapshot.step for snapshot in RunFolder(folder / scenario, "inca", None).snapshots][-1] == 2


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_who_keep_what_they_learned(disturbed):
    results, folder = disturbed
    first, second = results["killed"]
    assert second is None
    assert first["error"].startswith("ProcessFailed: another process of this training is gone")
    assert [snapshot.step for snapshot in RunFolder(folder / "killed", "inca", None).snapshots][-1] == 2


@pytest.mark.slow
def test_a_signal_to_one_process_ends_the_step_in_all_and_the_run_is_resumed_to_the_same_end(runs, disturbed):
    results, _ = disturbed
    assert [result["error"] for result in results["stopped"]] == ["KeyboardInterrupt: SIGTERM"] * 2
    assert [result["error"] for result in results["resumed"]] == ["", ""]
    assert {result["weights"] for result in results["resumed"]} == {runs[0]["plain"][0]["weights"]}


@pytest.mark.slow
def test_a_lora_with_a_word_learns_in_two_processes_and_is_resumed_to_the_same_end(disturbed):
    results, _ = disturbed
    finished = results["lora"] + results["resumed lora"]
    assert [result["error"] for result in finished] == [""] * 4
    assert len({result["weights"] for result in finished}) == 1
    assert results["stopped lora"][0]["weights"] != results["lora"][0]["weights"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_not_resumed_by_one(tiny, disturbed):
    _, folder = disturbed
    with pytest.raises(BadPlan, match="began with 2 processes, and now there is 1: resume it with --processes 2"):
        velatura.resume(tiny, folder / "other fails")


def test_a_process_alone_waits_for_nobody(tiny):
    processes = Processes.join(tiny.device)
    assert (process_count(), is_main_process()) == (1, True)
    assert (processes.count, processes.is_main, processes.rows(3)) == (1, True, slice(0, 3))
    weight = torch.ones(2, requires_grad=True)
    with processes.fail_together():
        processes.average_gradients([weight])
        processes.stop_together("")
        assert weight.grad is None
        assert processes.gather("a") == ["a"]
        assert processes.mean(2.0) == 2.0
        assert processes.run_on_main(lambda: 3) == 3
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            processes.stop_together("SIGINT")


def test_a_lost_process_is_reported(monkeypatch):
    monkeypatch.setattr(accelerate.utils, "gather_object", _lose_connection)
    with pytest.raises(ProcessFailed, match=r"see why .* then resume the run"):
        Processes(0, 2).gather("anything")


def _lose_connection(_):
    raise RuntimeError("Connection closed by peer")
