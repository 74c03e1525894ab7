"""Faces are restored in pictures that are painted, by the files that a library has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from tests.face_restoration.states import CODEFORMER, GFPGAN, RETINAFACE, make_state
from velatura.face_restoration import open_face_detector
from velatura.face_restoration.align import TEMPLATE
from velatura.face_restoration.detect import DetectedFace
from velatura.formats.inspect.inspect import inspect_file
from velatura.sampling.resolve.faces import find_face_files, list_face_restorers

FILES = {GFPGAN: "GFPGANv1.4.pth", CODEFORMER: "codeformer-v0.1.0.pth", RETINAFACE: "detection_Resnet50_Final.pth"}
FOLDERS = {GFPGAN: "GFPGAN", CODEFORMER: "Codeformer", RETINAFACE: "GFPGAN"}
STATES = {model: make_state(model) for model in FILES}
# nowhere is there a face rather than none
STATES[RETINAFACE] |= {f"ClassHead.{level}.conv1x1.bias": torch.tensor([20.0, 0, 20, 0]) for level in range(3)}
HOUSE = {"steps": 1, "seed": 7}


def save_face_models(root: Path, *models: str, name: str | None = None) -> Path:
    """Write the files of networks where A1111 has them; they are small, and see and make nonsense."""
    for model in models:
        path = root / "models" / FOLDERS[model] / (name or FILES[model])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"params_ema": STATES[model]}, path)
    return root


def find_one_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the detector find one face, which fills the picture."""

    def detect(_detector: object, image: Image.Image, **_options: object) -> list[DetectedFace]:
        return [DetectedFace(1.0, (0.0, 0.0, *map(float, image.size)), TEMPLATE * image.width)]

    monkeypatch.setattr("velatura.face_restoration.restore.detect_faces", detect)


@pytest.fixture
def library(tmp_path):
    save_face_models(tmp_path, GFPGAN, CODEFORMER, RETINAFACE)
    return velatura.Library(tmp_path, cache=tmp_path / "cache")


def test_the_library_tells_the_files_by_their_content(library):
    kinds = {entry.name: (entry.kind, entry.info.card.outline, entry.error) for entry in library.entries()}
    assert kinds == {
        "GFPGANv1.4": ("face-restorer", "GFPGAN", ""),
        "codeformer-v0.1.0": ("face-restorer", "CodeFormer", ""),
        "detection_Resnet50_Final": ("face-detector", "RetinaFace", ""),
    }
    assert list_face_restorers(library) == ["CodeFormer", "GFPGAN"]


def test_a_file_that_lacks_a_tensor_is_listed_with_the_reason(tmp_path):
    state = make_state(GFPGAN)
    del state["final_conv.bias"]
    torch.save(state, tmp_path / "x.pth")
    assert "x.pth lacks final_conv.bias" in inspect_file(tmp_path / "x.pth").problem


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (None, ("CodeFormer", "codeformer-v0.1.0")),
        ("gfpgan", ("GFPGAN", "GFPGANv1.4")),
        ("CodeFormer", ("CodeFormer", "codeformer-v0.1.0")),
        ("GFPGANv1.4.pth", ("GFPGANv1.4", "GFPGANv1.4")),
    ],
)
def test_a_restorer_is_found_by_its_model_or_its_file(library, name, found):
    files = find_face_files(name, library)
    assert (files.name, files.restorer.name) == found


def test_of_several_files_the_usual_one_is_taken_then_the_newest(tmp_path):
    library = velatura.Library(tmp_path, cache=tmp_path / "cache")
    save_face_models(tmp_path, RETINAFACE)
    for name, chosen in (("GFPGANv1.2", "GFPGANv1.2"), ("GFPGANv1.3", "GFPGANv1.3"), ("GFPGANv1.4", "GFPGANv1.4")):
        save_face_models(tmp_path, GFPGAN, name=f"{name}.pth")
        assert find_face_files("GFPGAN", library).restorer.name == chosen
    save_face_models(tmp_path, GFPGAN, name="zebra.pth")
    assert find_face_files(None, library).restorer.name == "GFPGANv1.4"
    assert list_face_restorers(library) == ["GFPGAN", "GFPGANv1.2", "GFPGANv1.3", "GFPGANv1.4", "zebra"]


