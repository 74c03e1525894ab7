"""The queue: order, priorities, cancel, skip, batches in common, limits, and events that can be replayed."""

import json
import time

import pytest

import velatura
from tests.server.conftest import open_client, paint, wait_for
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.database import Database
from velatura.server.jobs.events import EventLog
from velatura.server.jobs.job import JobProgress
from velatura.server.jobs.queue import MAX_STARTS, POISON, JobQueue
from velatura.server.jobs.worker import OTHER_VERSION
from velatura.server.settings import ServerSettings

SLOW = {"kind": "paint", "recipe": {"prompt": "a house", "steps": 1000, "seed": 1}}


@pytest.fixture
def queue(tmp_path):
    return JobQueue(Database(tmp_path / "jobs.sqlite"))


def until_it_paints(state, job_id):
    while not state.jobs.events.latest(job_id, "step"):
        time.sleep(0.01)


def test_jobs_are_taken_by_priority_and_then_by_age(queue):
    first, urgent, second = (queue.add("paint", "device", {}, priority) for priority in (0, 5, 0))
    taken = [queue.take("device").id for _ in range(3)]
    assert taken == [urgent.id, first.id, second.id]
    assert queue.take("device") is None


def test_a_job_is_taken_once_and_only_by_its_lane(queue):
    job = queue.add("pull", "files", {})
    assert queue.take("device") is None
    assert queue.take_job(job.id).state == "running"
    assert queue.take_job(job.id) is None


def test_jobs_that_ran_when_the_server_ended_are_queued_again_before_later_ones(tmp_path):
    queue = JobQueue(Database(tmp_path / "jobs.sqlite"))
    running, waiting = queue.add("paint", "device", {}), queue.add("paint", "device", {})
    queue.take("device")
    again = JobQueue(Database(tmp_path / "jobs.sqlite"))
    assert [job.id for job in again.recover()[0]] == [running.id]
    assert [again.take("device").id, again.take("device").id] == [running.id, waiting.id]


def start_again(tmp_path, times):
    """Start the job of a queue, or a new one, as often as the server ends; return the queue and the job."""
    for _ in range(times):
        queue = JobQueue(Database(tmp_path / "jobs.sqlite"))
        queue.recover()
        job = queue.take("device") or (queue.add("paint", "device", {}) and queue.take("device"))
        queue.save_progress(job.id, JobProgress(done=1, total=2, stage="painting"))
    return queue, job


def test_a_job_that_ends_the_server_again_and_again_fails_also_after_its_first_step(tmp_path):
    _, job = start_again(tmp_path, MAX_STARTS)
    _, [ended] = JobQueue(Database(tmp_path / "jobs.sqlite")).recover()
    assert (ended.id, ended.state, ended.error, ended.progress.done) == (job.id, "failed", POISON, 1)


def test_a_job_of_which_something_is_stored_may_be_started_again(tmp_path):
    queue, job = start_again(tmp_path, MAX_STARTS)
    queue.reset_starts(job.id)
    _, again = start_again(tmp_path, MAX_STARTS - 1)
    assert (again.id, again.starts) == (job.id, MAX_STARTS)


def test_an_orderly_end_of_the_server_is_no_start(queue):
    job = queue.add("paint", "device", {})
    for _ in range(MAX_STARTS):
        queue.take("device")
        queue.put_back(job.id)
    assert (queue.get(job.id).state, queue.get(job.id).starts) == ("queued", 0)
    queue.take("device")
    queue.reset_starts(job.id)
    queue.put_back(job.id)
    assert queue.take("device").starts == 1  # so that it may be killed as often as at first


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "paint", "recipe": {"prompt": "a house", "steps": 2}},
        {
            "kind": "train",
            "overlay": {"kind": "lora", "rank": 1},
            "dataset": "neon",
            "plan": {"steps": 2, "validation_pictures": 0, "snapshot_every": 1, "end_sheet": False},
        },
    ],
    ids=["a picture", "a snapshot"],
)
def test_what_a_job_stores_resets_its_starts(client, state, request_):
    running = client.post("/api/jobs", json=SLOW).json()["id"]
    job_id = client.post("/api/jobs", json=request_).json()["id"]
    state.database.change("UPDATE jobs SET starts = 3 WHERE id = ?", (job_id,))
    client.post(f"/api/jobs/{running}/cancel")
    job = wait_for(client, job_id)
    assert (job["state"], job["starts"]) == ("done", 1)
    assert [event.data for event in state.jobs.events.after(0, job_id) if event.type == "started"] == [{"starts": 4}]


