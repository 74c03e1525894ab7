"""Twenty kills at random moments lose nothing: the queue goes on, and every picture is there once."""

import io
import random
import sqlite3
import time

import httpx2
import pytest
from PIL import Image, ImageChops

import velatura
from tests.server.test_process import READY_SECONDS, finish, no_process_is_left, start, until

KILLS, PAINTINGS, STEPS = 20, 30, 100
__all__ = ["no_process_is_left"]  # which pytest runs


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as the server's process has
def test_kills_at_random_moments_lose_nothing(tmp_path, tiny):
    chance = random.Random(0)
    ids: list[str] = []
    for kill in range(KILLS + 1):
        begin = time.monotonic()
        process, url = start(tmp_path)
        with httpx2.Client(base_url=url, timeout=READY_SECONDS) as client:
            if not ids:
                plan = {
                    "steps": STEPS,
                    "snapshot_every": 1,
                    "keep_last": 2,
                    "validation_pictures": 0,
                    "loss_limit": None,
                }
                train = {"kind": "train", "overlay": {"kind": "lora", "rank": 1}, "dataset": "neon", "plan": plan}
                requests = [train, *({"kind": "paint", "recipe": recipe(seed)} for seed in range(PAINTINGS))]
                ids = [client.post("/api/jobs", json=request).json()["id"] for request in requests]
            if kill < KILLS:
                until(lambda: client.get("/api/system").json()["base"], process)
                # Within twice the time that a start takes, which on a busy machine grows as a job's time does: of five
                # kills in a row one is late enough for the job to store something, without which it is given up
                time.sleep(chance.uniform(0, 2 * (time.monotonic() - begin)))
                process.kill()
                process.communicate()
                with sqlite3.connect(tmp_path / "output" / "velatura.sqlite") as database:
                    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                continue
            for job_id in ids:  # each has the time of a start on a busy machine
                until(lambda job_id=job_id: client.get(f"/api/jobs/{job_id}").json()["ended"], process)
            jobs = [client.get(f"/api/jobs/{job_id}").json() for job_id in ids]
            assert [job["error"] for job in jobs if job["state"] != "done"] == []
            assert jobs[0]["result"]["steps"] == STEPS
            pictures = client.get("/api/pictures", params={"limit": 500}).json()["pictures"]
            assert len(pictures) == PAINTINGS
            for picture in pictures[:3]:
                image = Image.open(io.BytesIO(client.get(f"/api/pictures/{picture['id']}/file").content))
                alone = velatura.generate(tiny, velatura.Recipe(**picture["recipe"])).image
                assert ImageChops.difference(image, alone).getbbox() is None
        process.terminate()
        assert finish(process)[0] == 0


def recipe(seed):
    return {"prompt": "a red house", "steps": 4, "seed": seed}
