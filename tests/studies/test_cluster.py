"""Trials on a Ray cluster: refused in a line without Ray; with it, a killed worker's trial is resumed elsewhere."""

import contextlib
import os
import shutil
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

import velatura
from velatura.cli.app import main
from velatura.errors import BadDataset, BadSettings, WrongBase
from velatura.studies import cluster
from velatura.studies.cluster import BaseReference, run_on_worker

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install "velatura[cluster]"')
TRIES = {"rate": ["1e-7", "3e-3"], "init": "xavier_normal"}


def test_without_ray_a_cluster_is_refused_in_a_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    monkeypatch.setattr("velatura.cli.compare.study.find_spec", lambda _: None)
    with pytest.raises(BadSettings, match="velatura\\[cluster\\]"):
        velatura.sweep(tiny, "lora", "neon", tries={"rank": [4, 8]}, out=tmp_path, ray="auto")
    with pytest.raises(BadSettings, match="not installed"):
        velatura.study(tiny, "neon", out=tmp_path, ray="auto")
    for words in (["sweep", "lora", "neon", "--try", "rank=4|8"], ["compare", "neon"]):
        assert main([*words, "--ray", "auto", "--out", str(tmp_path)]) == 2
        assert "--ray needs Ray" in capsys.readouterr().err


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


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*:ResourceWarning")
def test_a_killed_worker_costs_nothing_but_time(tiny, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    photos = tmp_path / "neon"
    photos.mkdir()
    for path in sorted(velatura.tiny_pictures("neon").iterdir())[:8]:
        shutil.copy(path, photos)
    alone = velatura.sweep(tiny, "hypernet", photos, tries=TRIES, steps=40, out=tmp_path / "alone")
    real_init = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: real_init(num_cpus=2, include_dashboard=False, **options))
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


def kill_a_training(folder: Path, killed: list[int], seconds: float = 120) -> None:
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
