"""Jobs on a cluster: equal to those of the server's own worker, stopped and skipped alike, and lost by no worker's end.

Here a cluster of this process stands in for Ray: what goes to an actor and back is pickled, as Ray does.
"""

from __future__ import annotations

import base64
import io
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import velatura
from tests.server.conftest import HOST, wait_for
from velatura.errors import BadDataset, BadSettings, ProcessFailed, WorkerLost, WrongBase
from velatura.server.app import create_app
from velatura.server.cluster.actor import JobActor
from velatura.server.cluster.messages import ActorMessage
from velatura.server.cluster.node import TOKEN_FILE, NodeSetup
from velatura.server.cluster.worker import MAX_LOST_STARTS
from velatura.server.folders import Folders
from velatura.server.jobs.queue import MAX_STARTS
from velatura.server.jobs.worker import OTHER_VERSION
from velatura.server.settings import ServerSettings
from velatura.server.state import ServerState

LONG = {"kind": "paint", "recipe": {"prompt": "a house", "steps": 1000, "seed": 1}}


class LocalActor:
    """An actor in this process, which a test can lose."""

    def __init__(self, actor: JobActor) -> None:
        self.actor, self.is_lost = actor, False

    def call(self, method: str, *arguments: object, is_abandoned: Callable[[], bool] | None = None) -> Any:  # noqa: ARG002
        if self.is_lost:
            raise WorkerLost("killed")
        return pickle.loads(pickle.dumps(getattr(self.actor, method)(*pickle.loads(pickle.dumps(arguments)))))

    def end(self) -> None:
        if hasattr(self.actor, "_resources"):
            self.actor._resources.service.is_stopping.set()  # what a killed process does not need
            self.actor.close()


class LocalCluster:
    """Two devices of this process."""

    def __init__(self) -> None:
        self.slots, self.actors = 2, list[LocalActor]()

    def start_actor(self, actor_class: type) -> LocalActor:
        self.actors.append(LocalActor(actor_class()))
        return self.actors[-1]

    def actor_of(self, job_id: str) -> LocalActor:
        """Return the actor that runs a job."""

        def runs(actor: LocalActor) -> bool:
            job = getattr(actor.actor, "_job", None)
            return job is not None and job.id == job_id and not actor.is_lost

        return until(lambda: next(filter(runs, self.actors), None))


@pytest.fixture(scope="module")
def cluster() -> LocalCluster:
    return LocalCluster()


