"""A server whose jobs run on a real Ray cluster with two workers on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import velatura
from tests.server.cluster.test_jobs import LONG, pictures_of, submit, types_of, until, until_it_paints
from tests.server.conftest import HOST, wait_for
from velatura.compare.cluster import connect
from velatura.server.app import create_app
from velatura.server.settings import ServerSettings
from velatura.server.state import ServerState

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*:ResourceWarning"),
]


@pytest.fixture
def client(ray: Any, models: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A running server whose jobs run on the cluster, once both workers are ready."""
    del ray
    settings = ServerSettings.of(library=(models,), out=tmp_path / "out", batch=1)
    with connect("auto") as cluster:
        app = create_app(settings, cluster)
        with TestClient(app, base_url=f"http://{HOST}", raise_server_exceptions=False) as client:
            until(lambda: all(worker.info.host for worker in app.state.velatura.pool.workers), seconds=400)
            yield client


def process_of(client: TestClient, job_id: str) -> int:
    workers = client.get("/api/system").json()["workers"]
    return next(worker["process"] for worker in workers if worker["job"] == job_id)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_worker_costs_its_job_the_current_picture(client, tiny, models):
    state: ServerState = client.app.state.velatura
    prompt = "a red house <lora:ink:0.8>"
    recipes = [{"prompt": prompt, "seed": seed, "steps": steps} for seed, steps in ((7, 2), (8, 40))]
    other = submit(client, **LONG)
    painting = submit(client, kind="paint", recipes=recipes)
    until(lambda: "picture" in types_of(state, painting))
    until_it_paints(state, other)  # both run
    killed = process_of(client, painting)
    client.post(f"/api/jobs/{other}/cancel")
    os.kill(killed, signal.SIGKILL)
    job = wait_for(client, painting)
    assert (job["state"], len(job["warnings"])) == ("done", 1)
    assert wait_for(client, other)["state"] == "cancelled"
    library = velatura.Library(models)
    expected = [velatura.generate(tiny, velatura.Recipe(**recipe), library=library).image for recipe in recipes]
    assert [picture.tobytes() for picture in pictures_of(client, job)] == [image.tobytes() for image in expected]
