"""What the page asks while a prompt is typed, effects that stand with a picture, and fields that errors name."""

import sqlite3

import velatura
from tests.server.conftest import paint
from velatura.server.jobs.database import SCHEMA_VERSION, Database


def test_lengths_of_both_prompts_are_told(client):
    texts = {"prompt": "a red house <lora:ink:1>", "negative": "house, red"}
    lengths = client.post("/api/prompts/count", json=texts).json()
    # the tiny base has CLIP's way to split words, and each of these is one token
    assert lengths == {"prompt": {"tokens": 3, "capacity": 75}, "negative": {"tokens": 3, "capacity": 75}}


def test_an_embedding_counts_its_vectors(client, models, tiny):
    embedding = velatura.Embedding.for_base(tiny, name="my-style", vectors=4)
    velatura.save(embedding, models / "my-style.safetensors")
    client.post("/api/library/refresh")
    lengths = client.post("/api/prompts/count", json={"prompt": "a my-style"}).json()
    (models / "my-style.safetensors").unlink()
    client.post("/api/library/refresh")
    assert lengths["prompt"]["tokens"] == 5


def test_the_words_of_the_tiny_base_are_listed(client):
    words = client.get("/api/prompts/words").json()
    assert "lighthouse" in words
    assert words == sorted(set(words))


def test_a_picture_keeps_what_its_overlays_changed(client):
    [with_overlay] = paint(client, "a red house <lora:ink:0.5>")["result"]["pictures"]
    [without] = paint(client, "a red house")["result"]["pictures"]
    [effect] = client.get(f"/api/pictures/{with_overlay}").json()["effects"]
    assert "ink" in effect or "lora" in effect
    assert "output changed by" in effect
    assert client.get(f"/api/pictures/{without}").json()["effects"] == []


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path):
    path = tmp_path / "velatura.sqlite"
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE pictures DROP COLUMN effects")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    database = Database(path)
    assert database.rows("SELECT effects FROM pictures") == []
    assert database.rows("PRAGMA user_version")[0][0] == SCHEMA_VERSION
    database.close()


def test_a_refused_recipe_names_its_field(client):
    for field, value in (("width", 7), ("steps", 0), ("hires_scale", 99), ("masked_content", "grey")):
        request = {"kind": "paint", "recipe": {"prompt": "a house", field: value}}
        error = client.post("/api/jobs", json=request).json()["error"]
        assert (error["code"], error["field"]) == ("bad_recipe", field)
