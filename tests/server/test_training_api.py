"""What the page's tab Train asks for: estimates, presets, crop boxes, previews and the strength that was found."""

import io
import json
import shutil
import tomllib
from importlib.resources import files

import pytest
from PIL import Image

from tests.server.conftest import wait_for
from velatura.base.families import FAMILIES
from velatura.server.jobs.prepare import PreparationContext, prepare_estimate
from velatura.server.jobs.training_requests import EstimateRequest
from velatura.training.plan import Plan

PLAN = {"steps": 1, "batch_size": 1, "validation_pictures": 0, "snapshot_every": 1, "end_sheet": False}
LORA = {"kind": "lora", "rank": 1}


def run_job(client, **request):
    answer = client.post("/api/jobs", json=request)
    assert answer.status_code == 202, answer.text
    job = wait_for(client, answer.json()["id"])
    assert job["state"] == "done", job["error"]
    return job


@pytest.fixture(scope="module")
def trained(client):
    """The name of a run with a preview before and after its step."""
    plan = PLAN | {"preview_every": 1}
    return run_job(client, kind="train", overlay=LORA, dataset="neon", name="watched", plan=plan)["result"]["run"]


def test_an_estimate_tells_time_and_memory_and_writes_nothing(client, state, tiny):
    before = sorted(state.folders.out.rglob("*"))
    plan = PLAN | {"steps": 8, "batch_size": 4}
    result = run_job(client, kind="estimate", overlay=LORA, dataset="neon", plan=plan)["result"]
    assert result["mirror_images"] == 0
    # 8 steps of 4 pictures, of 16 in the bundled set
    assert (result["steps"], result["pictures"], result["times_seen"]) == (8, 16, 2.0)
    assert result["seconds"] > 0
    assert result["memory"] > tiny.byte_count
    names = {path.name for path in set(state.folders.out.rglob("*")) - set(before)}
    assert {name for name in names if not name.startswith("velatura.sqlite")} == set()


def test_an_estimate_counts_mirror_images(client):
    plan = PLAN | {"steps": 8, "batch_size": 4, "flip": True}
    result = run_job(client, kind="estimate", overlay=LORA, dataset="neon", plan=plan)["result"]
    assert (result["pictures"], result["mirror_images"], result["times_seen"]) == (16, 16, 1.0)


def test_an_estimate_counts_pictures_and_mirror_images_that_repeat_once(client, state):
    # one picture that counts ten times: with its mirror image 20, and 5 steps of 4 show each of them once
    folder = state.folders.datasets / "repeats"
    (folder / "10_house").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "10_house" / "a red house.png")
    plan = PLAN | {"steps": 5, "batch_size": 4, "flip": True}
    result = run_job(client, kind="estimate", overlay=LORA, dataset="repeats", plan=plan)["result"]
    shutil.rmtree(folder)
    assert (result["pictures"], result["mirror_images"], result["times_seen"]) == (1, 1, 1.0)


def test_mirror_images_of_a_preset_are_left_out_of_estimate_and_training(client, state):
    hypernet = {"kind": "hypernet", "layers": [1, 1]}
    assert client.get("/api/plans/hypernet", params={"family": "tiny"}).json()["flip"]["value"] is True
    counts = []
    for plan in (PLAN, PLAN | {"flip": False}):
        counts.append(run_job(client, kind="estimate", overlay=hypernet, dataset="neon", plan=plan)["result"])
    assert [count["mirror_images"] for count in counts] == [16, 0]
    job = run_job(client, kind="train", overlay=hypernet, dataset="neon", name="faces", plan=PLAN | {"flip": False})
    plan = json.loads((state.folders.runs / job["result"]["run"] / "plan.json").read_text())
    assert plan["flip"] is False


