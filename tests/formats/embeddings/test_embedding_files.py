"""Embeddings in every form they come in (tests/data/a1111/embeddings), and as other programs open ours."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import velatura
from velatura.errors import BadFile, UnknownName, VelaturaWarning, WrongBase
from velatura.formats.embeddings.write_embedding import a1111_checksum
from velatura.tensors import open_tensors, write_safetensors
from velatura.training.kinds.a1111_export import write_a1111

FOLDER = Path(__file__).parents[2] / "data" / "a1111" / "embeddings"
INDEX = json.loads((FOLDER / "index.json").read_text())
EXPECTED = open_tensors(FOLDER / "expected_vectors.safetensors").tensors
HERE = {each.name for each in FOLDER.iterdir()}


def cases(*results):
    chosen = [each for each in INDEX["cases"] if each["result"] in results and each["file"] in HERE]
    return [pytest.param(each, id=each["file"]) for each in chosen]


def opened(path):
    """An embedding of a width that no text encoder has, as these have for the sake of size."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no known text encoder has this width", VelaturaWarning)
        return velatura.open_overlay(path)


@pytest.mark.filterwarnings("ignore:half other key.pt holds more than an embedding")
@pytest.mark.parametrize("case", cases("loaded"))
def test_files_are_read_as_a1111_reads_them(case):
    overlay = opened(FOLDER / case["file"])
    names = ["vec"] if len(overlay.vectors) == 1 else ["clip_l", "clip_g"]
    for name, vectors in zip(names, overlay.vectors, strict=True):
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors, EXPECTED[f"{case['file']}::{name}"])
    assert overlay.name == case["name"]
    assert overlay.card.steps == (case["step"] or 0)
    assert overlay.card.base_hash == (case["sd_checkpoint"] or "")
    assert overlay.card.base == (case["sd_checkpoint_name"] or "")
    if "checksum" in case:
        assert a1111_checksum(overlay.vectors[0]) == case["checksum"]


@pytest.mark.parametrize("case", [each for each in cases("refused", "skipped") if "preview" not in each.id])
def test_files_that_a1111_refuses_are_refused_in_one_line(case):
    with pytest.raises(BadFile, match=case["file"]) as caught:
        velatura.open_overlay(FOLDER / case["file"])
    assert "\n" not in str(caught.value)


def test_a_file_that_a1111_wrote_is_written_with_equal_fields(tmp_path):
    theirs = opened(FOLDER / "written_by_peer.pt")
    theirs = theirs.with_name(INDEX["keys_written_by_peer"][2][2])  # the name inside
    velatura.save(theirs, tmp_path / "again.pt")
    ours = open_tensors(tmp_path / "again.pt").payload
    for key, kind, value in INDEX["keys_written_by_peer"]:
        if key == "string_to_param":
            assert torch.equal(ours[key]["*"], EXPECTED["written_by_peer.pt::vec"])
        else:
            assert (type(ours[key]).__name__, ours[key]) == (kind, value)
    assert list(ours) == [key for key, _, _ in INDEX["keys_written_by_peer"]]


