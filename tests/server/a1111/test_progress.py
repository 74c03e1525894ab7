"""What is running: progress with previews, interrupt, skip, and the ids of tasks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.server.a1111.conftest import SMALL, to_image

STATE_FIELDS = {
    *("skipped", "interrupted", "stopping_generation", "job", "job_count"),
    *("job_timestamp", "job_no", "sampling_step", "sampling_steps"),
}
LONG = {**SMALL, "prompt": "a red house", "steps": 1000}


@contextmanager
def running(a1111, **fields):
    """Run a long request in another thread, until it has taken a step; it is interrupted at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(a1111.post, "txt2img", **{**LONG, **fields})
        try:
            while not a1111.get("progress")["state"]["sampling_step"]:
                assert not future.done(), future.result()
            yield future
        finally:
            while not future.done():
                a1111.post("interrupt")


def test_nothing_runs(a1111):
    progress = a1111.get("progress")
    assert (progress["progress"], progress["eta_relative"], progress["current_image"]) == (0, 0, None)
    assert progress["state"].keys() == STATE_FIELDS
    assert progress["state"]["job_count"] == 0
    assert (a1111.post("interrupt"), a1111.post("skip")) == ({}, None)


def test_a_running_request_is_watched_and_interrupted(a1111, client):
    with running(a1111, n_iter=2, force_task_id="task(mine)") as request:
        progress = a1111.get("progress")
        assert 0 < progress["progress"] < 1
        assert progress["eta_relative"] > 0
        state = progress["state"]
        assert (state["job_count"], state["job_no"], state["sampling_steps"]) == (2, 0, 1000)
        assert state["job"] == "Batch 1 out of 2"
        assert to_image(progress["current_image"]).width > 0
        assert a1111.get("progress", skip_current_image=True)["current_image"] is None
        question = {"id_task": "task(mine)", "id_live_preview": -1}
        task = client.post("/internal/progress", json=question).json()
        assert (task["active"], task["queued"], task["completed"]) == (True, False, False)
        assert task["live_preview"].startswith("data:image/")
    assert request.result()["images"] == []
    task = client.post("/internal/progress", json={"id_task": "task(mine)"}).json()
    assert (task["active"], task["completed"]) == (False, True)


def test_a_skipped_picture_is_left_out_and_the_next_one_is_made(a1111):
    with running(a1111, n_iter=2) as request:
        a1111.post("skip")
        while a1111.get("progress")["state"]["job_count"] == 2:
            if a1111.get("progress")["state"]["sampling_step"] < 900 and request.running():
                break
    assert len(request.result()["images"]) < 2


def test_a_waiting_task_is_queued(a1111, client, state):
    with running(a1111), ThreadPoolExecutor(1) as pool:
        second = pool.submit(a1111.post, "txt2img", force_task_id="task(second)", **SMALL)
        while not state.tasks.get("task(second)"):
            assert not second.done(), second.result()
        pending = client.get("/internal/pending-tasks").json()
        assert pending == {"size": 1, "tasks": ["task(second)"]}
        answer = client.post("/internal/progress", json={"id_task": "task(second)"}).json()
        assert (answer["active"], answer["queued"]) == (False, True)
        while state.jobs.queue.get(state.tasks["task(second)"][0]).state == "queued":
            a1111.post("interrupt")
    assert len(second.result()["images"]) <= 1


@pytest.mark.parametrize("task", [None, "", "task(unknown)"])
def test_an_unknown_task_waits(client, task):
    answer = client.post("/internal/progress", json={"id_task": task}).json()
    assert (answer["active"], answer["queued"], answer["completed"]) == (False, False, False)


def test_a_request_that_the_servers_end_puts_off_is_told_so(state):
    from velatura.server.a1111.answers import check_finished
    from velatura.server.errors import ApiError

    job = state.jobs.queue.list(limit=1)[0]
    check_finished(job)
    with pytest.raises(ApiError, match="goes on when it is started again"):
        check_finished(job.model_copy(update={"state": "queued"}))
