"""Faces are restored as A1111's clients ask for it: in new pictures, and in images that they send."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image, ImageChops

from tests.face_restoration.states import CODEFORMER, GFPGAN, RETINAFACE
from tests.face_restoration.test_pictures import find_one_face, save_face_models
from tests.server.a1111.conftest import to_base64, to_image
from tests.server.conftest import wait_for
from velatura.face_restoration import restore
from velatura.sampling.resolve import faces

INFOTEXT = "a red house\nSteps: 1, Sampler: Euler, CFG scale: 7, Seed: 7, Face restoration: GFPGAN, Size: 64x64"


@pytest.fixture
def restorers(models, state, monkeypatch):
    """Both restorers in the library, and one face in every picture."""
    find_one_face(monkeypatch)
    save_face_models(models, GFPGAN, CODEFORMER, RETINAFACE)
    state.library.refresh()
    yield models
    shutil.rmtree(models / "models")
    state.library.refresh()


def differ(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is not None


def test_the_restorers_of_the_library_are_listed(a1111, restorers):
    assert a1111.get("face-restorers") == [
        {"name": "CodeFormer", "cmd_dir": None},
        {"name": "GFPGAN", "cmd_dir": None},
    ]


def test_faces_of_new_pictures_are_restored(a1111, restorers):
    [plain], info = a1111.paint()
    assert (info["restore_faces"], info["face_restoration_model"]) == (False, None)
    [image], info = a1111.paint(restore_faces=True)
    assert differ(plain, image)
    assert (info["restore_faces"], info["face_restoration_model"]) == (True, "CodeFormer")
    assert "Seed: 7, Face restoration: CodeFormer, Size" in info["infotexts"][0]
    assert "Face restoration" not in info["extra_generation_params"]
    assert info["warnings"] == []


def test_settings_choose_the_restorer_its_weight_and_whether_it_acts(a1111, restorers):
    changes = {"face_restoration": True, "face_restoration_model": "gfpgan"}
    [image], info = a1111.paint(override_settings=changes)
    assert info["face_restoration_model"] == "GFPGAN"
    assert differ(image, a1111.paint(restore_faces=True)[0][0])
    _, info = a1111.paint(override_settings=changes, restore_faces=False)
    assert info["restore_faces"] is False
    _, info = a1111.paint(override_settings={"code_former_weight": 0.25}, restore_faces=True)
    assert "CodeFormer weight: 0.25" in info["infotexts"][0]
    a1111.post("options", 422, code_former_weight=2)
    a1111.post("options", 422, face_restoration_model="no such file")


def test_a_setting_that_restores_no_faces_is_named_where_a_request_asks_for_it(a1111, restorers):
    _, info = a1111.paint(override_settings={"face_restoration_model": "None"}, restore_faces=True)
    assert info["warnings"] == [
        "faces are not restored: the setting face_restoration_model is None, choose CodeFormer or GFPGAN"
    ]
    assert info["restore_faces"] is False


def test_an_infotext_restores_faces_as_it_says(a1111, restorers):
    _, info = a1111.paint(infotext=INFOTEXT, prompt="a red house")
    assert info["face_restoration_model"] == "GFPGAN"


def test_an_infotext_names_the_file_that_restores(a1111, restorers):
    named = INFOTEXT.replace("restoration: GFPGAN", "restoration: GFPGANv1.4")
    _, info = a1111.paint(infotext=named, prompt="a red house")
    assert (info["face_restoration_model"], info["warnings"]) == ("GFPGANv1.4", [])
    _, info = a1111.paint(infotext=named, prompt="a red house", override_settings={"face_restoration_model": "GFPGAN"})
    assert info["face_restoration_model"] == "GFPGAN"
    _, info = a1111.paint(infotext=named.replace("v1.4", "v1.3"), prompt="a red house")
    assert "faces are not restored: no face restorer is called 'GFPGANv1.3'" in info["warnings"][0]
    assert info["restore_faces"] is False


def test_faces_of_an_image_are_restored_as_far_as_they_are_to_be_seen(a1111, restorers):
    grey = Image.new("RGB", (64, 64), (90, 80, 70))

    def restored(**fields: object) -> Image.Image:
        answer = a1111.post("extra-single-image", image=to_base64(grey), **fields)
        assert answer["html_info"] == ""
        return to_image(answer["image"])

    gfpgan, codeformer = restored(gfpgan_visibility=1), restored(codeformer_visibility=1, codeformer_weight=1)
    assert differ(grey, gfpgan)
    assert differ(gfpgan, codeformer)
    assert differ(codeformer, restored(codeformer_visibility=1, codeformer_weight=0))
    half = restored(gfpgan_visibility=0.5)
    assert half.tobytes() == Image.blend(grey, gfpgan, 0.5).tobytes()
    large = restored(gfpgan_visibility=1, upscaler_1="Nearest", upscaling_resize=2)
    assert large.size == (128, 128)
    assert large.getpixel((0, 0)) == (90, 80, 70)


def test_an_image_that_is_not_upscaled_has_its_own_size(a1111, restorers, state, monkeypatch):
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"max_picture_pixels": 64 * 64}))
    grey = to_base64(Image.new("RGB", (128, 128), (90, 80, 70)))  # as large as a result may be
    answer = a1111.post("extra-single-image", image=grey, gfpgan_visibility=1)
    assert to_image(answer["image"]).size == (128, 128)
    a1111.post("extra-single-image", 413, image=grey, upscaler_1="Nearest")


def test_without_the_files_pictures_are_made_and_say_what_is_missing(a1111):
    [plain], _ = a1111.paint()
    [image], info = a1111.paint(restore_faces=True)
    assert not differ(plain, image)
    assert (
        "faces are not restored: codeformer-v0.1.0.pth or GFPGANv1.4.pth is not in the library" in info["warnings"][0]
    )
    assert info["restore_faces"] is False
    answer = a1111.post("extra-single-image", image=to_base64(plain), gfpgan_visibility=1)
    assert "faces are not restored: GFPGANv1.4.pth is not in the library" in answer["html_info"]


def test_the_networks_of_a_batch_are_opened_once_and_not_under_the_librarys_lock(a1111, state, restorers, monkeypatch):
    opened: list[bool] = []
    open_restorer = faces.open_face_restorer

    def open_and_count(path: object) -> object:
        opened.append(state.library._lock.locked())
        return open_restorer(path)

    monkeypatch.setattr(faces, "open_face_restorer", open_and_count)
    image = {"data": to_base64(Image.new("RGB", (64, 64), (90, 80, 70))), "name": "x"}
    answer = a1111.post("extra-batch-images", imageList=[image] * 3, gfpgan_visibility=1)
    assert len(answer["images"]) == 3
    assert opened == [False]


@pytest.mark.parametrize("wish", ["cancel", "skip"])
def test_a_job_that_restores_faces_is_cancelled_and_skipped(client, state, restorers, monkeypatch, wish):
    detect = restore.detect_faces

    def detect_late(*arguments: object, **options: object) -> object:
        [running] = client.get("/api/jobs", params={"state": "running"}).json()["jobs"]
        client.post(f"/api/jobs/{running['id']}/{wish}")
        return detect(*arguments, **options)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a face is restored nevertheless")

    monkeypatch.setattr(restore, "detect_faces", detect_late)
    monkeypatch.setattr(restore, "restore_face", fail)
    recipe = {"prompt": "a red house", "steps": 1, "restore_faces": True}
    job = wait_for(client, client.post("/api/jobs", json={"kind": "paint", "recipe": recipe}).json()["id"])
    assert job["state"] == ("cancelled" if wish == "cancel" else "done")
    assert job["result"] == ({} if wish == "cancel" else {"pictures": [], "skipped": [0]})


def test_an_image_without_a_face_stays_and_says_so(a1111, restorers, monkeypatch):
    monkeypatch.undo()  # of the face that is found everywhere
    grey = Image.new("RGB", (64, 64), (90, 80, 70))
    answer = a1111.post("extra-single-image", image=to_base64(grey), gfpgan_visibility=1)
    assert not differ(to_image(answer["image"]), grey)
    assert "no face was found" in answer["html_info"]