def test_a_job_of_another_version_fails_with_the_reason(client, state):
    for lane in ("device", "files"):
        job = wait_for(client, state.jobs.queue.add("dream", lane, {"kind": "dream"}).id)
        assert (job["state"], job["error"]) == ("failed", OTHER_VERSION.model_dump())


def test_a_job_cancelled_while_it_ran_is_cancelled_after_a_crash(tmp_path):
    queue = JobQueue(Database(tmp_path / "jobs.sqlite"))
    job = queue.add("paint", "device", {})
    queue.take("device")
    queue.cancel(job.id)
    assert queue.get(job.id).state == "running"
    JobQueue(Database(tmp_path / "jobs.sqlite")).recover()
    assert queue.get(job.id).state == "cancelled"


def test_events_are_read_alike_from_memory_and_from_the_database(tmp_path):
    database = Database(tmp_path / "jobs.sqlite")
    log = EventLog(database)
    for number in range(5):
        log.publish("a" if number % 2 else "b", "log", text=str(number))
    restarted = EventLog(database)
    assert restarted.last_id == log.last_id == 5
    for last_id, job in ((0, None), (2, None), (0, "a"), (3, "a"), (5, None), (9, None)):
        assert restarted.after(last_id, job) == log.after(last_id, job)
    assert [event.data["text"] for event in log.after(0, "a")] == ["1", "3"]


