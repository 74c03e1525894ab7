"""Pictures that the server paints are those that `velatura.generate` paints."""

import io

import pytest
from PIL import Image, ImageChops

import velatura
from tests.server.conftest import paint, wait_for


def picture_of(client, job, index=0):
    data = client.get(f"/api/pictures/{job['result']['pictures'][index]}/file").content
    return Image.open(io.BytesIO(data))


def same(one, other):
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is None


def test_a_picture_is_the_one_that_generate_makes(client, tiny):
    job = paint(client)
    assert (job["state"], job["error"]) == ("done", None)
    assert same(picture_of(client, job), velatura.generate(tiny, "a red house", steps=2, seed=7).image)


def test_a_picture_holds_its_recipe(client, tmp_path):
    job = paint(client, "a blue cat")
    path = tmp_path / "picture.png"
    path.write_bytes(client.get(f"/api/pictures/{job['result']['pictures'][0]}/file").content)
    recipe = velatura.Recipe.from_image(path)
    assert (recipe.prompt, recipe.seed, recipe.base) == ("a blue cat", 7, "tiny")


def test_overlays_of_the_library_are_found(client, models, tiny):
    job = paint(client, "a red house <lora:ink:0.8>")
    expected = velatura.generate(
        tiny, "a red house <lora:ink:0.8>", steps=2, seed=7, library=velatura.Library(models)
    ).image
    assert same(picture_of(client, job), expected)


def test_a_count_takes_the_next_seeds(client):
    job = paint(client, count=3)
    pictures = client.get("/api/pictures", params={"job": job["id"]}).json()["pictures"]
    assert [picture["recipe"]["seed"] for picture in reversed(pictures)] == [7, 8, 9]


def test_an_unknown_overlay_fails_the_job_with_one_line(client):
    job = paint(client, "a house <lora:nobody:1>")
    assert job["state"] == "failed"
    assert job["error"]["code"] == "unknown_name"
    assert "nobody" in job["error"]["message"]
    assert "/" not in job["error"]["message"]
    assert "--library" not in job["error"]["message"]
    assert "put it into a folder of the server's library" in job["error"]["message"]


def test_warnings_are_the_jobs(client):
    request = {"kind": "paint", "recipe": {"prompt": "a house", "steps": 2, "seed": 1, "hires_steps": 3}}
    job = wait_for(client, client.post("/api/jobs", json=request).json()["id"])
    assert any("hires_steps changes nothing" in warning for warning in job["warnings"])


@pytest.mark.parametrize(
    ("recipe", "field"),
    [({"prompt": "a", "steps": 10**9}, "steps"), ({"prompt": "a", "stepz": 3}, "stepz"), ({"seed": "x"}, "seed")],
)
def test_a_bad_recipe_is_refused_by_name(client, recipe, field):
    answer = client.post("/api/jobs", json={"kind": "paint", "recipe": recipe})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_recipe"
    assert field in answer.json()["error"]["message"]


def test_a_grid_is_one_picture_with_its_axes(client):
    request = {
        "kind": "grid",
        "recipe": {"prompt": "a {what}", "steps": 2, "seed": 3},
        "x": {"name": "what", "values": ["house", "cat"]},
    }
    job = wait_for(client, client.post("/api/jobs", json=request).json()["id"])
    assert job["state"] == "done", job
    image = picture_of(client, job)
    assert image.width > 2 * 64
    assert "X Values" in image.info["parameters"]
