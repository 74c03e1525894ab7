"""Hypernetworks of other programs as safetensors: they equal those from A1111's .pt."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats.native import CARD_KEY
from velatura.tensors import open_tensors, write_safetensors

GOLDEN = Path(__file__).parents[2] / "data" / "hypernet"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]


def write_foreign(path, overlay, *, without=(), **settings):
    """Write a file of flat keys and settings as JSON, without velatura's card."""
    velatura.save(overlay, path)
    contents = open_tensors(path)
    metadata = {key: text for key, text in contents.metadata.items() if key not in {CARD_KEY, *without}}
    write_safetensors(path, dict(contents.tensors), {**metadata, **settings})
    return path


def equal(first, second):
    first_state, second_state = first.state_dict(), second.state_dict()
    return first_state.keys() == second_state.keys() and all(
        torch.equal(first_state[key], second_state[key]) for key in first_state
    )


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("case", [pytest.param(case, id=case["case"]) for case in CASES])
def test_a_file_with_settings_equals_the_pt(case, tmp_path):
    overlay = velatura.open_overlay(GOLDEN / case["file"])
    again = velatura.open_overlay(write_foreign(tmp_path / "x.safetensors", overlay))
    assert again.structure.model_dump() | {"widths": ()} == overlay.structure.model_dump() | {"widths": ()}
    assert set(again.structure.widths) == set(overlay.structure.widths)
    assert equal(again, overlay)
    context = torch.randn(2, 5, overlay.structure.widths[0])
    assert torch.equal(again.transform(context, 0.5)[0], overlay.transform(context, 0.5)[0])


STRUCTURAL = ("layer_structure", "is_layer_norm", "use_dropout", "dropout_structure", "last_layer_dropout")


@pytest.mark.parametrize("layers", [(1, 2, 1), (1, 1.3, 0.7, 1), (1, 1), (1, 3, 2, 2, 1)])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activate_output", [True, False])
def test_layers_and_norms_are_inferred_from_shapes(hyper, tmp_path, layers, layer_norm, activate_output):
    options = {"activation": "relu", "layer_norm": layer_norm, "activate_output": activate_output}
    overlay = hyper(layers=layers, **options)
    again = velatura.open_overlay(write_foreign(tmp_path / "x.safetensors", overlay, without=STRUCTURAL))
    assert again.structure.layer_norm == layer_norm
    assert len(again.structure.layers) == len(layers)
    assert equal(again, overlay)


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")  # no base has such widths
@pytest.mark.parametrize(("width", "size"), [(49, 1), (98, 1), (103, 1), (49, 47), (8, 10)])
def test_layers_of_any_size_are_inferred(tmp_path, width, size):
    shapes = {"0.weight": (size, width), "0.bias": (size,), "1.weight": (width, size), "1.bias": (width,)}
    tensors = {f"{width}_{part}.linear.{key}": torch.randn(shape) for part in (0, 1) for key, shape in shapes.items()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    assert velatura.open_overlay(tmp_path / "x.safetensors").state_dict().keys() == tensors.keys()


def test_linear_layers_without_settings_are_known_by_their_indices(hyper, tmp_path):
    overlay = hyper(layers=(1, 2, 1), layer_norm=True)
    settings = [key for key in open_tensors(save(tmp_path, overlay)).metadata if "." not in key]
    path = write_foreign(tmp_path / "x.safetensors", overlay, without=settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = velatura.open_overlay(path)
    assert again.structure.activation == "linear"
    assert again.card.name == "x"
    assert equal(again, overlay)


def save(folder, overlay):
    velatura.save(overlay, folder / "saved.safetensors")
    return folder / "saved.safetensors"


def test_an_unknown_activation_is_asked_for(hyper, tmp_path):
    path = write_foreign(tmp_path / "x.safetensors", hyper(activation="relu"), without=["activation_func"])
    with pytest.raises(BadFile, match=r"x\.safetensors does not say what its activation is.* as activation_func"):
        velatura.open_overlay(path)


def test_an_output_that_may_be_activated_is_warned_of(hyper, tmp_path):
    path = write_foreign(tmp_path / "x.safetensors", hyper(activation="relu"), without=["activate_output"])
    with pytest.warns(VelaturaWarning, match="does not say whether its output is activated"):
        assert velatura.open_overlay(path).structure.activate_output


def test_settings_that_python_printed_are_read(hyper, tmp_path):
    overlay = hyper(activation="relu", layers=(1, 2, 2, 1), dropout=0.1)
    flags = {"is_layer_norm": "False", "activate_output": "False", "use_dropout": "True"}
    lists = {"layer_structure": "(1, 2.0, 2, 1)", "dropout_structure": "0, 0.1, 0.1, 0"}
    texts = {"name": "1234", "sd_checkpoint": "12345e6789", "sd_checkpoint_name": "None", "optional_info": "a: b"}
    again = velatura.open_overlay(write_foreign(tmp_path / "x.safetensors", overlay, **flags, **lists, **texts))
    assert again.structure == overlay.structure
    assert (again.card.name, again.card.base_hash, again.card.base) == ("1234", "12345e6789", "")
    assert again.card.note == "a: b"


def test_none_as_python_prints_it_is_linear(hyper, tmp_path):
    path = write_foreign(tmp_path / "x.safetensors", hyper(), activation_func="None", activate_output="True")
    assert velatura.open_overlay(path).structure.activation == "linear"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_func": "hardcore"}, "no activation is called 'hardcore'"),
        ({"activation_func": "relu"}, "lacks"),
        ({"layer_structure": "[1, 3, 1]"}, "of shape"),
        ({"layer_structure": "[" * 50_000}, "not a list of numbers"),
        ({"layer_structure": "[[1], 2, 1]"}, "a list in the field"),
        ({"is_layer_norm": "true"}, "lacks"),
        ({"is_layer_norm": "no"}, "has 'no' for is_layer_norm in its metadata: write true or false"),
        ({"activate_output": "[]"}, "has '\\[\\]' for activate_output"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(hyper, tmp_path, settings, message):
    path = write_foreign(tmp_path / "x.safetensors", hyper(), **settings)
    with pytest.raises(BadFile, match=message):
        velatura.open_overlay(path)


@pytest.mark.parametrize("key", ["96_2.linear.0.weight", "hat", "096_0.linear.0.weight", "96_0.linear.0.weight.x"])
def test_tensors_of_something_else_are_refused(hyper, tmp_path, key):
    path = write_foreign(tmp_path / "x.safetensors", hyper())
    contents = open_tensors(path)
    write_safetensors(path, {**contents.tensors, key: torch.ones(1)}, contents.metadata)
    with pytest.raises(BadFile, match=f"holds '{key}'"):
        velatura.open_overlay(path)


def test_half_a_hypernetwork_is_refused(hyper, tmp_path):
    path = write_foreign(tmp_path / "x.safetensors", hyper(), without=STRUCTURAL)
    contents = open_tensors(path)
    for part in ("_0.", "_1."):
        half = {key: tensor for key, tensor in contents.tensors.items() if part in key}
        write_safetensors(tmp_path / "half.safetensors", half, contents.metadata)
        with pytest.raises(BadFile, match=r"half\.safetensors"):
            velatura.open_overlay(tmp_path / "half.safetensors")
