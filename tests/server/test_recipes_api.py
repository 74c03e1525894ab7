"""Recipes and images to begin from, through the API."""

from __future__ import annotations

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.server.conftest import paint

INFOTEXT = """a cat <lora:ink:0.5> <lora:nowhere:1>
Steps: 12, Sampler: Euler a, Seed: 5, Size: 64x64, Model: deliberate, Fancy setting: 3"""


def picture(text: str | None) -> bytes:
    buffer, info = io.BytesIO(), PngInfo()
    if text:
        info.add_text("parameters", text)
    Image.new("RGB", (6, 4), "blue").save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_picture_and_its_text_tell_the_same(client):
    by_picture = client.post(
        "/api/recipes/read", content=picture(INFOTEXT), headers={"Content-Type": "image/png"}
    ).json()
    by_text = client.post("/api/recipes/read", content=INFOTEXT, headers={"Content-Type": "text/plain"}).json()
    assert by_picture == by_text
    assert by_picture["recipe"]["steps"] == 12
    assert [(part["kind"], part["name"]) for part in by_picture["missing"]] == [
        ("base", "deliberate"),
        ("lora", "nowhere"),
    ]
    assert any("Fancy setting" in warning for warning in by_picture["warnings"])


def test_a_picture_of_this_server_misses_nothing(client):
    [number] = paint(client, "a cat <lora:ink:0.5>")["result"]["pictures"]
    data = client.get(f"/api/pictures/{number}/file").content
    reading = client.post("/api/recipes/read", content=data).json()
    assert reading["missing"] == []
    stored = client.get(f"/api/pictures/{number}").json()["recipe"]
    assert {**reading["recipe"], "version": ""} == {**stored, "version": ""}


def test_what_is_not_a_picture_is_refused(client):
    for data in (b"", b"GIF89a", picture(None), picture(INFOTEXT)[:60]):
        answer = client.post("/api/recipes/read", content=data)
        assert answer.status_code == 422
        assert "\n" not in answer.json()["error"]["message"]
    answer = client.post("/api/recipes/read", content=b"\xff\xfe\xff", headers={"Content-Type": "text/plain"})
    assert answer.json()["error"]["code"] == "bad_text"


def test_choices_are_names_that_recipes_take(client):
    choices = client.get("/api/recipes/choices").json()
    assert "DPM++ 2M" in choices["samplers"]
    assert "Karras" in choices["schedulers"]
    assert {"Latent", "Lanczos"} <= set(choices["upscalers"])
    assert choices["face_restorers"] == []


def test_an_image_is_stored_once_and_named_by_its_reference(client):
    stored = client.post("/api/inputs", content=picture(None))
    assert stored.status_code == 201
    assert (stored.json()["width"], stored.json()["height"]) == (6, 4)
    reference = stored.json()["reference"]
    assert client.get(f"/api/inputs/{reference}").content == picture(None)
    job = paint(client, image=reference)
    assert job["state"] == "done"
    for name in ("input:..", f"{reference}x", "input:" + "0" * 64 + ".png"):
        assert client.get(f"/api/inputs/{name}").status_code == 404
    assert client.post("/api/inputs", content=b"no picture").status_code == 422
