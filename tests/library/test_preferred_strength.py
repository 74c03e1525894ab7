"""The preferred strength stands where other programs read it, and nothing else changes there."""

import json

import pytest
import torch

import velatura
from velatura.errors import BadFile
from velatura.library.preferred_strength import write_into_file, write_sidecar
from velatura.tensors import open_tensors, write_safetensors


@pytest.fixture
def saved(tiny, tmp_path):
    overlay = velatura.Hypernetwork.for_base(tiny, name="ink", seed=1)
    velatura.save(overlay, tmp_path / "ink.safetensors")
    return overlay, tmp_path / "ink.safetensors"


def test_a_new_sidecar_has_a1111s_fields_and_the_library_reads_it(saved):
    _, file = saved
    sidecar = write_sidecar(file, 0.65, "measured")
    assert sidecar == file.with_suffix(".json")
    # the names of the fields are those of A1111's user metadata (ui_extra_networks_user_metadata.py)
    assert json.loads(sidecar.read_text()) == {"preferred weight": 0.65, "notes": "velatura tune: measured"}
    assert velatura.Library(file.parent).entry("ink").strength == 0.65


def test_other_fields_and_notes_stay_and_an_earlier_measurement_is_replaced(saved):
    _, file = saved
    theirs = {"description": "a pen", "activation text": "in ink", "preferred weight": 1, "notes": "mine", "odd": [1]}
    file.with_suffix(".json").write_text(json.dumps(theirs))
    write_sidecar(file, 0.5, "first")
    write_sidecar(file, 0.6, "second")
    found = json.loads(file.with_suffix(".json").read_text())
    assert found == theirs | {"preferred weight": 0.6, "notes": "mine\nvelatura tune: second"}


@pytest.mark.parametrize("text", ["[1]", "not json", '"text"'])
def test_a_json_of_something_else_is_never_overwritten(saved, text):
    _, file = saved
    file.with_suffix(".json").write_text(text)
    with pytest.raises(BadFile, match="not a JSON object of notes"):
        write_sidecar(file, 0.5, "measured")
    assert file.with_suffix(".json").read_text() == text


def test_our_own_file_says_it_and_holds_the_same_overlay(saved, capsys):
    overlay, file = saved
    before = open_tensors(file).metadata
    assert write_into_file(file, 0.65, "measured")
    metadata = open_tensors(file).metadata
    assert metadata.items() >= before.items()
    assert metadata["modelspec.usage_hint"] == "strength 0.65"
    opened = velatura.open_overlay(file)
    assert opened.card == velatura.open_overlay(file).card
    for name, weight in overlay.state_dict().items():
        assert torch.equal(opened.state_dict()[name], weight)
    assert velatura.Library(file.parent).entry("ink").info.details["usage"] == "strength 0.65"


def test_files_of_other_programs_are_left_as_they_are(saved, tmp_path):
    overlay, _ = saved
    velatura.save(overlay, tmp_path / "ink.pt")
    write_safetensors(tmp_path / "theirs.safetensors", {"a": torch.zeros(2)}, {"ss_steps": "3"})
    for name in ("ink.pt", "theirs.safetensors"):
        before = (tmp_path / name).read_bytes()
        assert not write_into_file(tmp_path / name, 0.5, "measured")
        assert (tmp_path / name).read_bytes() == before
