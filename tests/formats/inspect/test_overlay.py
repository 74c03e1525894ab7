"""Reports on overlays, and the rules of other programs against independent statements of these rules."""

import json
import re
import zipfile
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile
from velatura.formats.inspect.overlay import inspect_overlay
from velatura.overlays.structure import ACTIVATIONS
from velatura.tensors import open_tensors, write_torch

GOLDEN = Path(__file__).parents[2] / "data" / "hypernet"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]

# A1111 1.4 to 1.8 look at every name in the zip by this rule before they read anything
A1111_MEMBER = re.compile(r"[^/]+/((data/\d+)|version|(data\.pkl))")

pytestmark = pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")


def find_answer(path, program):
    answer = inspect_overlay(path).opens[program]
    return answer.opens, answer.why


def save_by_torch(path, overlay, folder, **options):
    """Write a hypernetwork again with today's torch."""
    velatura.save(overlay, folder / "ours.pt")
    torch.save(torch.load(folder / "ours.pt", weights_only=True), path, **options)
    return path


@pytest.mark.parametrize("case", [pytest.param(case, id=case["case"]) for case in CASES])
def test_a1111_opens_the_containers_that_it_was_seen_to_open(case):
    accepted = case["peer_1_8_container_check"]
    assert find_answer(GOLDEN / case["file"], "A1111") == (accepted, "1.4 and later") or not accepted
    assert ("newer torch" in find_answer(GOLDEN / case["file"], "A1111")[1]) is not accepted


@pytest.mark.parametrize("activation", ["linear", "relu", "mish"])
def test_a_pt_of_velatura_passes_a1111s_rule(hyper, tmp_path, activation):
    velatura.save(hyper(activation=activation), tmp_path / "inca.pt")
    with zipfile.ZipFile(tmp_path / "inca.pt") as archive:
        assert all(A1111_MEMBER.fullmatch(name) for name in archive.namelist())
    assert find_answer(tmp_path / "inca.pt", "A1111") == (True, "1.4 and later")


def test_a1111_refuses_the_zips_of_todays_torch_but_not_its_old_format(hyper, tmp_path):
    modern = save_by_torch(tmp_path / "modern.pt", hyper(), tmp_path)
    legacy = save_by_torch(tmp_path / "legacy.pt", hyper(), tmp_path, _use_new_zipfile_serialization=False)
    assert find_answer(modern, "A1111")[0] is False
    assert find_answer(modern, "Forge")[0] is False
    assert find_answer(modern, "ComfyUI")[0] is True
    assert find_answer(legacy, "A1111") == (True, "1.4 and later")