def test_a_running_job_is_cancelled_and_the_next_one_runs(client, state):
    job_id = client.post("/api/jobs", json=SLOW).json()["id"]
    until_it_paints(state, job_id)
    client.post(f"/api/jobs/{job_id}/cancel")
    job = wait_for(client, job_id)
    assert (job["state"], job["result"]) == ("cancelled", {})
    assert client.post(f"/api/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert paint(client)["state"] == "done"


def test_a_waiting_job_is_cancelled_at_once(client, state):
    running = client.post("/api/jobs", json=SLOW).json()["id"]
    waiting = client.post("/api/jobs", json=SLOW).json()["id"]
    assert client.post(f"/api/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    client.post(f"/api/jobs/{running}/cancel")
    assert [event.type for event in state.jobs.events.after(0, waiting)] == ["queued", "cancelled"]
    wait_for(client, running)


def test_skip_leaves_out_the_picture_that_is_painted(client, state):
    recipes = [SLOW["recipe"], {"prompt": "a house", "steps": 2, "seed": 2}]
    job_id = client.post("/api/jobs", json={"kind": "paint", "recipes": recipes}).json()["id"]
    until_it_paints(state, job_id)
    assert client.post(f"/api/jobs/{job_id}/skip").status_code == 200
    job = wait_for(client, job_id)
    assert (job["state"], job["result"]["skipped"], len(job["result"]["pictures"])) == ("done", [0], 1)
    assert client.post(f"/api/jobs/{job_id}/skip").status_code == 409


def read_events(client, url, **headers):
    with client.stream("GET", url, headers=headers) as stream:
        text = stream.read().decode()
    blocks = [dict(line.split(": ", 1) for line in block.splitlines() if ": " in line) for block in text.split("\n\n")]
    return [(int(block["id"]), block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def test_events_of_a_job_are_replayed_after_the_last_one_known(client):
    job = paint(client)
    url = f"/api/jobs/{job['id']}/events"
    events = read_events(client, url)
    assert [kind for _, kind, _ in events if kind != "step"] == ["queued", "started", "picture", "done"]
    known = events[1][0]
    assert read_events(client, url, **{"Last-Event-ID": str(known)}) == events[2:]
    assert client.get(url, headers={"Last-Event-ID": str(events[-1][0])}).status_code == 204
    assert client.get("/api/jobs/0000/events").status_code == 404


def test_waiting_jobs_that_fit_are_painted_in_one_batch(tmp_path, models, tiny):
    settings = ServerSettings.of(library=(models,), out=tmp_path, batch=3)
    prompts = ["a house", "a cat <lora:ink:0.5>", "a tree", "a boat"]
    with open_client(settings) as client:
        recipes = [{"prompt": prompt, "steps": 2, "seed": seed} for seed, prompt in enumerate(prompts)]
        first = client.post("/api/jobs", json={"kind": "paint", "recipe": SLOW["recipe"]}).json()["id"]
        ids = [client.post("/api/jobs", json={"kind": "paint", "recipe": recipe}).json()["id"] for recipe in recipes]
        client.post(f"/api/jobs/{first}/cancel")
        jobs = [wait_for(client, job_id) for job_id in ids]
        pictures = [client.get(f"/api/pictures/{job['result']['pictures'][0]}").json() for job in jobs]
        starts = [job["started"] for job in jobs]
        ends = [job["ended"] for job in jobs]
    # the first takes the two others without overlays with it; the second has one, and waits
    assert max(starts[0], starts[2], starts[3]) < min(ends)
    assert starts[1] > ends[3]
    library = velatura.Library(models)
    for recipe, picture in zip(recipes, pictures, strict=True):
        expected = velatura.generate(tiny, velatura.Recipe(**recipe), library=library)
        assert velatura.Recipe(**picture["recipe"]) == expected.recipe


def test_a_job_that_was_started_before_waits_for_its_own_turn(tmp_path, models):
    settings = ServerSettings.of(library=(models,), out=tmp_path, batch=3)
    with open_client(settings) as client:
        queue = client.app.state.velatura.jobs.queue
        first = client.post("/api/jobs", json={"kind": "paint", "recipe": SLOW["recipe"]}).json()["id"]
        recipe = {"prompt": "a house", "steps": 2, "seed": 1}
        ids = [client.post("/api/jobs", json={"kind": "paint", "recipe": recipe}).json()["id"] for _ in range(2)]
        assert queue.take_job(ids[1]) is not None
        queue.put_back(ids[1])
        client.post(f"/api/jobs/{first}/cancel")
        jobs = [wait_for(client, job_id) for job_id in ids]
    assert jobs[1]["started"] >= jobs[0]["ended"]  # it may have pictures already, which a batch in common would repeat


def test_too_many_jobs_are_refused(tmp_path, models):
    settings = ServerSettings.of(library=(models,), out=tmp_path, max_queued_jobs=2)
    with open_client(settings) as client:
        statuses = [client.post("/api/jobs", json=SLOW).status_code for _ in range(5)]
        ids = [job["id"] for job in client.get("/api/jobs").json()["jobs"]]
        for job_id in ids:
            client.post(f"/api/jobs/{job_id}/cancel")
    assert statuses[:2] == [202, 202]
    assert statuses[-1] == 429


def test_a_training_cancelled_before_it_began_leaves_no_folder(client, state):
    running = client.post("/api/jobs", json=SLOW).json()["id"]
    train = {"kind": "train", "overlay": {"kind": "lora", "rank": 1}, "dataset": "neon", "name": "unwanted"}
    waiting = client.post("/api/jobs", json=train).json()
    assert (state.folders.runs / "unwanted").is_dir()
    client.post(f"/api/jobs/{waiting['id']}/cancel")
    client.post(f"/api/jobs/{running}/cancel")
    assert not (state.folders.runs / "unwanted").exists()
    wait_for(client, running)


@pytest.mark.parametrize(
    "request_", [{"kind": "crop", "name": "half", "pixels": 32}, {"kind": "check"}], ids=["crop", "check"]
)
def test_work_on_a_dataset_ends_after_the_picture_where_it_is_cancelled(client, state, request_, monkeypatch):
    seen = []

    def step(context, done, total, stage, **_):
        seen.append((done, total, stage))
        state.jobs.cancel(context.job.id)

    monkeypatch.setattr(JobContext, "step", step)
    job_id = client.post("/api/jobs", json={"dataset": "neon", **request_}).json()["id"]
    assert wait_for(client, job_id)["state"] == "cancelled"
    assert [(done, stage) for done, _, stage in seen] == [(1, "cropping" if request_["kind"] == "crop" else "checking")]
    assert seen[0][1] > 1
    assert not (state.folders.datasets / "half").exists()