@pytest.fixture(scope="module")
def client(cluster: LocalCluster, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A running server whose pictures are painted by two actors."""
    settings = ServerSettings.of(library=(models,), out=tmp_path_factory.mktemp("out"), batch=1)
    app = create_app(settings, cluster)
    with TestClient(app, base_url=f"http://{HOST}", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def state(client: TestClient) -> ServerState:
    return client.app.state.velatura


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return result


def submit(client: TestClient, **request: Any) -> str:
    answer = client.post("/api/jobs", json=request)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def until_it_paints(state: ServerState, job_id: str) -> None:
    until(lambda: state.jobs.events.latest(job_id, "step"))


def types_of(state: ServerState, job_id: str) -> list[str]:
    return [event.type for event in state.jobs.events.after(0, job_id)]


def pictures_of(client: TestClient, job: dict[str, Any]) -> list[Image.Image]:
    ids = job["result"]["pictures"]
    return [Image.open(io.BytesIO(client.get(f"/api/pictures/{number}/file").content)) for number in ids]


def test_pictures_are_those_that_generate_makes(client, state, models, tiny):
    prompt = "a red house <lora:ink:0.8>"
    recipe = {"prompt": prompt, "steps": 3, "seed": 7, "hires_steps": 3}
    job = wait_for(client, submit(client, kind="paint", recipe=recipe, count=2))
    assert (job["state"], job["progress"]["done"]) == ("done", 6)
    assert any("hires_steps changes nothing" in warning for warning in job["warnings"])
    assert types_of(state, job["id"])[:2] == ["queued", "started"]
    assert types_of(state, job["id"]).count("started") == 1
    for seed, picture in zip((7, 8), pictures_of(client, job), strict=True):
        expected = velatura.generate(tiny, prompt, steps=3, seed=seed, library=velatura.Library(models))
        assert picture.tobytes() == expected.image.tobytes()
        assert picture.info["parameters"] == expected.recipe.replace(hires_steps=3).infotext()
    stored = state.pictures.of_job(job["id"])[0]
    assert (stored.recipe["base"], len(stored.effects)) == ("tiny", 1)
    assert client.get("/api/pictures", params={"search": "red house", "seed": 8}).json()["pictures"]


def test_images_of_requests_reach_the_actor_and_do_not_stay_there(client, cluster, tiny):
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    mask = Image.linear_gradient("L").resize((64, 64))

    def encode(picture: Image.Image) -> str:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    recipe = {"prompt": "a cat", "steps": 4, "seed": 3, "denoising": 0.5}
    job = wait_for(client, submit(client, kind="paint", recipe=recipe, image=encode(image), mask=encode(mask)))
    expected = velatura.generate(tiny, velatura.Recipe(**recipe), init_image=velatura.InitImage(image, mask))
    assert job["state"] == "done", job
    assert [picture.tobytes() for picture in pictures_of(client, job)] == [expected.image.tobytes()]
    actors = [actor.actor for actor in cluster.actors if hasattr(actor.actor, "_resources")]
    assert [path for actor in actors for path in actor._resources.folders.inputs.glob("*")] == []


def test_a_grid_has_its_page_beside_it(client, state):
    recipe = {"prompt": "a {what}", "steps": 2, "seed": 3}
    axis = {"name": "what", "values": ["house", "cat"]}
    job = wait_for(client, submit(client, kind="grid", recipe=recipe, x=axis, keeps_pictures=True))
    assert (job["state"], len(job["result"]["pictures"])) == ("done", 3)
    grid, *_ = state.pictures.of_job(job["id"])
    assert b"<html" in state.pictures.path(grid).with_suffix(".html").read_bytes()


def test_a_picture_that_cannot_be_stored_fails_its_job_alone(client, monkeypatch):
    def fail(*_: object) -> None:
        raise velatura.BadFile("the disk is full: make room")

    monkeypatch.setattr("velatura.server.jobs.pictures.PictureStore.save_file", fail)
    recipes = [{"prompt": "a cat", "steps": 2, "seed": 2}, LONG["recipe"]]
    job = wait_for(client, submit(client, kind="paint", recipes=recipes))
    assert (job["state"], job["error"]["message"]) == ("failed", "the disk is full: make room")
    monkeypatch.undo()
    assert wait_for(client, submit(client, kind="paint", recipe=recipes[0]))["state"] == "done"


def test_jobs_run_side_by_side_and_each_is_cancelled_by_itself(client, state):
    first, second = submit(client, **LONG), submit(client, **LONG)
    until_it_paints(state, first)
    until_it_paints(state, second)
    workers = client.get("/api/system").json()["workers"]
    assert {worker["job"] for worker in workers} == {first, second}
    assert client.get("/sdapi/v1/progress").json()["current_image"]
    client.post(f"/api/jobs/{second}/cancel")
    assert wait_for(client, second)["state"] == "cancelled"
    assert client.get(f"/api/jobs/{first}").json()["state"] == "running"
    client.post("/sdapi/v1/interrupt")
    assert wait_for(client, first)["state"] == "cancelled"


def test_a_picture_is_skipped(client, state):
    recipes = [LONG["recipe"], {"prompt": "a cat", "steps": 2, "seed": 2}]
    job_id = submit(client, kind="paint", recipes=recipes)
    until_it_paints(state, job_id)
    assert client.post(f"/api/jobs/{job_id}/skip").status_code == 200
    job = wait_for(client, job_id)
    assert (job["state"], job["result"]["skipped"], len(job["result"]["pictures"])) == ("done", [0], 1)


def test_a_job_goes_on_with_another_worker_when_its_own_ends(client, state, cluster):
    recipes = [{"prompt": "a cat", "steps": 2, "seed": 2}, LONG["recipe"]]
    job_id = submit(client, kind="paint", recipes=recipes)
    until(lambda: "picture" in types_of(state, job_id))
    before = len(cluster.actors)
    cluster.actor_of(job_id).is_lost = True
    until(lambda: "interrupted" in types_of(state, job_id))
    cluster.actor_of(job_id)
    until(lambda: client.get(f"/api/jobs/{job_id}").json()["progress"]["total"] == 1000)  # one picture is there
    until(lambda: len(cluster.actors) == before + 1)
    client.post(f"/api/jobs/{job_id}/cancel")
    job = wait_for(client, job_id)
    assert ["ended while this job ran" in warning for warning in job["warnings"]] == [True]
    assert types_of(state, job_id).count("interrupted") == 1
    assert len(state.pictures.of_job(job_id)) == 1


def test_a_job_that_ends_its_workers_after_a_step_again_and_again_fails(client, state, monkeypatch):
    def poll(actor: JobActor, _: object) -> list[ActorMessage]:
        if actor in lost:
            raise WorkerLost("out of memory")
        lost.add(actor)
        return [ActorMessage("step", {"done": 1, "total": 2, "stage": "painting"})]

    lost = set[JobActor]()
    monkeypatch.setattr(JobActor, "begin", lambda *_: None)
    monkeypatch.setattr(JobActor, "poll", poll)
    job = wait_for(client, submit(client, **LONG))
    assert job["progress"]["done"] == 1
    assert (job["state"], job["error"]["code"], job["starts"]) == ("failed", "interrupted", MAX_STARTS)
    monkeypatch.undo()
    recipe = {"prompt": "a cat", "steps": 2, "seed": 2}
    assert wait_for(client, submit(client, kind="paint", recipe=recipe))["state"] == "done"


def test_what_an_actor_stores_resets_the_starts_of_its_job(client, state, monkeypatch):
    def poll(*_: object) -> list[ActorMessage]:
        return [ActorMessage("stored", {}), ActorMessage("done", {}), ActorMessage("end", {})]

    monkeypatch.setattr(JobActor, "begin", lambda *_: None)  # whose messages a later job would get
    monkeypatch.setattr(JobActor, "poll", poll)
    take_job = state.jobs.queue.take_job

    def take_late(job_id: str) -> Any:
        state.database.change("UPDATE jobs SET starts = 3 WHERE id = ?", (job_id,))
        return take_job(job_id)

    monkeypatch.setattr(state.jobs.queue, "take_job", take_late)
    job = wait_for(client, submit(client, kind="paint", recipe={"prompt": "a cat", "steps": 1}))
    assert (job["state"], job["starts"]) == ("done", 1)


def test_a_job_ends_whose_files_an_actor_cannot_remove(client, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("velatura.server.jobs.pictures.PictureStore.delete", fail)
    job = wait_for(client, submit(client, kind="paint", recipe={"prompt": "a cat", "steps": 1}))
    assert job["state"] == "done"
    until(lambda: all(worker.get("job") != job["id"] for worker in client.get("/api/system").json()["workers"]))


def test_an_error_names_the_file_that_a_machine_does_not_see(client, monkeypatch):
    recipe = {"prompt": "a house <lora:nobody:1>", "steps": 2}
    job = wait_for(client, submit(client, kind="paint", recipe=recipe))
    assert (job["state"], job["error"]["code"]) == ("failed", "unknown_name")
    assert "does not see" not in job["error"]["message"]
    monkeypatch.setattr(JobActor, "find_missing", lambda _, paths: paths)  # as on a machine without the file
    recipe = {"prompt": "a house <lora:inkk:1>", "steps": 2}
    job = wait_for(client, submit(client, kind="paint", recipe=recipe))
    assert "ink.safetensors is in the server's library, and" in job["error"]["message"]


def test_jobs_of_other_kinds_run_here(client, state, cluster):
    actors = {id(actor): actor.actor._job for actor in cluster.actors}
    job = wait_for(client, submit(client, kind="convert", name="ink2", overlay="ink"))
    assert job["state"] == "done"
    assert {id(actor): actor.actor._job for actor in cluster.actors} == actors


def test_a_job_of_another_version_fails_here(client, state):
    job = wait_for(client, state.jobs.queue.add("dream", "device", {"kind": "dream"}).id)
    assert (job["state"], job["error"]) == ("failed", OTHER_VERSION.model_dump())


def test_a_server_that_ends_queues_what_ran(models, tmp_path):
    settings = ServerSettings.of(library=(models,), out=tmp_path / "out", batch=1)
    with TestClient(create_app(settings, LocalCluster()), base_url=f"http://{HOST}") as client:
        job_id = submit(client, **LONG)
        until_it_paints(client.app.state.velatura, job_id)
    with TestClient(create_app(settings), base_url=f"http://{HOST}") as client:  # without a cluster it runs here
        until(lambda: client.get(f"/api/jobs/{job_id}").json()["state"] == "running")
        assert "interrupted" in types_of(client.app.state.velatura, job_id)
        client.post(f"/api/jobs/{job_id}/cancel")
        assert wait_for(client, job_id)["state"] == "cancelled"


def test_a_server_without_a_machine_that_can_serve_ends_with_the_reason(models, tmp_path, monkeypatch):
    monkeypatch.setattr("velatura.server.cluster.node.version", lambda _: "0.0.1")
    setup = NodeSetup.of_server
    monkeypatch.setattr(NodeSetup, "of_server", lambda *words: setup(*words)._replace(version="9.9"))
    app = create_app(ServerSettings.of(library=(models,), out=tmp_path / "out"), LocalCluster())
    ended = []
    app.state.velatura.on_failure = lambda: ended.append(True)
    with TestClient(app, base_url=f"http://{HOST}"):
        until(lambda: ended)
    with pytest.raises(BadSettings, match=r"has velatura 0\.0\.1, and the server has 9\.9: install the same"):
        raise app.state.velatura.failure


def test_a_server_whose_cluster_starts_no_worker_ends_with_the_reason(models, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        starts.append(True)
        raise ConnectionError("the channel is closed\nfor ever")

    starts = list[bool]()
    monkeypatch.setattr(LocalCluster, "start_actor", fail)
    monkeypatch.setattr("velatura.server.cluster.worker.RESTART_SECONDS", 0.0)
    app = create_app(ServerSettings.of(library=(models,), out=tmp_path / "out"), LocalCluster())
    with TestClient(app, base_url=f"http://{HOST}"):
        failure = until(lambda: app.state.velatura.failure)
    assert isinstance(failure, ProcessFailed)
    assert "ended before their base was open (the channel is closed): Ray must be running" in str(failure)
    assert len(starts) == 2 * MAX_LOST_STARTS


def test_workers_live_on_after_errors_of_the_queue_and_of_the_end_of_an_actor(client, state, cluster, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        failures.append(threading.current_thread())
        raise sqlite3.OperationalError("database is locked")

    failures = list[threading.Thread]()
    end = LocalActor.end
    monkeypatch.setattr(LocalActor, "end", lambda actor: (end(actor), fail()))
    for module in ("velatura.server.cluster.worker", "velatura.server.jobs.worker"):
        monkeypatch.setattr(f"{module}.IDLE_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(state.jobs.queue, "take", fail)
        state.jobs.queue.notify()
        until(lambda: len({*failures}) == 4)  # two of the cluster, and the server's own two
    job_id = submit(client, **LONG)
    until_it_paints(state, job_id)
    before = len(failures)
    cluster.actor_of(job_id).is_lost = True
    until(lambda: "interrupted" in types_of(state, job_id))
    client.post(f"/api/jobs/{job_id}/cancel")
    assert wait_for(client, job_id)["state"] == "cancelled"
    until(lambda: len(failures) > before)
    assert all(worker.is_alive() for worker in state._workers)


def test_a_machine_with_another_base_is_left_out(models, tmp_path, monkeypatch):
    prepare = JobActor.prepare
    monkeypatch.setattr(JobActor, "prepare", lambda self, setup: prepare(self, setup)._replace(hashes=("0", "", "")))
    app = create_app(ServerSettings.of(library=(models,), out=tmp_path / "out"), LocalCluster())
    with TestClient(app, base_url=f"http://{HOST}"):
        failure = until(lambda: app.state.velatura.failure)
    assert isinstance(failure, WrongBase)
    assert "needs the same files under the same path" in str(failure)


def test_a_machine_is_refused_that_does_not_see_the_folders(models, tmp_path):
    settings = ServerSettings.of(
        library=(models,), out=tmp_path / "out", listen=True, token="secret", base=str(models / "x.safetensors")
    )
    setup = NodeSetup.of_server(settings, Folders(settings))
    setup.check()
    assert (setup.settings.token, setup.settings.listen) == (None, False)
    (tmp_path / "out" / TOKEN_FILE).write_text("of another server")
    with pytest.raises(BadDataset, match="is another folder than the server's"):
        setup.check()
    folders = SimpleNamespace(**vars(setup.folders) | {"library": (tmp_path / "models",)})
    with pytest.raises(BadDataset, match=r"models is not on .*network drive"):
        setup._replace(folders=folders).check()