def test_the_detector_is_the_one_on_a_resnet_under_its_usual_name(tmp_path):
    folder = save_face_models(tmp_path, GFPGAN) / "models/GFPGAN"
    mobile = {name: STATES[RETINAFACE][name] for name in STATES[RETINAFACE] if not name.startswith("body.")}
    # as facexlib's network on MobileNet-0.25 names its body
    mobile["body.stage1.0.0.weight"] = torch.ones(8, 3, 3, 3)
    torch.save(mobile, folder / "detection_mobilenet0.25_Final.pth")
    library = velatura.Library(tmp_path, cache=tmp_path / "cache")
    with pytest.raises(velatura.UnknownName, match=r"needs detection_Resnet50_Final\.pth, which finds them"):
        find_face_files(None, library)
    with pytest.raises(velatura.BadFile, match=r"0\.25_Final\.pth is RetinaFace on MobileNet: give detection_Resnet50"):
        open_face_detector(folder / "detection_mobilenet0.25_Final.pth")
    save_face_models(tmp_path, RETINAFACE, name="a detector.pth")
    assert find_face_files(None, library).detector.name == "a detector"
    save_face_models(tmp_path, RETINAFACE)
    assert find_face_files(None, library).detector.name == "detection_Resnet50_Final"


@pytest.mark.parametrize(
    ("models", "name", "message"),
    [
        (
            (),
            None,
            r"codeformer-v0\.1\.0\.pth or GFPGANv1\.4\.pth is not in the library: put it into models/Codeformer",
        ),
        ((RETINAFACE, CODEFORMER), "GFPGAN", r"GFPGANv1\.4\.pth is not in the library: put it into models/GFPGAN"),
        ((GFPGAN,), "GFPGAN", r"needs detection_Resnet50_Final\.pth, .* put it into models/GFPGAN"),
        ((GFPGAN, RETINAFACE), "GFPGAM", r"no face restorer is called 'GFPGAM': did you mean 'GFPGAN'"),
    ],
)
def test_a_file_that_is_missing_is_named_with_its_folder(tmp_path, tiny, models, name, message):
    save_face_models(tmp_path, *models)
    library = velatura.Library(tmp_path, cache=tmp_path / "cache")
    for further in ({"library": library}, {}) if not models else ({"library": library},):
        with pytest.raises(velatura.UnknownName, match=message if further else "give a library with"):
            velatura.generate(tiny, "a house", restore_faces=True, face_restorer=name, **HOUSE, **further)
    recipe = velatura.Recipe(prompt="a house", restore_faces=True, face_restorer=name, **HOUSE)
    with pytest.warns(velatura.VelaturaWarning, match=f"faces are not restored: .*{message}"):
        picture = velatura.generate(tiny, recipe, library=library)  # as a picture of another program records it
    assert not picture.recipe.restore_faces
    assert picture.recipe.face_restorer is None
    assert picture.image.tobytes() == velatura.generate(tiny, "a house", **HOUSE).image.tobytes()


def test_a_picture_without_a_face_stays_and_says_so(library, tiny):
    plain = velatura.generate(tiny, "a house", **HOUSE)
    with pytest.warns(velatura.VelaturaWarning, match="no face was found in 1 picture of 1"):
        picture = velatura.generate(tiny, "a house", restore_faces=True, library=library, **HOUSE)
    assert picture.image.tobytes() == plain.image.tobytes()
    assert picture.recipe == plain.recipe.replace(restore_faces=True, face_restorer="CodeFormer")


