"""What stands beside a file: A1111's metadata (facts of its 1.8), Civitai's answers, descriptions and pictures."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile
from velatura.library.sidecars import read_a1111_notes
from velatura.tensors import write_safetensors

DATA = Path(__file__).parents[1] / "data"
A1111 = {
    "description": "Old ink drawings.",
    "notes": "Best at night.",
    "activation text": "ink drawing, sketch",
    "preferred weight": 0.7,
    "negative text": "colour",
    "sd version": "SD1",
}
CIVITAI = {
    "trainedWords": ["inkstyle", "ink wash"],
    "baseModel": "SDXL 1.0",
    "description": "<p>A style of <b>ink</b> &amp; wash.</p>",
    "model": {"name": "Ink & Wash"},
    "files": [{"hashes": {"SHA256": "AB" * 32, "AutoV2": "ABABABABAB", "CRC32": "01234567"}}],
}


@pytest.fixture
def ink(tmp_path):
    """A file without a word of its own."""
    return Path(shutil.copyfile(DATA / "nature/lyco_oft.safetensors", tmp_path / "ink.safetensors"))


def entry(path: Path):
    return velatura.Library(path.parent).entry(path.stem)


def test_a1111s_metadata_are_read(ink):
    ink.with_suffix(".json").write_text(json.dumps(A1111))
    found = entry(ink)
    assert found.trigger_words == ("ink drawing, sketch",)
    assert found.strength == 0.7
    assert found.notes.negative == "colour"
    assert found.notes.description == "Old ink drawings. Best at night."
    assert found.notes.family == "SD1"


def test_a1111s_notes_are_read_field_by_field(ink):
    assert read_a1111_notes(ink) == {}
    ink.with_suffix(".json").write_text(json.dumps(A1111 | {"vae": "", "unknown": 1}))
    assert read_a1111_notes(ink) == {
        "description": "Old ink drawings.",
        "notes": "Best at night.",
        "activation": "ink drawing, sketch",
        "strength": 0.7,
        "negative": "colour",
        "family": "SD1",
    }
    ink.with_suffix(".json").write_text("[]")
    with pytest.raises(BadFile, match=r"ink\.json"):
        read_a1111_notes(ink)


def test_a_preferred_weight_of_0_is_none(ink):
    ink.with_suffix(".json").write_text(json.dumps({"preferred weight": 0}))
    assert entry(ink).strength is None


def test_civitais_answer_is_read(ink):
    ink.with_suffix(".civitai.info").write_text(json.dumps(CIVITAI))
    found = entry(ink)
    assert found.trigger_words == ("inkstyle", "ink wash")
    assert found.notes.family == "SDXL"
    assert found.notes.description == "A style of  ink  & wash."
    assert found.aliases == ("lyco_oft", "Ink & Wash")
    assert found.notes.hashes == ("ab" * 32, "ababababab")
    assert velatura.Library(ink.parent).path("ink & wash") == ink


def test_what_the_owner_wrote_comes_first(ink):
    ink.with_suffix(".civitai.info").write_text(json.dumps(CIVITAI))
    ink.with_suffix(".json").write_text(json.dumps(A1111))
    found = entry(ink)
    assert found.trigger_words == ("ink drawing, sketch",)
    assert found.notes.trigger_words == ("inkstyle", "ink wash")
    assert found.notes.description == "Old ink drawings. Best at night."


@pytest.mark.parametrize("ending", [".txt", ".description.txt"])
def test_a_description_is_read(ink, ending):
    ink.with_name("ink" + ending).write_text("Made by hand.\n")
    assert entry(ink).notes.description == "Made by hand."


@pytest.mark.parametrize("name", ["ink.png", "ink.preview.png", "ink.webp"])
def test_a_preview_is_found(ink, name):
    (ink.parent / name).write_bytes(b"a picture")
    assert entry(ink).preview == ink.parent / name


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 10**5, "null", '"x"', b"\xff\xfe", " " * (2**21 + 1)])
def test_what_cannot_be_read_is_named_and_no_trouble(ink, text):
    ink.with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = entry(ink)
    assert found.notes.unread == ("ink.json: it is not what its name says",)
    assert (found.kind, found.error) == ("lora", "")


@pytest.mark.parametrize(
    ("ending", "fields", "problem"),
    [
        (".json", {"my flag": 1}, "unknown fields my flag: they are not read"),
        (".json", {"preferred weight": "0.8"}, "its preferred weight '0.8' is not a number up to 100: it is ignored"),
        (".json", {"preferred weight": 500}, "its preferred weight '500' is not a number up to 100: it is ignored"),
        (".json", {"activation text": ["ink"]}, "its activation text is not a text: it is ignored"),
        (".json", {"sd version": "Flux"}, "its sd version 'Flux' is not SD1, SD2 or SDXL"),
        (".civitai.info", {"my flag": 1, "other": 2}, "unknown fields my flag, other: they are not read"),
        (".civitai.info", {"trainedWords": "ink"}, "its trainedWords is not a list: it is ignored"),
        (".civitai.info", {"model": ["Ink"]}, "its model is not an object: it is ignored"),
        (".civitai.info", {"baseModel": "Flux.1 D"}, "its baseModel 'Flux.1 D' is not SD1, SD2 or SDXL"),
        (".civitai.info", {"modelVersions": [CIVITAI]}, "unknown fields modelVersions: they are not read"),
        (".civitai.info", {"model": {"name": "Ink", "flag": 1}}, "unknown fields model.flag: they are not read"),
        (".civitai.info", {"model": {"name": ["Ink"]}}, "its model.name is not a text: it is ignored"),
        (".civitai.info", {"model": {"type": "Poses"}}, "its model.type 'Poses' is not a kind that velatura opens"),
        (".civitai.info", {"files": [{"flag": 1}] * 2}, "unknown fields files.flag: they are not read"),
        (".civitai.info", {"files": ["ink"]}, "its files is not a list of objects: it is ignored"),
        (".civitai.info", {"files": [{"hashes": ["ab"]}]}, "its files.hashes is not an object: it is ignored"),
        (".civitai.info", {"files": [{"hashes": {"MD5": "ab"}}]}, "unknown fields files.hashes.MD5: they are not read"),
        (".civitai.info", {"files": [{"hashes": {"SHA256": "x"}}]}, "its files.hashes.SHA256 is not a hash"),
        (".civitai.info", {"trainedWords": ["ink", 3]}, "its trainedWords is not a list of texts: it is ignored"),
    ],
)
def test_what_is_not_understood_is_named_in_one_line(ink, ending, fields, problem):
    path = ink.with_name("ink" + ending)
    path.write_text(json.dumps(fields))
    [line] = entry(ink).notes.unread
    assert line.startswith(f"{path.name}: {problem}")


# Fields of GET /api/v1/model-versions by Civitai's documentation of 2023 to 2025, and of the extensions that save it
CIVITAIS_OTHER_FIELDS = {
    **dict.fromkeys(("id", "modelId", "index", "nsfwLevel", "vaeId", "clipSkip", "steps", "epochs"), 3),
    **dict.fromkeys(("createdAt", "updatedAt", "publishedAt", "earlyAccessEndsAt"), "2025-12-18T08:55:00.000Z"),
    **dict.fromkeys(("name", "status", "availability", "baseModelType", "uploadType", "usageControl", "air"), "x"),
    **{key: [1] for key in ("images", "recommendedResources", "tags")},
    **{key: {"x": 1} for key in ("stats", "trainingDetails", "earlyAccessConfig", "settings", "extensions", "creator")},
    "downloadUrl": "https://example.org/1",
    "model": {"name": "Ink", "type": "LORA", "nsfw": True, "poi": False, "mode": "Archived", "tags": ["ink"]},
    "files": [
        {
            **dict.fromkeys(("id", "sizeKB"), 3),
            **dict.fromkeys(("name", "scannedAt", "downloadUrl", "virusScanMessage", "pickleScanMessage"), "x"),
            **dict.fromkeys(("type", "pickleScanResult", "virusScanResult"), "Success"),
            "primary": True,
            "metadata": {"format": "SafeTensor", "size": "full", "fp": "fp16"},
            "hashes": {"AutoV1": "AB" * 4, "BLAKE3": "AB" * 32, "CRC32": "AB" * 4, "AutoV3": "AB" * 6},
        }
    ],
}


def test_statistics_and_dates_of_civitai_are_no_trouble(ink):
    ink.with_suffix(".civitai.info").write_text(json.dumps(CIVITAI | CIVITAIS_OTHER_FIELDS))
    assert entry(ink).notes.unread == ()
    ink.with_suffix(".json").write_text(json.dumps(A1111 | {"extensions": {"sd_civitai_helper": {"version": "1.8"}}}))
    assert entry(ink).notes.unread == ()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"baseModel": "SDXL 1.0"}, "its notes say that it is for SDXL, but the file is for SD1"),
        (
            {"model": {"type": "Hypernetwork"}},
            "its notes say that it is of the kind hypernet, but it is of the kind lora",
        ),
    ],
)
def test_notes_that_the_file_contradicts_are_named(tmp_path, fields, problem):
    path = tmp_path / "ink.safetensors"
    down, up = torch.zeros(1, 320), torch.ones(320, 1)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    write_safetensors(
        path, {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, {"ss_base_model_version": "sd_v1"}
    )
    path.with_suffix(".civitai.info").write_text(json.dumps(fields))
    [line] = entry(path).facts()["unread"]
    assert line.startswith(problem)


@pytest.mark.parametrize(
    ("base", "family"), [("NoobAI", "SDXL"), ("Pony", "SDXL"), ("SD 1.5 LCM", "SD1"), ("Other", "")]
)
def test_civitais_names_of_bases_are_known(ink, base, family):
    ink.with_suffix(".civitai.info").write_text(json.dumps({"baseModel": base}))
    assert (entry(ink).notes.family, entry(ink).notes.unread) == (family, ())


@pytest.mark.parametrize(
    "said",
    [
        {"preferred weight": "much", "activation text": 3, "description": ["x"], "sd version": None, "vae": {}},
        {"preferred weight": 1e400},
        {"preferred weight": 10**400},
        {"preferred weight": True},
        {"trainedWords": "x", "files": {}, "model": []},
        {"trainedWords": [1, None, ["x"]], "files": [1, {"hashes": [1]}]},
        {"trainedWords": ["x"] * 1000, "files": [{"hashes": {"SHA256": 3}}]},
        {"activation text": "\x1b[31mred"},
    ],
)
@pytest.mark.parametrize("ending", [".json", ".civitai.info"])
def test_what_nobody_means_is_left_out(ink, said, ending):
    ink.with_name("ink" + ending).write_text(json.dumps(said))
    found = entry(ink)
    assert found.strength is None
    assert "\x1b" not in json.dumps(found.facts(), ensure_ascii=False)
