"""Hypernetworks of A1111, against A1111 1.8.0: tests/data/hypernet has its fields and its outputs for every file."""

import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadFile, VelaturaWarning, WrongBase
from velatura.formats.hypernetworks import a1111
from velatura.tensors import open_tensors, write_torch

FOLDER = Path(__file__).parents[2] / "data" / "hypernet"
INDEX = json.loads((FOLDER / "index.json").read_text())
CASES = {case["case"]: case for case in INDEX["cases"]}
INPUTS = open_tensors(FOLDER / "inputs.safetensors").tensors
OUTPUTS = open_tensors(FOLDER / "outputs.safetensors").tensors


def ids(cases, key):
    return [pytest.param(case, id=case[key]) for case in cases]


def open_case(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)
        return velatura.open_overlay(FOLDER / CASES[case]["file"])


def assert_close(actual, expected, tolerance=2e-5):
    assert ((actual - expected).abs() <= tolerance * (1 + expected.abs())).all()


@pytest.mark.parametrize("case", CASES)
def test_contexts_are_changed_as_in_a1111(case):
    overlay = open_case(case)
    keys = [key for key in OUTPUTS if key.startswith(f"{case}.")]
    assert keys
    for key in keys:
        width, part, strength = key.replace("@", ".", 1).split(".", 3)[1:]
        k, v = overlay.transform(INPUTS[f"x{width}"], float(strength))
        assert_close(k if part == "k" else v, OUTPUTS[key])


@pytest.mark.parametrize("case", CASES)
def test_all_fields_of_a_file_are_read(case):
    overlay, loaded = open_case(case), CASES[case]["loaded"]
    structure = overlay.structure
    assert list(structure.widths) == loaded["sizes"]
    assert list(structure.layers) == loaded["layer_structure"]
    assert structure.activation == (loaded["activation_func"] or "linear")
    assert structure.layer_norm == loaded["is_layer_norm"]
    assert structure.activate_output == bool(loaded["activate_output"])
    assert list(structure.dropout) == loaded["dropout_structure"][: len(structure.layers)]
    assert overlay.card.steps == (loaded["step"] or 0)
    assert overlay.card.name == (loaded["name"] or Path(CASES[case]["file"]).stem)
    assert overlay.card.base == (loaded["sd_checkpoint_name"] or "")
    assert overlay.card.base_hash == (loaded["sd_checkpoint"] or "")
    modules = overlay.get_submodule(f"{structure.widths[0]}_0.linear").children()
    expected = [module.split("(")[0] for module in loaded["sequential"]]
    assert [repr(module).split("(")[0] for module in modules] == expected
    assert {weight.dtype for weight in overlay.parameters()} == {torch.float32}


@pytest.mark.parametrize("stack", ids(INDEX["stacks"], "stack"))
def test_several_act_in_order(stack):
    for width in stack["dims"]:
        k = v = INPUTS[f"x{width}"]
        for case, strength in stack["apply"]:
            overlay = open_case(case)
            k, v = overlay.transform(k, strength)[0], overlay.transform(v, strength)[1]
        assert_close(k, OUTPUTS[f"{stack['stack']}.{width}.k"], 2e-4)
        assert_close(v, OUTPUTS[f"{stack['stack']}.{width}.v"], 2e-4)


@pytest.mark.parametrize("repeat", ids(INDEX["repeats"], "id"))
def test_the_same_one_twice_acts_with_each_strength(repeat):
    overlay = open_case(repeat["case"])
    for width in repeat["dims"]:
        k = INPUTS[f"x{width}"]
        for strength in repeat["name_in_prompt_twice_with"]:
            k = overlay.transform(k, strength)[0]
        assert_close(k, OUTPUTS[f"{repeat['id']}a.{width}.k"], 2e-4)


@pytest.mark.parametrize("trained", ids(INDEX["train_mode"], "id"))
def test_strength_is_ignored_in_train_mode(trained):
    width = trained["dim"]
    k, _ = open_case(trained["case"]).train().transform(INPUTS[f"x{width}"], trained["multiplier_set"])
    assert_close(k, OUTPUTS[f"{trained['id']}.{width}.k"])


class Attention(nn.Module):
    """One attention layer with A1111's given weights, as LDM computes it."""

    def __init__(self, layer):
        super().__init__()
        self.heads, self.scale = layer["heads"], layer["scale"]
        weights = {name: OUTPUTS[f"{layer['id']}.{name}.weight"] for name in ("to_q", "to_k", "to_v", "to_out")}
        for name, weight in weights.items():
            self.add_module(name, nn.Linear(weight.shape[1], weight.shape[0], bias=name == "to_out"))
            self.get_submodule(name).weight = nn.Parameter(weight)
        self.to_out.bias = nn.Parameter(OUTPUTS[f"{layer['id']}.to_out.bias"])

    def forward(self, x, context):
        q, k, v = (
            projection.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        mixed = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1) @ v
        return self.to_out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("layer", ids(INDEX["attention"], "id"))
def test_an_attention_layer_gives_the_outputs_of_a1111(layer):
    x = OUTPUTS[f"{layer['id']}.x"]
    context = x if layer["kind"].startswith("self") else INPUTS[f"x{layer['dim']}"]
    model = nn.ModuleList([Attention(layer)])
    with torch.no_grad(), velatura.attach(model, open_case(layer["case"]), layer["mult"]):
        assert_close(model[0](x, context), OUTPUTS[f"{layer['id']}.y"], 2e-4)


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("refused", ids(INDEX["refused"], "id"))
def test_files_that_a1111_refuses_are_refused_in_one_line(refused):
    with pytest.raises(BadFile) as caught:
        velatura.open_overlay(FOLDER / refused["file"])
    assert refused["file"] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("case", CASES)
