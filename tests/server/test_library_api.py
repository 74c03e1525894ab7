"""The library, datasets, bases and runs through the API."""

import io
import json

import pytest
from PIL import Image

import velatura
from tests.server.conftest import paint
from velatura.training.run.stored_verdict import write_verdict
from velatura.training.run.verdict import Verdict


def png(size=(32, 32), colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def ink(client):
    files = client.get("/api/library", params={"search": "ink", "kind": "lora"}).json()["files"]
    return next(file for file in files if file["name"] == "ink")


def test_the_library_lists_and_describes_files_without_their_paths(client, models, ink):
    page = client.get(f"/api/library/{ink['id']}")
    assert (ink["name"], ink["kind"], ink["place"]) == ("ink", "lora", "ink.safetensors")
    assert len(page.json()["hashes"]["sha256"]) == 64
    assert page.json()["tag"] == "<lora:ink:1>"
    assert str(models) not in page.text


def test_notes_are_written_into_the_sidecar_that_a1111_reads(client, models, ink):
    (models / "ink.json").write_text(json.dumps({"notes": "old", "a field of another program": 3}))
    change = {"activation": "inked lines", "strength": 0.6, "description": "Ink."}
    page = client.patch(f"/api/library/{ink['id']}", json=change).json()
    assert (page["trigger_words"], page["strength"]) == (["inked lines"], 0.6)
    written = json.loads((models / "ink.json").read_text())
    expected = {"activation text": "inked lines", "preferred weight": 0.6, "description": "Ink.", "notes": "old"}
    assert written == expected | {"a field of another program": 3}
    (models / "ink.json").unlink()
    client.post("/api/library/refresh")


def test_a_picture_becomes_a_files_preview(client, models, ink):
    job = paint(client)
    assert client.get(f"/api/library/{ink['id']}/thumbnail").status_code == 404
    choice = {"picture": job["result"]["pictures"][0]}
    assert client.put(f"/api/library/{ink['id']}/thumbnail", json=choice).status_code == 204
    answer = client.get(f"/api/library/{ink['id']}/thumbnail")
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    (models / "ink.preview.png").unlink()
    client.post("/api/library/refresh")


def test_any_image_becomes_a_files_preview(client, models, ink):
    reference = client.post("/api/inputs", content=png((96, 48))).json()["reference"]
    assert client.put(f"/api/library/{ink['id']}/thumbnail", json={"image": reference}).status_code == 204
    answer = client.get(f"/api/library/{ink['id']}/thumbnail")
    assert Image.open(io.BytesIO(answer.content)).size == (96, 48)
    for choice in ({}, {"image": reference, "picture": 1}, {"image": "no base64!"}):
        assert client.put(f"/api/library/{ink['id']}/thumbnail", json=choice).status_code == 422
    (models / "ink.preview.png").unlink()
    client.post("/api/library/refresh")


def test_a_files_page_has_its_notes_field_by_field(client, models, ink):
    (models / "ink.json").write_text('{"activation text": "inked", "notes": "mine", "preferred weight": 0, "vae": ""}')
    client.post("/api/library/refresh")
    assert client.get(f"/api/library/{ink['id']}").json()["notes"] == {"activation": "inked", "notes": "mine"}
    (models / "ink.json").write_text("[]")
    client.post("/api/library/refresh")
    page = client.get(f"/api/library/{ink['id']}").json()
    assert page["notes"] == {}
    assert any("ink.json" in line for line in page["unread"])
    assert client.patch(f"/api/library/{ink['id']}", json={"notes": "new"}).status_code == 422
    (models / "ink.json").unlink()
    client.post("/api/library/refresh")


def test_a_hypernetworks_page_says_which_programs_open_it(client, models, tiny):
    path = models / "unlisted.pt"
    velatura.save(velatura.Hypernetwork.for_base(tiny, name="unlisted"), path)
    client.post("/api/library/refresh")
    [file] = client.get("/api/library", params={"search": "unlisted", "kind": "hypernet"}).json()["files"]
    page = client.get(f"/api/library/{file['id']}").json()
    assert page["opens"]
    assert all(isinstance(answer["opens"], bool) for answer in page["opens"].values())
    assert len(page["hashes"]["sha256"]) == 64
    path.unlink()
    client.post("/api/library/refresh")


def test_bases_are_listed(client):
    assert client.get("/api/bases").json()[0] == {
        "name": "tiny",
        "family": "tiny",
        "pixels": 64,
        "is_open": True,
        "is_default": True,
    }


def test_a_dataset_is_made_filled_captioned_and_deleted(client, state):
    assert client.post("/api/datasets", json={"name": "cats"}).status_code == 201
    assert client.post("/api/datasets", json={"name": "cats"}).status_code == 409
    files = [
        ("files", ("../../a cat.png", png())),
        ("files", ("a cat.txt", b"a red cat")),
        ("files", ("page.html", b"<script>")),
        ("files", ("zip.png", b"PK\3\4")),
    ]
    answer = client.post("/api/datasets/cats/files", files=files).json()
    assert answer["files"] == ["a cat.png", "a cat.txt"]
    assert sorted(answer["refused"]) == ["page.html", "zip.png"]
    assert sorted(path.name for path in (state.folders.datasets / "cats").iterdir()) == ["a cat.png", "a cat.txt"]
    assert client.get("/api/datasets/cats").json()["files"] == [{"file": "a cat.png", "caption": "a red cat"}]
    changed = client.put("/api/datasets/cats/captions", json={"captions": {"a cat.png": "a cat"}}).json()
    assert changed["files"][0]["caption"] == "a cat"
    assert client.get("/api/datasets/cats/problems", params={"pixels": 32}).json()["stops_training"] is False
    picture = client.get("/api/datasets/cats/files/a cat.png", params={"thumbnail": True})
    assert Image.open(io.BytesIO(picture.content)).size == (32, 32)
    assert client.delete("/api/datasets/cats/files/a cat.png").status_code == 204
    assert client.delete("/api/datasets/cats").status_code == 204
    assert client.get("/api/datasets/cats").status_code == 404


def test_bundled_sets_can_be_read_and_not_changed(client):
    assert client.get("/api/datasets/neon").json()["is_bundled"] is True
    assert client.delete("/api/datasets/neon").status_code == 422
    assert client.post("/api/datasets/neon/files", files=[("files", ("a.png", png()))]).status_code == 422


def test_pictures_are_found_by_prompt_and_deleted(client, state):
    job = paint(client, "a 100%_odd prompt")
    [picture] = client.get("/api/pictures", params={"search": "100%_odd"}).json()["pictures"]
    path = state.folders.pictures / picture["file"]
    assert path.is_file()
    assert client.get(f"/api/pictures/{picture['id']}/thumbnail").status_code == 200
    assert client.delete(f"/api/pictures/{picture['id']}").status_code == 204
    assert not path.exists()
    assert client.get("/api/pictures", params={"job": job["id"]}).json()["pictures"] == []


def test_the_system_tells_versions_and_the_queue(client):
    system = client.get("/api/system").json()
    assert (system["base"], system["device"]["name"]) == ("tiny", "cpu")
    assert system["memory_used"] > 0
    assert system["versions"]["velatura"]


def test_the_api_describes_itself(client):
    document = client.get("/api/openapi.json").json()
    assert "PaintRequest" in document["components"]["schemas"]
    assert "/api/jobs/{job_id}/events" in document["paths"]


def test_a_finished_run_gives_its_verdict_back(client, state):
    folder = state.folders.runs / "judged"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text('{"files": "inca", "base": "tiny", "overlay": {"kind": "lora"}}\n')
    (folder / "plan.json").write_text("{}")
    unfinished = client.get("/api/runs/judged").json()
    assert (unfinished["state"], unfinished["strength"], unfinished["verdict"]) == ("interrupted", None, [])
    (folder / "inca.safetensors").touch()
    verdict = Verdict(
        folder / "inca.safetensors",
        kind="lora",
        steps=60,
        rate=2e-3,
        strength=0.7,
        strength_note="best strength 0.7",
        pictures=(folder / "strengths.png",),
    )
    write_verdict(verdict, folder)
    answer = client.get("/api/runs/judged")
    assert (answer.json()["strength"], answer.json()["overpowers"]) == (0.7, False)
    assert f"{'strength':21}best strength 0.7" in answer.json()["verdict"]
    assert str(state.folders.runs) not in answer.text
