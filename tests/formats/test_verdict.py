"""What is said of files, and the rules of other programs, each held against an independent statement of it."""

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

GOLDEN = Path(__file__).parents[1] / "data" / "hypernet"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]

# A1111 1.4 to 1.8 look at every name in the zip by this rule before they read anything
A1111_MEMBER = re.compile(r"[^/]+/((data/\d+)|version|(data\.pkl))")

pytestmark = pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")


def opens(path, program):
    answer = inspect_overlay(path).opens[program]
    return answer.opens, answer.why


def saved_by_torch(path, overlay, folder, **options):
    """What today's torch makes of a file of ours."""
    velatura.save(overlay, folder / "ours.pt")
    torch.save(torch.load(folder / "ours.pt", weights_only=True), path, **options)
    return path


@pytest.mark.parametrize("case", [pytest.param(case, id=case["case"]) for case in CASES])
def test_a1111_takes_the_containers_that_it_was_seen_to_take(case):
    accepted = case["peer_1_8_container_check"]
    assert opens(GOLDEN / case["file"], "A1111") == (accepted, "1.4 and later") or not accepted
    assert ("newer torch" in opens(GOLDEN / case["file"], "A1111")[1]) is not accepted


@pytest.mark.parametrize("activation", ["linear", "relu", "mish"])
def test_our_pt_passes_a1111s_rule(hyper, tmp_path, activation):
    velatura.save(hyper(activation=activation), tmp_path / "inca.pt")
    with zipfile.ZipFile(tmp_path / "inca.pt") as archive:
        assert all(A1111_MEMBER.fullmatch(name) for name in archive.namelist())
    assert opens(tmp_path / "inca.pt", "A1111") == (True, "1.4 and later")


def test_what_torch_saves_today_is_refused_by_a1111_and_what_it_saved_once_is_not(hyper, tmp_path):
    modern = saved_by_torch(tmp_path / "modern.pt", hyper(), tmp_path)
    legacy = saved_by_torch(tmp_path / "legacy.pt", hyper(), tmp_path, _use_new_zipfile_serialization=False)
    assert opens(modern, "A1111")[0] is False
    assert opens(modern, "Forge")[0] is False
    assert opens(modern, "ComfyUI")[0] is True
    assert opens(legacy, "A1111") == (True, "1.4 and later")