@pytest.mark.parametrize("name", ["GFPGAN", "CodeFormer"])
def test_faces_in_a_picture_are_restored_and_recorded(library, tiny, name, monkeypatch):
    find_one_face(monkeypatch)
    plain = velatura.generate(tiny, "a house", **HOUSE)
    picture = velatura.generate(tiny, "a house", restore_faces=True, face_restorer=name, library=library, **HOUSE)
    assert picture.image.tobytes() != plain.image.tobytes()
    assert f"Seed: 7, Face restoration: {name}, Size: " in picture.recipe.infotext()
    again = velatura.generate(tiny, velatura.Recipe.from_infotext(picture.recipe.infotext()), library=library)
    assert again.image.tobytes() == picture.image.tobytes()


def test_the_weight_of_codeformer_changes_the_face_and_is_recorded(library, tiny, monkeypatch):
    find_one_face(monkeypatch)
    fields = {"restore_faces": True, "library": library, **HOUSE}
    usual = velatura.generate(tiny, "a house", **fields)
    picture = velatura.generate(tiny, "a house", codeformer_weight=1, **fields)
    assert picture.image.tobytes() != usual.image.tobytes()
    assert "CodeFormer weight: 1" in picture.recipe.infotext()
    assert "CodeFormer weight" not in usual.recipe.infotext()
    with pytest.warns(velatura.VelaturaWarning, match="codeformer_weight changes nothing with GFPGAN"):
        velatura.generate(tiny, "a house", codeformer_weight=1, face_restorer="GFPGAN", **fields)


def test_steps_are_reported_again_while_faces_are_restored(library, tiny, monkeypatch):
    find_one_face(monkeypatch)
    calls: list[tuple[int, int]] = []
    fields = {"restore_faces": True, "library": library, **HOUSE, "steps": 2}
    velatura.generate(tiny, "a house", on_step=lambda *numbers: calls.append(numbers), **fields)
    assert calls == [(1, 2), (2, 2), (2, 2), (2, 2)]  # before the face, and at the end


def test_only_what_a_mask_covers_is_restored(library, tiny, monkeypatch):
    find_one_face(monkeypatch)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 16, 64))
    image = Image.new("RGB", (64, 64), (40, 90, 200))
    source = velatura.InitImage(image, mask)
    picture = velatura.generate(
        tiny, "a house", restore_faces=True, library=library, init_image=source, mask_blur=0, **HOUSE
    )
    assert (np.asarray(picture.image)[:, 16:] == (40, 90, 200)).all()


def test_fields_without_restore_faces_change_nothing_and_say_so(library, tiny):
    with pytest.warns(velatura.VelaturaWarning, match="face_restorer changes nothing without restore_faces"):
        velatura.generate(tiny, "a house", face_restorer="GFPGAN", library=library, **HOUSE)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Face restoration: GFPGAN", (True, "GFPGAN", 0.5)),
        ("Face restoration: CodeFormer, CodeFormer weight: 0.2", (True, "CodeFormer", 0.2)),
        ("Face restoration: None", (False, None, 0.5)),
        ("", (False, None, 0.5)),
    ],
)
def test_infotext_says_how_faces_were_restored(text, fields):
    infotext = f"a house\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 7, Size: 64x64{text and f', {text}'}"
    recipe = velatura.Recipe.from_infotext(infotext)
    assert (recipe.restore_faces, recipe.face_restorer, recipe.codeformer_weight) == fields
    assert velatura.Recipe.from_infotext(recipe.infotext()) == recipe


def test_a_file_that_has_changed_is_opened_again(library):
    files = find_face_files("GFPGAN", library)
    models = files.open("cpu")
    assert files.open(torch.device("cpu")).restorer is models.restorer
    os.utime(files.restorer.path, (1, 1))
    assert find_face_files("GFPGAN", library).open("cpu").restorer is not models.restorer


def test_a_network_is_shared_on_one_device_alone(library):
    files = find_face_files("GFPGAN", library)
    here, elsewhere = files.open("cpu"), files.open("meta")
    assert here.restorer is not elsewhere.restorer
    assert here.detector is not elsewhere.detector