def test_a1111_before_1_10_opens_the_container(embedding, tmp_path):
    """It lets no other members pass than data.pkl, version and data/<number>."""
    velatura.save(embedding(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert set(archive.namelist()) == {"archive/data.pkl", "archive/version", "archive/data/0"}
    assert torch.load(io.BytesIO((tmp_path / "x.pt").read_bytes()), weights_only=True)["name"] == "a"


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.png", "x.bin"])
def test_a_written_embedding_is_read_back(tiny, embedding, tmp_path, name):
    overlay = embedding(name="x", vectors=3)
    velatura.save(overlay, tmp_path / name)
    again = velatura.open_overlay(tmp_path / name)
    assert torch.equal(again.vectors[0], overlay.vectors[0])
    assert (again.name, again.card.family) == ("x", "tiny")
    with velatura.attach(tiny, again):
        assert tiny.text.tokenize("x") == [(-1, -2, -3)]


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_an_embedding_for_sdxl_is_read_back_whole(xl, tmp_path, name):
    overlay = velatura.Embedding.for_base(xl, name="x", vectors=2, initial="a boat")
    velatura.save(overlay, tmp_path / name)
    again = opened(tmp_path / name)
    assert all(torch.equal(*pair) for pair in zip(again.vectors, overlay.vectors, strict=True))


def test_our_own_file_has_sd_scripts_tensor_names(embedding, tmp_path):
    velatura.save(embedding(name="x"), tmp_path / "x.safetensors")
    contents = open_tensors(tmp_path / "x.safetensors")
    assert list(contents.tensors) == ["emb_params"]
    assert contents.metadata["modelspec.architecture"].endswith("/textual-inversion")


def test_an_optimizers_state_is_matched_to_its_embedding_as_in_a1111(embedding, tmp_path):
    overlay = embedding(name="x")
    optimizer = torch.optim.AdamW(overlay.parameters(), lr=0.1)
    overlay.vectors[0].square().sum().backward()
    optimizer.step()
    write_a1111(tmp_path / "x.pt", overlay, optimizer)
    beside = open_tensors(tmp_path / "x.pt.optim").payload
    assert beside["hash"] == a1111_checksum(overlay.vectors[0])
    assert beside["optimizer_state_dict"]["state"][0]["exp_avg"].shape == overlay.vectors[0].shape


def test_a_picture_may_have_another_name_inside(embedding, tmp_path):
    velatura.save(embedding(name="my style"), tmp_path / "shared.png")
    assert velatura.open_overlay(tmp_path / "shared.png").name == "my style"
    with Image.open(tmp_path / "shared.png") as picture:
        assert picture.size == (256, 256)
        assert "sd-ti-embedding" in picture.text


@pytest.mark.parametrize("start", [b"\xff\x0a\x00\x01", b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"])
def test_an_unsupported_picture_is_named_and_its_word_read_as_plain_text(tiny, start, tmp_path):
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "cat.jxl").write_bytes(start + bytes(100))
    with pytest.warns(VelaturaWarning, match=r"cat\.jxl is a JPEG XL picture.* as a PNG; 'cat' is read as plain"):
        velatura.generate(tiny, "a cat", steps=1, library=velatura.Library(tmp_path))


@pytest.mark.parametrize("kind", ["webp", "avif"])
def test_a_format_that_pillow_lacks_is_not_reported_as_damage(kind, monkeypatch, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / f"cat.{kind}")
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != kind)
    with pytest.raises(BadFile, match=rf"(?i)a {kind} picture, which this Pillow cannot read: save"):
        velatura.open_overlay(tmp_path / f"cat.{kind}")


def test_a_picture_for_sdxl_is_refused(xl, tmp_path):
    with pytest.raises(WrongBase, match=r"save it as \.safetensors"):
        velatura.save(velatura.Embedding.for_base(xl, name="x"), tmp_path / "x.png")
    with pytest.raises(UnknownName):
        velatura.save(velatura.Embedding.for_base(xl, name="x"), tmp_path / "x.jpg")


@pytest.mark.parametrize("name", ["learned_embeds.safetensors", "learned_embeds.bin"])
def test_diffusers_encodes_prompts_alike_with_our_file(tiny, embedding, tmp_path, name):
    overlay = embedding(name="<style>", vectors=2)
    velatura.save(overlay, tmp_path / name, dialect="diffusers")
    text = tiny.text.deep_copy()
    pipeline = StableDiffusionPipeline(
        *(tiny.vae, text.model, deepcopy(text.tokenizer), tiny.unet),  # it adds words to both
        *(DDIMScheduler(steps_offset=1, clip_sample=False), None, None),
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(tmp_path / name)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt("a boat in <style>, at night", "cpu", 1, do_classifier_free_guidance=False)
        with velatura.attach(tiny, overlay):
            torch.testing.assert_close(tiny.text.encode(["a boat in <style>, at night"]), theirs, atol=1e-5, rtol=0)


def test_an_embedding_for_sdxl_becomes_two_files_for_diffusers(xl, tmp_path):
    wide = velatura.Embedding.from_vectors(
        *(torch.randn(2, 768), torch.randn(2, 1280)), card=velatura.Card(kind="embedding", name="learned_embeds")
    )
    velatura.save(wide, tmp_path / "learned_embeds.safetensors", dialect="diffusers")
    assert {each.name for each in tmp_path.iterdir()} == {"learned_embeds.safetensors", "learned_embeds_2.safetensors"}
    again = velatura.open_overlay(tmp_path / "learned_embeds.safetensors")
    assert all(torch.equal(*pair) for pair in zip(again.vectors, wide.vectors, strict=True))
    assert again.card.family == "SDXL"


def test_base64_of_a_picture_may_have_line_breaks(tmp_path):
    """MIME's base64 (RFC 2045) breaks its lines after 76 letters."""
    with Image.open(FOLDER / "text_chunk.png") as picture:
        encoded = picture.text["sd-ti-embedding"]
        info = PngInfo()
        info.add_text(
            "sd-ti-embedding", "\r\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))
        )
        picture.save(tmp_path / "text_chunk.png", pnginfo=info)
    for found, expected in zip(
        opened(tmp_path / "text_chunk.png").vectors, opened(FOLDER / "text_chunk.png").vectors, strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("keys", [{"emb_params": 768}, {"clip_l": 768, "clip_g": 1280}])
def test_vectors_of_onetrainer_are_read_without_those_of_the_output(tmp_path, keys):
    """OneTrainer's savers name vectors for the text encoder's output like those for its input, with _out behind."""
    vectors = {key: torch.randn(2, width) for key, width in keys.items()}
    outputs = {f"{key}_out": torch.ones(2, width) for key, width in keys.items()}
    write_safetensors(tmp_path / "cat.safetensors", {**vectors, **outputs})
    with pytest.warns(VelaturaWarning, match=r"text encoder's output \(\w+_out.*: they are ignored"):
        overlay = velatura.open_overlay(tmp_path / "cat.safetensors")
    for found, expected in zip(overlay.vectors, vectors.values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_vectors_beyond_float32_are_refused(tmp_path, value):
    """The largest float32 is 3.4e38."""
    vectors = torch.full((1, 768), 0.5, dtype=torch.float64)
    vectors[0, 7] = value
    write_safetensors(tmp_path / "cat.safetensors", {"emb_params": vectors})
    with pytest.raises(BadFile, match=r"cat\.safetensors has .* with values beyond float32"):
        velatura.open_overlay(tmp_path / "cat.safetensors")


@pytest.mark.parametrize("widths", [(768, 1024), (768, 300), (1280, 768), (1024, 1280)])
def test_vectors_of_one_text_encoder_of_sdxl_beside_others_are_refused(tmp_path, widths):
    path = tmp_path / "inca.safetensors"
    write_safetensors(path, {"clip_l": torch.ones(2, widths[0]), "clip_g": torch.ones(2, widths[1])}, {})
    with pytest.raises(BadFile, match="SDXL's text encoders have 768 and 1280"):
        velatura.open_overlay(path)


@pytest.mark.parametrize(
    ("tensors", "extra"),
    [
        ({"emb_params": torch.ones(2, 768), "more": torch.ones(3)}, "more"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280), "t5xxl": torch.ones(2, 4096)}, "t5xxl"),
    ],
)
def test_a_tensor_beside_the_vectors_is_named_and_ignored(tmp_path, tensors, extra):
    write_safetensors(tmp_path / "inca.safetensors", tensors, {})
    with pytest.warns(VelaturaWarning, match=rf"holds more than an embedding \({extra}\)") as caught:
        embedding = velatura.open_overlay(tmp_path / "inca.safetensors")
    assert len(caught) == 1
    assert embedding.state_dict().keys() == tensors.keys() - {extra}


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("step", -1, "step count"),
        ("step", 1.5, "step count"),
        ("step", [1], "step count"),
        ("step", "ten", "step count"),
        ("name", 3, "name that is not text"),
        ("name", "a\u202eb", "which a prompt cannot contain"),
        ("sd_checkpoint", 5, "not text \\(sd_checkpoint\\)"),
        ("sd_checkpoint", "none at all", "not a hash \\(sd_checkpoint"),
        ("sd_checkpoint_name", "../../x", "a path in place of a name"),
        ("loss", torch.ones(2), "holds more than an embedding \\(loss\\)"),
        ("history", {"a": [1]}, "holds more than an embedding \\(history\\)"),
    ],
)
def test_an_odd_field_of_a1111_is_named_once_and_changes_nothing(tmp_path, field, value, problem):
    payload = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 9}
    torch.save(
        {**payload, "sd_checkpoint": "cc6cb27103", "sd_checkpoint_name": "v1-5", field: value}, tmp_path / "x.pt"
    )
    with pytest.warns(VelaturaWarning, match=problem) as caught:
        embedding = velatura.open_overlay(tmp_path / "x.pt")
    assert len(caught) == 1
    assert str(caught[0].message).isprintable()
    assert (embedding.card.name, embedding.structure.vectors) == ("x", 2)
