"""Jobs of all kinds but painting, each through the API on the tiny base."""

import time

import pytest

import velatura
from tests.server.conftest import paint, wait_for
from velatura.training.run.summary import read_run

PLAN = {"steps": 2, "batch_size": 1, "validation_pictures": 0, "snapshot_every": 1, "end_sheet": False}


def run_job(client, **request):
    answer = client.post("/api/jobs", json=request)
    assert answer.status_code == 202, answer.text
    job = wait_for(client, answer.json()["id"])
    assert job["state"] == "done", job["error"]
    return job


OVERLAYS = {
    "hypernet": {"layers": [1, 1]},
    "embedding": {"vectors": 2},
    "lora": {"rank": 2},
    "dreambooth": {},
}


@pytest.mark.parametrize("kind", OVERLAYS)
def test_a_trained_overlay_can_be_used_at_once(client, state, kind):
    plan = PLAN | ({"template": "style_filewords"} if kind == "embedding" else {})
    overlay = {"kind": kind, **OVERLAYS[kind]}
    job = run_job(client, kind="train", overlay=overlay, dataset="neon", name=f"my-{kind}", plan=plan)
    assert job["result"]["steps"] == 2
    assert (state.folders.runs / job["result"]["run"] / job["result"]["file"]).is_file()
    losses = [event.data["loss"] for event in state.jobs.events.after(0, job["id"]) if "loss" in event.data]
    assert losses
    assert paint(client, f"a house {job['result']['tag']}")["state"] == "done"


def test_a_training_is_the_one_of_the_library(client, state, tiny, tmp_path):
    job = run_job(client, kind="train", overlay={"kind": "lora", "rank": 2}, dataset="neon", name="same", plan=PLAN)
    plan = velatura.Plan.preset("lora", "tiny").replace(**PLAN)
    lora = velatura.Lora.for_base(tiny, rank=2, seed=plan.seed, name="same")
    run = velatura.train(tiny, lora, velatura.tiny_pictures("neon"), plan, out=tmp_path / "run")
    made = state.folders.runs / job["result"]["run"] / job["result"]["file"]
    assert made.read_bytes() == run.file.read_bytes()


def test_an_aesthetic_is_made(client):
    job = run_job(client, kind="train", overlay={"kind": "aesthetic"}, dataset="neon", name="glow")
    assert paint(client, f"a house {job['result']['tag']}")["state"] == "done"


def test_a_cancelled_training_keeps_what_it_learned_and_resumes(client, state):
    plan = PLAN | {"steps": 2000}
    request = {"kind": "train", "overlay": {"kind": "lora", "rank": 1}, "dataset": "neon", "name": "long", "plan": plan}
    job_id = client.post("/api/jobs", json=request).json()["id"]
    while not (event := state.jobs.events.latest(job_id, "step")) or "loss" not in event.data:
        time.sleep(0.02)
    client.post(f"/api/jobs/{job_id}/cancel")
    assert wait_for(client, job_id)["state"] == "cancelled"
    run = read_run(state.folders.runs / "long")
    assert run.state == "interrupted"
    assert run.snapshots
    resumed = client.post("/api/jobs", json={"kind": "resume", "run": "long"}).json()["id"]
    while (job := client.get(f"/api/jobs/{resumed}").json())["progress"]["stage"] != "training":
        assert job["state"] in {"queued", "running"}, job
        time.sleep(0.02)
    assert job["progress"]["done"] > run.snapshots[-1].step
    client.post(f"/api/jobs/{resumed}/cancel")
    wait_for(client, resumed)


def test_models_are_merged_baked_and_extracted(client, state):
    merged = run_job(client, kind="merge", name="mixed", models=["tiny", "tiny"], strength=0.5)
    assert (state.folders.models / merged["result"]["file"]).is_file()
    baked = run_job(client, kind="bake", name="inked", overlays=[{"name": "ink", "strength": 0.5}], steps=1)
    assert baked["result"]["report"]
    run_job(client, kind="extract", name="change", base="tiny", other="inked", rank=1)
    assert paint(client, "a house <lora:change:1>", base="inked")["state"] == "done"


def test_loras_are_merged_and_converted(client, state):
    run_job(client, kind="merge", name="both", loras=[{"name": "ink", "strength": 0.5}, {"name": "ink", "text": 0.1}])
    converted = run_job(client, kind="convert", name="ink-kohya", overlay="ink", dialect="kohya")
    assert (state.folders.models / converted["result"]["file"]).is_file()


def test_datasets_are_checked_cropped_and_captioned(client, state):
    cropped = run_job(client, kind="crop", dataset="neon", name="ready", pixels=32)
    assert cropped["result"]["pictures_written"] == len(list((state.folders.datasets / "ready").glob("*.png")))
    checked = run_job(client, kind="check", dataset="ready", pixels=32)
    assert len(checked["result"]["files"]) == cropped["result"]["pictures_written"]
    captioned = run_job(client, kind="caption", dataset="ready", existing="replace", before="neon")
    assert all(text.startswith("neon, ") for text in captioned["result"]["captions"].values())


def train(kind, **options):
    return {"kind": "train", "overlay": {"kind": kind, **options}, "dataset": "neon"}


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        ({"kind": "pull", "source": "http://127.0.0.1:1/x.safetensors"}, 422, "source"),
        ({"kind": "train", "overlay": {"kind": "lora"}, "dataset": "nowhere"}, 404, None),
        ({"kind": "train", "overlay": {"kind": "lora"}, "dataset": "../.."}, 404, None),
        ({"kind": "train", "overlay": {"kind": "lora"}, "dataset": "neon", "plan": {"stepz": 1}}, 422, "stepz"),
        ({"kind": "train", "overlay": {"kind": "lora"}, "dataset": "neon", "name": "../x"}, 422, "name"),
        ({"kind": "crop", "dataset": "neon", "name": "/tmp/x"}, 422, "name"),
        ({"kind": "resume", "run": "../../etc"}, 404, None),
        ({"kind": "bake", "name": "a/b", "overlays": [{"name": "ink"}]}, 422, "name"),
        ({"kind": "knit"}, 422, None),
        (train("hypernet", activation="reluu"), 422, "overlay.activation"),
        (train("hypernet", init="normall"), 422, "overlay.init"),
        (train("hypernet", layers=[1, 2]), 422, "overlay.layers"),
        (train("hypernet", layers=[1, 1e6, 1]), 422, "overlay.layers.1"),
        (train("lora", algorithm="lorra"), 422, "overlay.algorithm"),
        (train("lora", targets="everything"), 422, "overlay.targets"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_queued(client, request_, status, field):
    answer = client.post("/api/jobs", json=request_)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