def test_an_estimate_of_what_is_made_at_once_counts_pictures(client):
    result = run_job(client, kind="estimate", overlay={"kind": "aesthetic"}, dataset="neon")["result"]
    assert result == {"base": "tiny", "pictures": 16, "class_pictures": 0, "captions_from_names": 0, "names": []}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"plan": {"steps": 0}}, 422),
        ({"dataset": "nowhere"}, 404),
        ({"overlay": {"kind": "lora", "rank": 0}}, 422),
        ({"name": "../x"}, 422),
    ],
)
def test_an_estimate_refuses_what_a_training_would(client, changes, status):
    for kind in ("estimate", "train"):
        request = {"kind": kind, "overlay": LORA, "dataset": "neon", "plan": PLAN} | changes
        assert client.post("/api/jobs", json=request).status_code == status


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["hypernet", "embedding", "lora", "dreambooth"])
def test_what_the_preset_of_any_family_allows_is_queued(state, kind, family):
    end = Plan.preset(kind, family).rates().end
    fields = {"overlay": {"kind": kind}, "dataset": "neon", "purpose": "style", "plan": {"warmup": end - 1}}
    request = EstimateRequest.model_validate({"kind": "estimate"} | fields)
    preparation = PreparationContext(state.settings, state.folders, state.inputs)
    assert prepare_estimate(request, preparation).plan == {"warmup": end - 1}


def test_what_no_preset_allows_is_refused_before_its_job(client):
    request = {"kind": "estimate", "overlay": {"kind": "embedding"}, "dataset": "neon", "plan": {"warmup": 5000}}
    answer = client.post("/api/jobs", json=request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_plan")


@pytest.mark.parametrize("dropout", [2, [0, 2, 0], "x"])
def test_a_field_of_several_types_is_named_without_their_names(client, dropout):
    overlay = {"kind": "hypernet", "dropout": dropout}
    answer = client.post("/api/jobs", json={"kind": "estimate", "overlay": overlay, "dataset": "neon"})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, "overlay.dropout")  # as the request has it
    assert error["message"].startswith("overlay.dropout: Input should")


def test_presets_are_those_of_the_command_line(client):
    preset = client.get("/api/plans/lora", params={"purpose": "subject", "family": "tiny"}).json()
    table = tomllib.loads((files("velatura.training") / "presets" / "lora-subject.toml").read_text("utf-8"))
    for name, value in (table["any"] | table["tiny"]).items():
        assert preset[name]["value"] == value
        assert preset[name]["description"]
    assert client.get("/api/plans/knitting").status_code == 422


def test_the_box_of_a_crop_is_shown_before_it(client):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(buffer, "PNG")
    client.post("/api/datasets", json={"name": "wide"})
    client.post("/api/datasets/wide/files", files=[("files", ("a.png", buffer.getvalue()))])
    answer = client.get("/api/datasets/wide/boxes/a.png", params={"pixels": 32, "focus": "middle"})
    # the middle square of 64x32
    assert answer.json() == {"width": 64, "height": 32, "boxes": [[16, 0, 48, 32]]}
    for place, query, status in [
        ("b.png", {}, 404),
        ("../../x.png", {}, 404),
        ("a.png", {"focus": "corner"}, 422),
        ("a.png", {"pixels": 33}, 422),
    ]:
        assert client.get(f"/api/datasets/wide/boxes/{place}", params=query).status_code == status
    client.delete("/api/datasets/wide")


def test_previews_of_a_run_are_shown_one_by_one(client, trained):
    run = client.get(f"/api/runs/{trained}").json()
    assert run["previews"] == {"0": 1, "1": 1}
    answer = client.get(f"/api/runs/{trained}/previews/1/1")
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    for place in ("1/0", "1/2", "5/1", "-1/1"):
        assert client.get(f"/api/runs/{trained}/previews/{place}").status_code == 404


def test_a_run_is_called_with_the_strength_that_was_found(client, state, trained):
    assert client.get(f"/api/runs/{trained}").json()["tag"] == "<lora:watched:1>"
    sidecar = state.folders.runs / trained / "watched.json"
    sidecar.write_text(json.dumps({"preferred weight": 0.7}))
    run = client.get(f"/api/runs/{trained}").json()
    assert (run["tag"], run["strength"], run["rescues"]) == ("<lora:watched:0.7>", 0.7, [])
    sidecar.unlink()