def test_writing_and_reading_gives_the_same(case, tmp_path):
    overlay = open_case(case)
    for ending in (".pt", ".safetensors"):
        velatura.save(overlay, tmp_path / f"again{ending}")
        again = velatura.open_overlay(tmp_path / f"again{ending}")
        assert again.card == overlay.card
        weights = again.state_dict()
        assert weights.keys() == overlay.state_dict().keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in overlay.state_dict().items())


def test_every_version_of_a1111_accepts_what_is_written(hyper, tmp_path):
    velatura.save(hyper(activation="mish", layer_norm=True, name="inca"), tmp_path / "inca.pt")
    with zipfile.ZipFile(tmp_path / "inca.pt") as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {name for name in names if not name.startswith("data/")} == {"data.pkl", "version"}
    payload = torch.load(tmp_path / "inca.pt", weights_only=True)
    fields = "step name layer_structure activation_func is_layer_norm weight_initialization sd_checkpoint"
    more = "sd_checkpoint_name activate_output use_dropout dropout_structure last_layer_dropout optional_info"
    assert set(list(payload)[:4]) == {64, 96, 128, 192}
    assert list(payload)[4:] == [*fields.split(), *more.split()]
    assert payload["name"] == "inca"
    assert list(payload[96][0])[:4] == ["linear.0.weight", "linear.0.bias", "linear.2.weight", "linear.2.bias"]


def test_whole_multiples_of_the_width_are_written_as_integers(hyper, tmp_path):
    velatura.save(hyper(layers=(1, 2, 1.5, 1)), tmp_path / "inca.pt")
    written = torch.load(tmp_path / "inca.pt", weights_only=True)["layer_structure"]
    assert written == [1, 2, 1.5, 1]
    assert [type(multiple) for multiple in written] == [int, int, float, int]  # as A1111 parses "1, 2, 1.5, 1"


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_weights_beyond_float32_are_refused(hyper, tmp_path, ending):
    """The largest float32 is 3.4e38."""
    made = hyper().double()
    with torch.no_grad():
        next(made.parameters()).view(-1)[0] = 1e39
    velatura.save(made, tmp_path / f"big{ending}")
    with pytest.raises(BadFile, match=r"with values beyond float32"):
        velatura.open_overlay(tmp_path / f"big{ending}")


def test_widths_as_text_alone_are_refused():
    with pytest.raises(BadFile, match=r"l12_strkeys\.pt has its widths \('16'\) as text only, so it has no effect"):
        velatura.open_overlay(FOLDER / "l12_strkeys.pt")


def test_a_width_as_text_beside_others_is_ignored_as_in_a1111(tmp_path):
    payload = open_tensors(FOLDER / "l01_nai.pt").payload
    write_torch(tmp_path / "both.pt", {**payload, "24": payload[16]})
    with pytest.warns(VelaturaWarning, match=r"both\.pt has the width '24' as text, not as a number: it is ignored"):
        assert velatura.open_overlay(tmp_path / "both.pt").structure.widths == (16, 8)


def test_dropout_for_more_layers_than_there_are_is_ignored_as_in_a1111(hyper, tmp_path):
    velatura.save(hyper(dropout=0.1), tmp_path / "inca.pt")
    payload = open_tensors(tmp_path / "inca.pt").payload
    write_torch(tmp_path / "more.pt", {**payload, "dropout_structure": [0, 0.1, 0, 0.2]})
    with pytest.warns(VelaturaWarning, match=r"more\.pt has 4 dropout probabilities for 3 layers: the last"):
        assert velatura.open_overlay(tmp_path / "more.pt").structure.dropout == (0, 0.1, 0)


def test_only_hypernetworks_are_written(tmp_path):
    class Other(velatura.Overlay):
        kind = "other"

    with pytest.raises(WrongBase, match="not a other"):
        a1111.write(Other(), tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("extra", torch.ones(2), r"unknown fields \(extra\)"),
        ("history", {"loss": [1.0]}, r"unknown fields \(history\)"),
        ("sd_checkpoint_name", ["a"], r"not text \(sd_checkpoint_name\)"),
        ("optional_info", torch.ones(1), r"not text \(optional_info\)"),
        ("sd_checkpoint", "none at all", r"not a hash \(sd_checkpoint"),
        ("step", 1.5, "step count"),
        ("step", torch.tensor(5), "step count"),
        ("step", {}, "step count"),
        ("name", b"x", "a name inside"),
        ("optional_info", "a\x1b[31mb", r"control characters in its metadata \(optional_info\)"),
    ],
)
def test_an_odd_field_without_effect_is_named_once_and_changes_nothing(hyper, tmp_path, field, value, problem):
    velatura.save(hyper(), tmp_path / "inca.pt")
    payload = torch.load(tmp_path / "inca.pt", weights_only=True)
    torch.save({**payload, field: value}, tmp_path / "odd.pt")
    with pytest.warns(VelaturaWarning, match=problem) as caught:
        odd = velatura.open_overlay(tmp_path / "odd.pt")
    assert len(caught) == 1
    assert str(caught[0].message).isprintable()
    expected = velatura.open_overlay(tmp_path / "inca.pt").state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in odd.state_dict().items())
