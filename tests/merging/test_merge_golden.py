"""Merging as A1111's merger does, by what its own code made of small files; where it is wrong, as it ought to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from velatura.errors import BadRecipe, WrongBase
from velatura.merging.checkpoints.merge import merge
from velatura.merging.checkpoints.options import Saving
from velatura.tensors import open_state_dict, open_tensors

GOLDEN = Path(__file__).parents[1] / "data/a1111/merge"
CASES = {case["id"]: case for case in json.loads((GOLDEN / "index.json").read_text())["cases"]}
FILES = {"M1": "out_ws1.safetensors", "Flat": "Flat.ckpt", "Old": "Old.ckpt"}
MODES = {"Weighted sum": "weighted-sum", "Add difference": "add-difference", "No interpolation": "none"}
MODELS = {"weighted-sum": 2, "add-difference": 3, "none": 1}
MADE = [name for name, case in CASES.items() if "out" in case]
# the peer turns whole numbers into broken ones, which ours never does, so that its own results cannot be mixed on
COUNTER = "model_ema.num_updates"


def merged(case: dict, out: Path):
    mode = MODES[case["method"]]
    models = [GOLDEN / FILES.get(case[each], f"{case[each]}.safetensors") for each in "abc"[: MODELS[mode]]]
    saving = Saving(
        dtype="float16" if case["save_as_half"] else None,
        vae=None if case["bake_vae"] == "None" else GOLDEN / case["bake_vae"],
        discard=case["discard"],
        metadata=json.loads(case["metadata_json"]) if case["metadata_json"].startswith("{") else {},
        copies_metadata=case["copy_metadata"],
        keeps_recipe=case["add_recipe"],
    )
    strength = None if mode == "none" else case["multiplier"]
    first, other, minus = [*models, None, None][:3]
    return merge(first, other, strength, minus=minus, mode=mode, saving=saving, out=out)


@pytest.mark.parametrize("name", MADE)
def test_every_merge_of_a1111_comes_out_bit_equal(name, tmp_path):
    case = CASES[name]
    merged(case, tmp_path / "out.safetensors")
    ours, theirs = open_tensors(tmp_path / "out.safetensors").tensors, open_state_dict(GOLDEN / case["out"]).tensors
    assert set(ours) == set(theirs)
    for key in set(ours) - {COUNTER}:
        wanted = theirs[key]
        if case["save_as_half"] and wanted.is_floating_point():
            wanted = wanted.half()  # A1111 halves only what it has mixed
        assert ours[key].dtype == wanted.dtype
        assert torch.equal(ours[key], wanted)


@pytest.mark.parametrize("name", [name for name in MADE if name != "chain"])
def test_whole_numbers_stay_the_first_models(name, tmp_path):
    case = CASES[name]
    merged(case, tmp_path / "out.safetensors")
    ours = open_tensors(tmp_path / "out.safetensors").tensors
    first = open_state_dict(GOLDEN / FILES.get(case["a"], f"{case['a']}.safetensors")).tensors
    if COUNTER in ours:
        assert torch.equal(ours[COUNTER], first[COUNTER])


@pytest.mark.parametrize(
    "name", [name for name in MADE if CASES[name].get("metadata") and CASES[name]["save_metadata"]]
)
def test_the_header_tells_what_a1111_tells_with_true_hashes(name, tmp_path):
    case = CASES[name]
    merged(case, tmp_path / "out.safetensors")
    ours, theirs = open_tensors(tmp_path / "out.safetensors").metadata, dict(case["metadata"])
    recipe, models = (json.loads(theirs.pop(each, "{}")) for each in ("sd_merge_recipe", "sd_merge_models"))
    assert theirs.items() <= ours.items()
    if not recipe:
        assert "sd_merge_recipe" not in ours
        return
    found, known = json.loads(ours["sd_merge_recipe"]), json.loads(ours["sd_merge_models"])
    assert known.keys() == models.keys()
    for digits, each in known.items():
        assert each["name"] == models[digits]["name"]
        assert each["legacy_hash"] == models[digits]["legacy_hash"]
        assert bool(each["sd_merge_recipe"]) == bool(models[digits]["sd_merge_recipe"])
    assert found["primary_model_hash"] == next(iter(models))  # null in A1111's, which asks too early
    same = ("interp_method", "save_as_half", "bake_in_vae", "discard_weights", "is_inpainting", "is_instruct_pix2pix")
    assert {each: found[each] for each in same} == {each: recipe[each] for each in same}


def test_a_json_object_in_a_models_header_is_no_obstacle(tmp_path):
    merged(CASES["json_md"], tmp_path / "out.safetensors")
    assert open_tensors(tmp_path / "out.safetensors").metadata["ss_note"] == '{"a": 1}'


@pytest.mark.parametrize("name", ["inp_b", "pix_b", "inp_pix"])
def test_what_a1111_crashes_on_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(WrongBase, match=r"input_blocks\.0\.0\.weight of shape"):
        merged(CASES[name], tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_fewer_models_than_a_mode_takes_are_refused(tmp_path):
    files = [GOLDEN / "A.safetensors", GOLDEN / "B.safetensors"]
    for count, mode in ((1, "weighted-sum"), (2, "add-difference"), (2, "none"), (2, "ties")):
        with pytest.raises(BadRecipe, match=f"{mode} takes"):
            merge(*files[:count], mode=mode, out=tmp_path / "out.safetensors")


def test_the_file_of_a_config_goes_beside_the_result(tmp_path):
    for name in ("A", "B"):
        (tmp_path / f"{name}.safetensors").write_bytes((GOLDEN / f"{name}.safetensors").read_bytes())
    (tmp_path / "B.yaml").write_text("of B")
    out, files = tmp_path / "out.safetensors", (tmp_path / "A.safetensors", tmp_path / "B.safetensors")
    assert merge(*files, 0.5, out=out, saving=Saving(config="none")).config == ""
    assert not (tmp_path / "out.yaml").exists()
    assert merge(*files, 0.5, out=out).config == "B.yaml"
    assert (tmp_path / "out.yaml").read_text() == "of B"