def test_newer_members_of_a_zip_need_the_latest_a1111(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.pt")
    with zipfile.ZipFile(tmp_path / "inca.pt", "a") as archive:
        archive.writestr("archive/byteorder", "little")
    assert find_answer(tmp_path / "inca.pt", "A1111") == (True, "1.10, not before")


def test_globals_that_a1111_does_not_allow_are_named(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.pt")
    payload = torch.load(tmp_path / "inca.pt", weights_only=True)
    torch.save(
        {**payload, "enable_sizes": torch.Size([64])}, tmp_path / "size.pt", _use_new_zipfile_serialization=False
    )
    assert "torch.Size" in find_answer(tmp_path / "size.pt", "A1111")[1]
    assert find_answer(tmp_path / "size.pt", "ComfyUI")[0] is True


@pytest.mark.parametrize("name", ["inca.bin", "inca.ckpt", "None.pt", "inca.safetensors"])
def test_a1111_needs_the_ending_pt(hyper, tmp_path, name):
    velatura.save(hyper(), tmp_path / name, dialect="a1111")
    assert "rename" in find_answer(tmp_path / name, "A1111")[1]
    assert find_answer(tmp_path / name, "ComfyUI")[0] is (name != "inca.safetensors")


def test_no_other_program_opens_safetensors(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.safetensors")
    answers = inspect_overlay(tmp_path / "inca.safetensors").opens
    assert not any(answer.opens for answer in answers.values())
    assert "velatura convert" in answers["A1111"].why


def build_as_comfyui(path, width, part):
    """Build the layers that ComfyUI makes of a file: every weight is a Linear; with norms, every second one a norm."""
    payload = torch.load(path, weights_only=True)
    state = payload[width][part]
    assert isinstance(state, dict | OrderedDict)
    names = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    step = 2 if payload.get("is_layer_norm", False) else 1
    layers = []
    for index in range(0, len(names), step):
        layers.append(torch.nn.Linear(*reversed(state[f"{names[index]}.weight"].shape)))
        layers[-1].load_state_dict({key: state[f"{names[index]}.{key}"] for key in ("weight", "bias")})
        last = index == len(names) - 1
        if payload["activation_func"] != "linear" and (not last or payload.get("activate_output", False)):
            layers.append(ACTIVATIONS[payload["activation_func"]]())
        if step == 2:
            layers.append(torch.nn.LayerNorm(state[f"{names[index + 1]}.weight"].shape[0]))
            layers[-1].load_state_dict({key: state[f"{names[index + 1]}.{key}"] for key in ("weight", "bias")})
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("activation", ["linear", "relu", "swish", "mish", "softsign"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activate_output", [True, False, None])
def test_comfyui_computes_the_same_if_the_answer_says_so(hyper, tmp_path, activation, layer_norm, activate_output):
    activated = activate_output is not False  # what a file that says nothing means
    overlay = hyper(activation=activation, layer_norm=layer_norm, layers=(1, 2, 2, 1), activate_output=activated)
    velatura.save(overlay, tmp_path / "inca.pt")
    payload = dict(open_tensors(tmp_path / "inca.pt").payload)
    fields = {} if activate_output is None else {"activate_output": activate_output}
    del payload["activate_output"]
    write_torch(tmp_path / "inca.pt", {**payload, **fields})
    overlay = velatura.open_overlay(tmp_path / "inca.pt")
    context = torch.randn(1, 5, 96)
    with torch.no_grad():
        comfy_output = context + build_as_comfyui(tmp_path / "inca.pt", 96, 0)(context)
    same = torch.allclose(comfy_output, overlay.transform(context)[0], atol=1e-5)
    assert find_answer(tmp_path / "inca.pt", "ComfyUI")[0] is True
    assert (find_answer(tmp_path / "inca.pt", "ComfyUI")[1] == "") is same


@pytest.mark.parametrize("activation", ["gelu", "hardswish", "prelu", "silu"])
def test_comfyui_does_not_know_every_activation(hyper, tmp_path, activation):
    velatura.save(hyper(activation=activation), tmp_path / "inca.pt")
    assert find_answer(tmp_path / "inca.pt", "ComfyUI") == (False, f"it does not know the activation {activation}")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("l04", "but it does not activate the output"),
        ("l05", "but it applies dropout at random"),
        ("l14", "does not know the activation None"),
        ("l01", ""),
    ],
)
def test_comfyui_reads_old_files_in_another_way(case, message):
    file = next(entry["file"] for entry in CASES if entry["case"] == case)
    assert message in find_answer(GOLDEN / file, "ComfyUI")[1]


@pytest.mark.parametrize(
    ("dropout", "random"),
    [((0, 0, 0), False), ((0, 0.3, 0), True), ((0, 0.3, 0, 0), True), ((0, 0, 0, 0), False), ((0, 0), False)],
)
def test_comfyui_leaves_dropout_on(hyper, tmp_path, dropout, random):
    velatura.save(hyper(layers=(1, *[2] * (len(dropout) - 2), 1), dropout=dropout), tmp_path / "inca.pt")
    assert ("at random" in find_answer(tmp_path / "inca.pt", "ComfyUI")[1]) is random


def test_a_report_has_card_trigger_hash_and_sizes(hyper, tmp_path):
    overlay = hyper(name="inca the second", widths=[96])
    overlay.card = overlay.card.replace(steps=1200)
    velatura.save(overlay, tmp_path / "inca.pt")
    info = inspect_overlay(tmp_path / "inca.pt")
    assert info.card == velatura.open_overlay(tmp_path / "inca.pt").card
    assert info.trigger == "<hypernet:inca:1>"  # by the file's name, as A1111 calls it
    assert info.short_hash == sha256((tmp_path / "inca.pt").read_bytes()).hexdigest()[:10]
    assert info.parameters == 2 * (96 * 192 * 2 + 192 + 96)  # for K and V: two layers and their biases
    assert info.file_bytes == (tmp_path / "inca.pt").stat().st_size
    assert (info.dialect, info.precisions) == ("a1111", ("float32",))
    assert "zip" in info.container


def test_precisions_are_those_in_the_file():
    assert inspect_overlay(GOLDEN / "l11_bf16.pt").precisions == ("bfloat16",)
    assert inspect_overlay(GOLDEN / "l10_fp16.pt").precisions == ("float16",)


def test_a_file_that_is_not_an_overlay_is_refused(tmp_path):
    torch.save({"a": torch.ones(2, 2, 2)}, tmp_path / "x.pt")
    with pytest.raises(BadFile, match=r"x\.pt is not an overlay in a known format"):
        inspect_overlay(tmp_path / "x.pt")
