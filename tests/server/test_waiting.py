"""Requests that wait, for the base or for a turn, keep no thread from others; and memory stays bounded."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

import velatura
from tests.server.a1111.conftest import to_base64
from velatura.server import state as state_module
from velatura.server.errors import ApiError
from velatura.server.folders import Folders
from velatura.server.jobs.context import JobResources
from velatura.server.jobs.worker import JobWorker
from velatura.server.limits import RequestTurns
from velatura.server.models import Models
from velatura.server.settings import ServerSettings

WAITING_ROUTES = [
    "/api/library",
    "/api/bases",
    "/api/prompts/words",
    "/api/recipes/choices",
    "/sdapi/v1/sd-models",
    "/sdapi/v1/loras",
    "/sdapi/v1/upscalers",
]
THREADS = 40  # that run routes at once, by default of anyio


@pytest.fixture
def opening(state):
    """A server whose base is still being opened."""
    state.jobs.is_ready.clear()
    yield state
    state.jobs.is_ready.set()


@pytest.mark.parametrize("path", WAITING_ROUTES)
def test_a_route_that_needs_the_base_says_that_it_is_being_opened(client, opening, monkeypatch, path):
    monkeypatch.setattr(state_module, "READY_SECONDS", 0)
    assert client.get(path).status_code == 503
    assert client.get("/internal/ping").status_code == 200


def test_requests_that_wait_for_the_base_leave_the_threads_to_others(client, opening):
    with ThreadPoolExecutor(THREADS + 6) as pool:
        waiting = [pool.submit(client.get, "/api/bases") for _ in range(THREADS + 5)]
        try:
            assert pool.submit(client.get, "/api/jobs").result(timeout=20).status_code == 200
        finally:
            opening.jobs.is_ready.set()
        assert {request.result(timeout=60).status_code for request in waiting} == {200}


def test_costly_requests_have_turns_and_those_too_many_are_refused():
    turns, inside, most = RequestTurns(max_waiting=3), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with turns.take():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async def work_twice() -> list[object]:
        answers = await asyncio.gather(*(work() for _ in range(5)), return_exceptions=True)
        await work()  # the turns are free again
        return answers

    with ThreadPoolExecutor(1) as pool:  # the browser of other tests has a running event loop in this thread
        answers = pool.submit(lambda: asyncio.run(work_twice())).result()
    assert most == 1
    assert [answer.status for answer in answers if isinstance(answer, ApiError)] == [429, 429]


def test_images_to_upscale_are_bounded_together(client, state, monkeypatch):
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"max_picture_pixels": 64 * 64}))
    file = {"data": to_base64(Image.new("RGB", (64, 64), "red")), "name": "a.png"}

    def upscale(count: int) -> int:
        fields = {"imageList": [file] * count, "upscaler_1": "Nearest"}
        return client.post("/sdapi/v1/extra-batch-images", json=fields).status_code

    assert upscale(8) == 200  # eight of 128 x 128 have as many pixels as 32 pictures of the largest size
    assert upscale(9) == 413


@pytest.mark.parametrize("name", ["tiny", "copy"])
def test_a_base_that_is_closed_is_freed(tmp_path, tiny, name):
    if name == "copy":
        velatura.save(tiny, tmp_path / "copy.safetensors")
    settings = ServerSettings.of(library=(tmp_path,), out=tmp_path / "out")
    models = Models(settings, Folders(settings))
    opened = weakref.ref(models.base(name))
    counter = models.token_counter()
    models.close()
    gc.collect()
    assert opened() is None
    assert models.token_counter() is counter  # lengths of prompts are still counted


def test_a_base_that_cannot_be_opened_ends_the_server_with_a_line(client, state, monkeypatch):
    def fail():
        raise MemoryError

    resources = JobResources(state.settings, state.folders, state.jobs, state.pictures, state.inputs, state.models)
    monkeypatch.setattr(state.models, "base", fail)
    failures = []
    JobWorker("device", resources, failures.append).run()
    assert "MemoryError" in str(failures[0])


def test_a_server_that_another_thread_stops_leaves_its_folder_free(tmp_path):
    """The application is made in one thread, and its event loop may be run in another one."""
    settings = ServerSettings.of(out=tmp_path, library=())
    with ThreadPoolExecutor(1) as threads:
        threads.submit(state_module.ServerState(settings).stop).result()
    state_module.ServerState(settings).stop()
