"""One server with the tiny base for all tests of this folder, and a way to wait for its jobs."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

import velatura
from velatura.server.app import create_app
from velatura.server.settings import ServerSettings
from velatura.server.state import ServerState

STEPS = 2
HOST = "127.0.0.1:7860"


def open_client(settings: ServerSettings) -> TestClient:
    """Return a client of a new application; it starts in a `with` block."""
    return TestClient(create_app(settings), base_url=f"http://{HOST}", raise_server_exceptions=False)


@contextmanager
def socket_server(app: Any, **options: Any) -> Generator[int]:
    """Serve an application over a socket, in a thread, and yield its port.

    Args:
        app: The application.
        options: Of uvicorn's Config.
    """
    server = uvicorn.Server(uvicorn.Config(app, **{"port": 0, "log_config": None, "ws": "none", **options}))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(120)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tiny: velatura.Base) -> Path:
    """A library with one LoRA."""
    folder = tmp_path_factory.mktemp("models")
    lora = velatura.Lora.for_base(tiny, rank=1, seed=1, name="ink")
    for weight in lora.parameters():
        weight.data.add_(0.1)
    velatura.save(lora, folder / "ink.safetensors")
    return folder


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[TestClient]:
    """A running server."""
    settings = ServerSettings.of(library=(models,), out=tmp_path_factory.mktemp("out"), batch=1)
    with open_client(settings) as client:
        yield client


@pytest.fixture(scope="session")
def state(client: TestClient) -> ServerState:
    """What the routes of the running server share."""
    return client.app.state.velatura


def wait_for(client: TestClient, job_id: str) -> dict[str, Any]:
    """Return a job once it is over: its events end with it."""
    with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
        stream.read()
    return client.get(f"/api/jobs/{job_id}").json()


def paint(client: TestClient, prompt: str = "a red house", **fields: Any) -> dict[str, Any]:
    """Paint one picture and return its job."""
    request = {"kind": "paint", "recipe": {"prompt": prompt, "steps": STEPS, "seed": 7}, **fields}
    answer = client.post("/api/jobs", json=request)
    assert answer.status_code == 202, answer.text
    return wait_for(client, answer.json()["id"])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Paint with as many threads as another process that has one: sums in another order end in other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
