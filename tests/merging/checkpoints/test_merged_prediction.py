"""What a merge of noise and velocity models predicts.

A file that says nothing predicts noise, as SD1 and SDXL do; `v_pred` and `ztsnr` are the markers that trainers write.
"""

import warnings

import pytest
import torch

import velatura
from velatura.errors import VelaturaWarning
from velatura.merging.checkpoints.merge import merge
from velatura.merging.checkpoints.options import Saving
from velatura.merging.lora.extract import extract
from velatura.overlays.difference import Difference
from velatura.tensors import open_tensors

V_MARKERS = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}


def merge_and_open(*models, out, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merge(*models, out=out, **options)
        base = velatura.open_base(out)
    return base, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("strength", "expected"), [(0.0, "epsilon"), (0.3, "epsilon"), (0.7, "v_prediction"), (1.0, "v_prediction")]
)
def test_a_merge_predicts_what_its_larger_share_predicts(write, tmp_path, strength, expected):
    models = [write("eps"), write("velocity", 1.01, **V_MARKERS)]
    base, messages = merge_and_open(*models, strength, out=tmp_path / "out.safetensors")
    assert (base.family.prediction, base.schedule.zero_snr) == (expected, expected == "v_prediction")
    assert "eps predicts epsilon, velocity predicts v_prediction" in messages[0]
    with pytest.warns(VelaturaWarning, match="velocity predicts"):
        in_memory, _ = merge(*models, strength)
    assert (in_memory.family.prediction, in_memory.schedule.zero_snr) == (expected, expected == "v_prediction")
    base, _ = merge_and_open(*models[::-1], 1 - strength, out=tmp_path / "back.safetensors")
    assert base.family.prediction == expected


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [("evv", "epsilon"), ("eve", "v_prediction"), ("vee", "v_prediction"), ("vev", "epsilon"), ("eev", "epsilon")],
)
@pytest.mark.parametrize("mode", ["add-difference", pytest.param("dare", marks=pytest.mark.slow)])
def test_an_added_difference_counts_as_it_is_added(write, tmp_path, predictions, expected, mode):
    """A + (B - C), with 0 for noise and 1 for velocity: e + (v - e) = v; v + (e - v) = e; e + (e - v) is below 0."""
    models = [
        write(f"{index}", 1 + index / 100, **(V_MARKERS if word == "v" else {}))
        for index, word in enumerate(predictions)
    ]
    base, messages = merge_and_open(*models[:2], 1.0, minus=models[2], mode=mode, out=tmp_path / "out.safetensors")
    assert base.family.prediction == expected
    assert "the merge is saved as" in messages[0]


def test_blocks_weigh_by_their_size(write, tmp_path):
    models = [write("eps"), write("velocity", 1.01, **V_MARKERS)]
    for blocks, expected in (("IN=1,M00=1,OUT=1", "v_prediction"), ("IN=0.1,M00=1,OUT=0", "epsilon")):
        base, _ = merge_and_open(*models, 0.0, blocks=blocks, out=tmp_path / f"{expected}.safetensors")
        assert base.family.prediction == expected


def test_velocity_that_only_a_yaml_or_the_header_tells_of_is_kept(write, tmp_path):
    one, two = write("one"), write("two", 1.01, metadata={"modelspec.prediction_type": "v"})
    one.with_suffix(".yaml").write_text('    parameterization: "v"\n')
    saving = Saving(config="none", copies_metadata=False)
    base, messages = merge_and_open(one, two, 0.5, saving=saving, out=tmp_path / "out.safetensors")
    assert (base.family.prediction, messages) == ("v_prediction", [])


def test_the_yaml_of_a_lighter_parent_is_not_copied(write, tmp_path):
    one, two = write("one"), write("two", 1.01)
    one.with_suffix(".yaml").write_text('    parameterization: "v"\n')
    base, _ = merge_and_open(one, two, 0.9, out=tmp_path / "out.safetensors")
    assert base.family.prediction == "epsilon"
    assert not (tmp_path / "out.yaml").exists()
    _, messages = merge_and_open(one, two, 0.9, saving=Saving(config="A"), out=tmp_path / "kept.safetensors")
    assert any("programs that follow the copied .yaml" in message for message in messages)


def test_models_that_say_nothing_merge_without_a_word(write, tmp_path):
    _, messages = merge_and_open(write("one"), write("two", 1.01), 0.5, out=tmp_path / "out.safetensors")
    assert messages == []
    found = open_tensors(tmp_path / "out.safetensors")
    assert not {"v_pred", "ztsnr"} & found.tensors.keys()
    assert "modelspec.prediction_type" not in found.metadata


def test_differences_of_noise_and_velocity_are_warned_of(write):
    one, two = write("one"), write("two", 1.01, **V_MARKERS)
    with pytest.warns(VelaturaWarning, match=r"one predicts epsilon and two v_prediction.*--prediction v"):
        extract(one, two, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Difference.from_bases(velatura.open_base(two), velatura.open_base(one))
    expected = (
        "two predicts v_prediction and one epsilon: with their difference attached, two paints garbage unless it is"
    )
    assert any(str(warning.message).startswith(expected) for warning in caught)