def test_members_that_came_between_are_for_the_latest_a1111(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.pt")
    with zipfile.ZipFile(tmp_path / "inca.pt", "a") as archive:
        archive.writestr("archive/byteorder", "little")
    assert opens(tmp_path / "inca.pt", "A1111") == (True, "1.10, not before")


def test_names_that_a1111_does_not_allow_are_told(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.pt")
    payload = torch.load(tmp_path / "inca.pt", weights_only=True)
    torch.save(
        {**payload, "enable_sizes": torch.Size([64])}, tmp_path / "size.pt", _use_new_zipfile_serialization=False
    )
    assert "torch.Size" in opens(tmp_path / "size.pt", "A1111")[1]
    assert opens(tmp_path / "size.pt", "ComfyUI")[0] is True


@pytest.mark.parametrize("name", ["inca.bin", "inca.ckpt", "None.pt", "inca.safetensors"])
def test_a1111_goes_by_the_ending(hyper, tmp_path, name):
    velatura.save(hyper(), tmp_path / name, dialect="a1111")
    assert "rename" in opens(tmp_path / name, "A1111")[1]
    assert opens(tmp_path / name, "ComfyUI")[0] is (name != "inca.safetensors")


def test_safetensors_are_opened_by_nobody_else(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.safetensors")
    found = inspect_overlay(tmp_path / "inca.safetensors").opens
    assert not any(answer.opens for answer in found.values())
    assert "velatura convert" in found["A1111"].why


def as_comfy_builds_it(path, width, part):
    """The layers that ComfyUI's loader is known to make of a file: every weight a Linear, every second one a norm."""
    payload = torch.load(path, weights_only=True)
    state = payload[width][part]
    assert isinstance(state, dict | OrderedDict)
    names = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    step = 2 if payload.get("is_layer_norm", False) else 1
    layers = []
    for place in range(0, len(names), step):
        layers.append(torch.nn.Linear(*reversed(state[f"{names[place]}.weight"].shape)))
        layers[-1].load_state_dict({key: state[f"{names[place]}.{key}"] for key in ("weight", "bias")})
        last = place == len(names) - 1
        if payload["activation_func"] != "linear" and (not last or payload.get("activate_output", False)):
            layers.append(ACTIVATIONS[payload["activation_func"]]())
        if step == 2:
            layers.append(torch.nn.LayerNorm(state[f"{names[place + 1]}.weight"].shape[0]))
            layers[-1].load_state_dict({key: state[f"{names[place + 1]}.{key}"] for key in ("weight", "bias")})
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("activation", ["linear", "relu", "swish", "mish", "softsign"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activate_output", [True, False, None])
def test_comfy_computes_the_same_where_it_is_said_to(hyper, tmp_path, activation, layer_norm, activate_output):
    activated = activate_output is not False  # what a file that says nothing means
    overlay = hyper(activation=activation, layer_norm=layer_norm, layers=(1, 2, 2, 1), activate_output=activated)
    velatura.save(overlay, tmp_path / "inca.pt")
    payload = dict(open_tensors(tmp_path / "inca.pt").payload)
    said = {} if activate_output is None else {"activate_output": activate_output}
    del payload["activate_output"]
    write_torch(tmp_path / "inca.pt", {**payload, **said})
    overlay = velatura.open_overlay(tmp_path / "inca.pt")
    context = torch.randn(1, 5, 96)
    with torch.no_grad():
        theirs = context + as_comfy_builds_it(tmp_path / "inca.pt", 96, 0)(context)
    same = torch.allclose(theirs, overlay.transform(context)[0], atol=1e-5)
    assert opens(tmp_path / "inca.pt", "ComfyUI")[0] is True
    assert (opens(tmp_path / "inca.pt", "ComfyUI")[1] == "") is same


@pytest.mark.parametrize("activation", ["gelu", "hardswish", "prelu", "silu"])
def test_comfy_does_not_know_every_activation(hyper, tmp_path, activation):
    velatura.save(hyper(activation=activation), tmp_path / "inca.pt")
    assert opens(tmp_path / "inca.pt", "ComfyUI") == (False, f"it does not know the activation {activation}")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("l04", "but it does not activate the output"),
        ("l05", "but it drops out at random"),
        ("l14", "does not know the activation None"),
        ("l01", ""),
    ],
)
def test_comfy_reads_old_files_otherwise(case, said):
    file = next(each["file"] for each in CASES if each["case"] == case)
    assert said in opens(GOLDEN / file, "ComfyUI")[1]


@pytest.mark.parametrize(
    ("dropout", "random"),
    [((0, 0, 0), False), ((0, 0.3, 0), True), ((0, 0.3, 0, 0), True), ((0, 0, 0, 0), False), ((0, 0), False)],
)
def test_comfy_leaves_dropout_on(hyper, tmp_path, dropout, random):
    velatura.save(hyper(layers=(1, *[2] * (len(dropout) - 2), 1), dropout=dropout), tmp_path / "inca.pt")
    assert ("at random" in opens(tmp_path / "inca.pt", "ComfyUI")[1]) is random


def test_the_rest_of_a_verdict(hyper, tmp_path):
    overlay = hyper(name="inca the second", widths=[96])
    overlay.card = overlay.card.replace(steps=1200)
    velatura.save(overlay, tmp_path / "inca.pt")
    verdict = inspect_overlay(tmp_path / "inca.pt")
    assert verdict.card == velatura.open_overlay(tmp_path / "inca.pt").card
    assert verdict.trigger == "<hypernet:inca:1>"  # by the file's name, as A1111 calls it
    assert verdict.short_hash == sha256((tmp_path / "inca.pt").read_bytes()).hexdigest()[:10]
    assert verdict.parameters == 2 * (96 * 192 * 2 + 192 + 96)  # for K and V: two layers and their biases
    assert verdict.file_bytes == (tmp_path / "inca.pt").stat().st_size
    assert (verdict.dialect, verdict.precisions) == ("a1111", ("float32",))
    assert "zip" in verdict.container


def test_precisions_are_those_in_the_file():
    assert inspect_overlay(GOLDEN / "l11_bf16.pt").precisions == ("bfloat16",)
    assert inspect_overlay(GOLDEN / "l10_fp16.pt").precisions == ("float16",)


def test_a_file_that_is_no_overlay_gets_no_verdict(tmp_path):
    torch.save({"a": torch.ones(2, 2, 2)}, tmp_path / "x.pt")
    with pytest.raises(BadFile, match=r"x\.pt is not an overlay in a known format"):
        inspect_overlay(tmp_path / "x.pt")
