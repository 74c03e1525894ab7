"""The server as a process: its address, SIGTERM, kill -9 and the next start."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

import velatura
from velatura.cli.app import main

READY_SECONDS = 400  # most of it is the import of torch on a busy machine
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_is_left():
    """Kill the servers that a failed test leaves running."""
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


def start(folder: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server at a free port, and return it and its address."""
    command = [sys.executable, "-m", "velatura", "serve", "--port", "0", "--library", str(folder), *words]
    environment = os.environ | {"PYTHONPATH": str(Path(velatura.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    STARTED.append(process)
    line = process.stdout.readline()
    match = re.search(r"http://\S+", line)
    assert match, line + process.stderr.read()
    return process, match[0]


def until(condition, process):
    """Wait for a condition while the process lives."""
    end = time.monotonic() + READY_SECONDS
    while not (result := condition()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.2)
    return result


def finish(process):
    """Wait for the process's end, and return its status and what it said."""
    _, said = process.communicate(timeout=READY_SECONDS)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("ends", [["kill"], ["SIGTERM", "kill"]], ids=" and ".join)
def test_jobs_survive_the_ends_of_the_server(tmp_path, monkeypatch, capsys, ends):
    recipes = [{"prompt": "a house", "steps": 2, "seed": 1}, {"prompt": "a house", "steps": 1000, "seed": 2}]
    plan = {"steps": 6, "snapshot_every": 1, "validation_pictures": 0}
    lora = {"kind": "lora", "rank": 1}
    process, url = start(tmp_path)
    with httpx2.Client(base_url=url, timeout=READY_SECONDS) as client:
        assert client.get("/internal/ping").status_code == 200
        painting = client.post("/api/jobs", json={"kind": "paint", "recipes": recipes}).json()["id"]
        request = {"kind": "train", "overlay": lora, "dataset": "neon", "name": "kept", "plan": plan}
        training = client.post("/api/jobs", json=request).json()["id"]
        until(lambda: client.get("/api/pictures").json()["pictures"], process)

    if "SIGTERM" in ends:
        process.send_signal(signal.SIGTERM)
        status, said = finish(process)
        assert (status, said.count("\n")) == (0, 1), said
        process, url = start(tmp_path)

    with httpx2.Client(base_url=url, timeout=READY_SECONDS) as client:
        # the process is killed in the middle of the second picture
        left = 1000 if "SIGTERM" in ends else 1002  # steps of the pictures that were not there at its start
        until(lambda: client.get(f"/api/jobs/{painting}").json()["progress"]["total"] == left, process)
        assert len(client.get("/api/pictures").json()["pictures"]) == 1
    process.kill()
    process.communicate()
    with sqlite3.connect(tmp_path / "output" / "velatura.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT state FROM jobs ORDER BY number").fetchall() == [("running",), ("queued",)]

    process, url = start(tmp_path)
    with httpx2.Client(base_url=url, timeout=READY_SECONDS) as client:
        client.post(f"/api/jobs/{painting}/cancel")
        job = until(lambda: (job := client.get(f"/api/jobs/{training}").json())["state"] == "done" and job, process)
        assert job["result"]["steps"] == 6
        assert client.get(f"/api/jobs/{painting}").json()["state"] == "cancelled"
        with client.stream("GET", f"/api/jobs/{painting}/events", headers={"Last-Event-ID": "0"}) as stream:
            types = [line[7:] for line in stream.iter_lines() if line.startswith("event: ")]
        assert types.count("interrupted") == len(ends)
        assert types[-1] == "cancelled"
        monkeypatch.chdir(tmp_path)
        assert main(["serve", "--port", "0"]) == 2
        assert "another server uses" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 0
