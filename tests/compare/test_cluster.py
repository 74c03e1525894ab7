"""Jobs on a Ray cluster: refused in a line without Ray; with it, a killed worker's trial is resumed elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import velatura
from tests.conftest import copy_four_pictures
from velatura import imports
from velatura.cli.app import main
from velatura.compare.cluster import BaseReference, Cluster, ClusterActor, connect, run_on_worker
from velatura.errors import BadDataset, BadSettings, ProcessFailed, UnsupportedBase, WorkerLost, WrongBase

TRIES = {"rate": ["1e-7", "3e-3"], "init": "xavier_normal"}


def test_without_ray_a_cluster_is_refused_in_a_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imports, "find_spec", lambda _: None)
    with pytest.raises(BadSettings, match="velatura\\[cluster\\]"):
        velatura.sweep(tiny, "lora", "neon", tries={"rank": [4, 8]}, out=tmp_path, ray="auto")
    with pytest.raises(BadSettings, match="not installed"):
        velatura.study(tiny, "neon", out=tmp_path, ray="auto")
    with pytest.raises(BadSettings, match="not installed"):
        velatura.grid(tiny, "a cat", x=("seed", [1, 2]), ray="auto")
    for words in (["sweep", "lora", "neon", "--try", "rank=4|8"], ["compare", "neon"], ["grid", "a cat", "--x", "s=1"]):
        assert main([*words, "--ray", "auto", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: Ray, which runs work on a cluster, is not installed")


def test_a_worker_runs_a_job_on_the_same_base_and_hands_its_warnings_back(tiny, tmp_path):
    def job(base, number):
        velatura.errors.warn("little light")
        return base.hash, number

    reference = BaseReference.from_base(tiny)
    assert run_on_worker(job, reference, 7, [str(tmp_path)]) == ((tiny.hash, 7), ["little light"])
    with pytest.raises(BadDataset, match="network drive"):
        run_on_worker(job, reference, 7, [str(tmp_path / "elsewhere")])
    with pytest.raises(WrongBase, match="another base on"):
        run_on_worker(job, reference._replace(hashes=("0", None, None)), 7, [])


def test_a_worker_computes_in_the_precision_and_with_the_parts_of_this_process(tmp_path):
    assert BaseReference.from_base(velatura.tiny(dtype="bfloat16")).open().dtype == torch.bfloat16
    folder = Path(velatura.tiny().opened_from)
    other = velatura.open_base(folder, vae=folder / "vae", dtype="bfloat16")
    opened = BaseReference.from_base(other).open()
    assert (opened.dtype, opened.open_options) == (torch.bfloat16, other.open_options)


def test_a_base_that_no_worker_can_open_is_refused(tiny, tmp_path):
    parts = {"unet": tiny.unet, "vae": tiny.vae, "text": tiny.text, "schedule": tiny.schedule}
    with pytest.raises(UnsupportedBase, match="mine was not opened from a file"):
        BaseReference.from_base(velatura.Base("mine", tiny.family, **parts))


@pytest.fixture
def client(monkeypatch):
    """A stand-in for the module ray, which runs tasks at once in this process."""
    client = ModuleType("ray")
    client.__spec__ = ModuleSpec("ray", None)
    client.exceptions = SimpleNamespace(RayError=OSError)
    client.calls = []
    client.is_initialized = lambda: False
    client.init = lambda **options: client.calls.append(options["address"])
    client.shutdown = lambda: client.calls.append("shutdown")
    client.get_runtime_context = lambda: SimpleNamespace(gcs_address="10.0.0.7:6379")
    client.cluster_resources = lambda: {"CPU": 6.0}
    monkeypatch.setitem(sys.modules, "ray", client)
    return client


def test_a_connection_that_the_program_has_stays_open(client, monkeypatch):
    monkeypatch.setattr("velatura.compare.cluster._check_answers", lambda _: None)
    with connect("10.0.0.7:6379") as cluster:
        assert (cluster.slots, client.calls) == (6, ["10.0.0.7:6379"])
    assert client.calls == ["10.0.0.7:6379", "shutdown"]
    client.is_initialized, client.calls = (lambda: True), []
    for address in ("auto", "local", "10.0.0.7:6379", "ray://10.0.0.7:10001"):
        with connect(address):
            pass
    assert client.calls == []
    with (
        pytest.raises(BadSettings, match=r"connected to the Ray cluster at 10\.0\.0\.7:6379, not 10\.0\.0\.8:6379"),
        connect("10.0.0.8:6379"),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "connected_to", "is_same"),
    [
        ("10.0.0.1:6379", "10.0.0.12:6379", False),
        ("10.0.0.12", "10.0.0.12:6379", True),
        ("10.0.0.12:6380", "10.0.0.12:6379", False),
        ("localhost:6379", "127.0.0.1:6379", True),
        ("ray://10.0.0.12:10001", "10.0.0.12:6379", True),
        ("ray://10.0.0.1:10001", "10.0.0.12:6379", False),
    ],
)
def test_a_connection_serves_its_own_address_only(client, address, connected_to, is_same):
    client.is_initialized = lambda: True
    client.get_runtime_context = lambda: SimpleNamespace(gcs_address=connected_to)
    with (
        nullcontext() if is_same else pytest.raises(BadSettings, match="connected to the Ray cluster"),
        connect(address),
    ):
        pass


class FakeRayError(Exception):
    """An error of Ray, in its place."""


class FakeTaskError(FakeRayError):
    """The error of a method that an actor runs, in Ray's place."""

    def __init__(self, cause):
        super().__init__(f"Traceback\n{cause}")
        self.cause = cause


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (FakeRayError("the actor died\nunexpectedly"), WorkerLost, "the actor died"),
        (ConnectionError("the channel is closed\nfor ever"), WorkerLost, "the channel is closed"),
        (Exception("Ray Client is not connected. Please connect"), WorkerLost, "Ray Client is not connected"),
        (TimeoutError(), WorkerLost, "TimeoutError"),
        (BadSettings("wrong"), BadSettings, "wrong"),
        (FakeTaskError(BadDataset("no folder")), BadDataset, "no folder"),
        (FakeTaskError(ValueError("zero")), ProcessFailed, "zero"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ray_raises_in_a_call_means_that_the_worker_is_lost(client, raised, expected, message):
    def fail(_):
        raise raised

    client.exceptions = SimpleNamespace(RayError=FakeRayError, RayTaskError=FakeTaskError)
    client.wait, client.get = (lambda references, timeout: (references, [])), fail  # noqa: ARG005  # Ray's name
    actor = ClusterActor(client, SimpleNamespace(poll=SimpleNamespace(remote=lambda: "reference")))
    with pytest.raises(expected, match=message) as caught:
        actor.call("poll")
    assert "\n" not in str(caught.value)


def test_a_cluster_that_does_not_answer_is_refused_in_a_line(client, monkeypatch):
    monkeypatch.setattr("velatura.compare.cluster._check_answers", lambda _: None)

    def fail(**_):
        raise ConnectionError("nobody there\nat all")

    client.init = fail
    with pytest.raises(BadSettings, match=r"at 10\.0\.0\.9:1 \(nobody there\); start one"), connect("10.0.0.9:1"):
        pass


def test_an_address_at_which_nothing_listens_is_refused_at_once(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "nobody.invalid:6379", ""):
        with pytest.raises(BadSettings, match="no Ray cluster answers at"), connect(address):
            pass
    assert client.calls == []


def test_a_cluster_of_its_own_has_no_dashboard_and_reports_nothing(client, monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    options = {}
    client.init = options.update
    with connect("local"):
        assert options["include_dashboard"] is False
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_job_takes_a_gpu_where_there_is_one(client):
    client.cluster_resources = lambda: {"CPU": 6.0, "GPU": 2.0}
    with connect("auto") as cluster:
        assert cluster.slots == 2


with_ray = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*:ResourceWarning"),
]


class TestWithRay:
    """Two workers of a real Ray; the tests share its start, which takes longer than they do."""

    pytestmark = with_ray

    @pytest.mark.usefixtures("ray")
    def test_a_killed_worker_costs_nothing_but_time(self, tiny, tmp_path):
        photos = copy_four_pictures("neon", tmp_path / "neon")
        alone = velatura.sweep(tiny, "hypernet", photos, tries=TRIES, steps=40, out=tmp_path / "alone")
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_training, args=(tmp_path / "sweep", killed), daemon=True)
        killer.start()
        results = velatura.sweep(tiny, "hypernet", photos, tries=TRIES, steps=40, out=tmp_path / "sweep", ray="local")
        killer.join(timeout=10)
        assert killed, "no worker was killed, so nothing is shown"
        assert [trial.errors for trial in results.trials] == [trial.errors for trial in alone.trials]
        first, second = (
            velatura.open_overlay(tmp_path / folder / "neon.safetensors").state_dict() for folder in ("alone", "sweep")
        )
        assert all(first[name].equal(second[name]) for name in first)

    @pytest.mark.usefixtures("ray")
    def test_a_killed_worker_changes_no_figure_of_a_study(self, tiny, tmp_path):
        options = {"kinds": ["hypernet"], "seeds": 1, "steps": 8}
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_training, args=(tmp_path / "study", killed), daemon=True)
        killer.start()
        results = velatura.study(tiny, velatura.tiny_pictures("neon"), out=tmp_path / "study", ray="local", **options)
        killer.join(timeout=10)
        assert killed, "no worker was killed, so nothing is shown"
        alone = velatura.study(tiny, velatura.tiny_pictures("neon"), out=tmp_path / "alone", **options)
        [trial], [expected] = results.trials, alone.trials
        assert trial.curve == expected.curve
        timed = {"training_seconds", "picture_seconds"}
        assert {name: value for name, value in trial.figures.items() if name not in timed} == {
            name: value for name, value in expected.figures.items() if name not in timed
        }

    @pytest.mark.usefixtures("ray")
    def test_a_grid_is_the_same_as_in_one_process(self, tiny, hyper, tmp_path):
        overlay, reports = hyper(name="ink"), []
        velatura.save(overlay, tmp_path / "ink.safetensors")
        options = {
            "x": ("s", [0, 0.5, 1]),
            "y": ("seed", [7, 8]),
            "library": velatura.Library(tmp_path),
        }
        recipe = velatura.Recipe(prompt="a red house <hypernet:ink:{s}>", steps=2, seed=1)
        alone = velatura.grid(tiny, recipe, **options)
        together = velatura.grid(tiny, recipe, **options, ray="auto", on_step=lambda *report: reports.append(report))
        assert reports[-1] == (12, 12)
        for ours, theirs in zip(together.rows, alone.rows, strict=True):
            for picture, expected in zip(ours, theirs, strict=True):
                assert picture.recipe == expected.recipe
                difference = np.asarray(picture.image, int) - np.asarray(expected.image, int)
                assert np.abs(difference).max() <= 2  # batches of another size round otherwise
        with velatura.attach(tiny, overlay, 1.0), pytest.raises(UnsupportedBase, match="attached"):
            velatura.grid(tiny, recipe, **options, ray="auto")

    @pytest.mark.usefixtures("ray")
    def test_what_a_job_refuses_is_refused_here(self, tiny, tmp_path):
        with connect("auto") as cluster:
            jobs = cluster.run(run_on_worker, BaseReference.from_base(tiny), [1], [tmp_path / "elsewhere"])
            with pytest.raises(BadDataset, match="network drive"):
                next(iter(jobs))

    def test_a_cluster_of_its_own_ends_with_the_work(self, ray):
        ray.shutdown()
        with connect("local") as cluster:
            assert isinstance(cluster, Cluster)
            assert ray.is_initialized()
        assert not ray.is_initialized()


def kill_a_training(folder: Path, killed: list[int], seconds: float = 900) -> None:
    """Kill the worker that has taken a few steps of a trial."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for log in folder.glob("trials/*/log.jsonl"):
            if log.read_text().count('"loss"') >= 3 and (process := owner_of(log)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    return
        time.sleep(0.02)


def owner_of(log: Path) -> int | None:
    """Return the process, not this one, that has a file open."""
    for process in psutil.process_iter(["pid"]):
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if any(file.path == str(log) for file in process.open_files()):
                return process.pid
    return None
