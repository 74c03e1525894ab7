"""Merge as A1111 does, checked against files that its own code merged; where it is wrong, as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from velatura.errors import BadRecipe, WrongBase
from velatura.merging.checkpoints.merge import merge
from velatura.merging.checkpoints.options import Saving
from velatura.tensors import open_state_dict, open_tensors

GOLDEN = Path(__file__).parents[2] / "data/a1111/merge"
CASES = {case["id"]: case for case in json.loads((GOLDEN / "index.json").read_text())["cases"]}
FILES = {"M1": "out_ws1.safetensors", "Flat": "Flat.ckpt", "Old": "Old.ckpt"}
MODES = {"Weighted sum": "weighted-sum", "Add difference": "add-difference", "No interpolation": "none"}
MODELS = {"weighted-sum": 2, "add-difference": 3, "none": 1}
MERGED_CASES = [name for name, case in CASES.items() if "out" in case]
# A1111 turns integers into fractions, which velatura never does, so the results of one cannot be merged again
COUNTER = "model_ema.num_updates"


def merge_case(case: dict, out: Path) -> None:
    mode = MODES[case["method"]]
    models = [GOLDEN / FILES.get(case[letter], f"{case[letter]}.safetensors") for letter in "abc"[: MODELS[mode]]]
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
    merge(first, other, strength, minus=minus, mode=mode, saving=saving, out=out)


@pytest.mark.parametrize("name", MERGED_CASES)
def test_every_merge_of_a1111_comes_out_bit_equal(name, tmp_path):
    case = CASES[name]
    merge_case(case, tmp_path / "out.safetensors")
    ours, theirs = open_tensors(tmp_path / "out.safetensors").tensors, open_state_dict(GOLDEN / case["out"]).tensors
    assert set(ours) == set(theirs)
    for key in set(ours) - {COUNTER}:
        wanted = theirs[key]
        if case["save_as_half"] and wanted.is_floating_point():
            wanted = wanted.half()  # A1111 halves only what it has mixed
        assert ours[key].dtype == wanted.dtype
        assert torch.equal(ours[key], wanted)


@pytest.mark.parametrize("name", [name for name in MERGED_CASES if name != "chain"])
def test_whole_numbers_stay_the_first_models(name, tmp_path):
    case = CASES[name]
    merge_case(case, tmp_path / "out.safetensors")
    ours = open_tensors(tmp_path / "out.safetensors").tensors
    first = open_state_dict(GOLDEN / FILES.get(case["a"], f"{case['a']}.safetensors")).tensors
    if COUNTER in ours:
        assert torch.equal(ours[COUNTER], first[COUNTER])


@pytest.mark.parametrize(
    "name", [name for name in MERGED_CASES if CASES[name].get("metadata") and CASES[name]["save_metadata"]]
)
def test_the_header_tells_what_a1111_tells_with_true_hashes(name, tmp_path):
    case = CASES[name]
    merge_case(case, tmp_path / "out.safetensors")
    ours, theirs = open_tensors(tmp_path / "out.safetensors").metadata, dict(case["metadata"])
    recipe, models = (json.loads(theirs.pop(key, "{}")) for key in ("sd_merge_recipe", "sd_merge_models"))
    assert theirs.items() <= ours.items()
    if not recipe:
        assert "sd_merge_recipe" not in ours
        return
    found, known = json.loads(ours["sd_merge_recipe"]), json.loads(ours["sd_merge_models"])
    assert known.keys() == models.keys()
    for digits, model in known.items():
        assert model["name"] == models[digits]["name"]
        assert model["legacy_hash"] == models[digits]["legacy_hash"]
        assert bool(model["sd_merge_recipe"]) == bool(models[digits]["sd_merge_recipe"])
    assert found["primary_model_hash"] == next(iter(models))  # null in A1111's, which asks too early
    same = ("interp_method", "save_as_half", "bake_in_vae", "discard_weights", "is_inpainting", "is_instruct_pix2pix")
    assert {key: found[key] for key in same} == {key: recipe[key] for key in same}


def test_a_json_object_in_a_models_header_is_no_obstacle(tmp_path):
    merge_case(CASES["json_md"], tmp_path / "out.safetensors")
    assert open_tensors(tmp_path / "out.safetensors").metadata["ss_note"] == '{"a": 1}'


@pytest.mark.parametrize("name", ["inp_b", "pix_b", "inp_pix"])
def test_what_a1111_crashes_on_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(WrongBase, match=r"input_blocks\.0\.0\.weight of shape"):
        merge_case(CASES[name], tmp_path / "out.safetensors")
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
    assert merge(*files, 0.5, out=out, saving=Saving(config="none"))[1].config == ""
    assert not (tmp_path / "out.yaml").exists()
    assert merge(*files, 0.5, out=out)[1].config == "B.yaml"
    assert (tmp_path / "out.yaml").read_text() == "of B"
