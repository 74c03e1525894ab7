"""The networks on faces compute what those of the programs compute that people have their files from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import velatura
from tests.face_restoration.states import CODEFORMER, FOLDER, GFPGAN, RETINAFACE, formula, make_state, pixels
from velatura.face_restoration import detect_face_model, open_face_detector, open_face_restorer
from velatura.face_restoration.detect import MEAN_COLOUR, decode_detections
from velatura.face_restoration.retinaface import RawDetections

# Run on the states of states.py by spandrel 0.4.2, spandrel_extra_arches 0.2.0 (CodeFormer) and facexlib 0.3.0
JUDGES = json.loads((FOLDER / "judges.json").read_text("utf-8"))


def write(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def assert_equal(result: torch.Tensor, expected: dict[str, object], step: int) -> None:
    numbers = torch.tensor(expected[f"every {step}th"])
    assert list(result.shape) == expected["shape"]
    assert torch.allclose(result.flatten()[::step], numbers, atol=1e-4, rtol=1e-4)
    assert result.mean().item() == pytest.approx(expected["mean"], abs=1e-4)
    assert result.std().item() == pytest.approx(expected["std"], abs=1e-4)


def test_gfpgan_computes_what_spandrels_computes(tmp_path):
    restorer = open_face_restorer(write(tmp_path / "GFPGANv1.4.pth", {"params_ema": make_state(GFPGAN)}))
    assert (restorer.name, restorer.model, restorer.side) == ("GFPGANv1.4", GFPGAN, 128)
    with torch.no_grad():
        assert_equal(restorer.restore(pixels(128), 0.5), JUDGES[GFPGAN], 997)


@pytest.mark.parametrize("fidelity", [0.0, 0.7])
def test_codeformer_computes_what_spandrels_computes(tmp_path, fidelity):
    restorer = open_face_restorer(write(tmp_path / "codeformer-v0.1.0.pth", {"params_ema": make_state(CODEFORMER)}))
    assert (restorer.name, restorer.model, restorer.side) == ("codeformer-v0.1.0", CODEFORMER, 64)
    with torch.no_grad():
        assert_equal(restorer.restore(pixels(64), fidelity), JUDGES[f"{CODEFORMER} {fidelity}"], 173)


def test_retinaface_computes_what_facexlibs_computes(tmp_path):
    state = {f"module.{key}": value for key, value in make_state(RETINAFACE).items()}
    detector = open_face_detector(write(tmp_path / "detection_Resnet50_Final.pth", state))
    expected = JUDGES[RETINAFACE]
    with torch.no_grad():
        raw = detector.network(pixels(96, height=71) * 100)
    assert_equal(raw.scores, expected["scores"], 7)
    assert_equal(raw.boxes, expected["boxes"], 41)
    assert_equal(raw.landmarks.flatten(2), expected["landmarks"], 101)


def test_faces_are_those_that_facexlib_finds(tmp_path):
    detector = open_face_detector(write(tmp_path / "detection.pth", make_state(RETINAFACE)))
    image = ((formula([71, 96, 3], 9) + 1) * 127.5).round()  # blue, green, red
    with torch.no_grad():
        raw = detector.network((image - torch.tensor(MEAN_COLOUR)).permute(2, 0, 1)[None])
    faces = list(decode_detections(RawDetections(*(part[0] for part in raw)), (96, 71), 0.5))
    found = [[*face.box, face.score, *face.landmarks.flatten()] for face in faces]
    expected = JUDGES[RETINAFACE]["faces"]
    assert len(expected) > 1
    assert np.allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("model", [GFPGAN, CODEFORMER, RETINAFACE])
def test_files_are_told_by_their_tensors(model):
    assert detect_face_model(make_state(model)) == model


def test_other_files_are_not_networks_on_faces(tiny):
    assert detect_face_model({}) is None
    assert detect_face_model(tiny.unet.state_dict()) is None


def altered(model: str, change: str) -> dict[str, torch.Tensor]:
    state = make_state(model)
    key = next(key for key in state if key.endswith("weight") and "mlp" not in key)
    if change == "missing":
        del state[key]
    elif change == "extra":
        state["elsewhere.weight"] = torch.zeros(1)
    elif change == "shape":
        state[key] = state[key][..., :0]
    elif change == "nan":
        state[key] = torch.full_like(state[key], torch.nan)
    elif change == "flat":
        state = {name: value.flatten() for name, value in state.items()}
    return state


@pytest.mark.parametrize("model", [GFPGAN, CODEFORMER, RETINAFACE])
@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan", "flat"])
def test_files_that_do_not_fit_together_are_refused(tmp_path, model, change):
    path = write(tmp_path / "x.pth", altered(model, change))
    with pytest.raises(velatura.BadFile, match=r"x\.pth"):
        open_face_detector(path) if model == RETINAFACE else open_face_restorer(path)


def test_each_file_is_refused_by_its_name_where_another_is_needed(tmp_path):
    detector, restorer = (
        write(tmp_path / "d.pth", make_state(RETINAFACE)),
        write(tmp_path / "r.pth", make_state(CODEFORMER)),
    )
    with pytest.raises(velatura.BadFile, match=r"d\.pth is RetinaFace, which detects faces: give a file of GFPGAN"):
        open_face_restorer(detector)
    with pytest.raises(velatura.BadFile, match=r"r\.pth is CodeFormer: give detection_Resnet50_Final\.pth"):
        open_face_detector(restorer)
    first = make_state(GFPGAN)
    first["conv_body_first.0.weight"] = first.pop("conv_body_first.weight")
    with pytest.raises(velatura.BadFile, match=r"is GFPGAN 1\.0.*: give GFPGANv1\.3"):
        open_face_restorer(write(tmp_path / "GFPGANv1.pth", first))
