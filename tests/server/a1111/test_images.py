"""Images that are there: upscaled, read, described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.server.a1111.conftest import to_base64, to_image
from tests.upscaling.test_upscaling import save_nearest
from velatura.sampling.recipe.infotext import read_infotext
from velatura.server.a1111.infotext_parameters import infotext_parameters
from velatura.tiny import tiny_pictures

# Run by A1111 1.8: what it reads from infotexts beside its defaults
PARSED = json.loads((Path(__file__).parent / "infotext_parameters.json").read_text("utf-8"))


@pytest.mark.parametrize("number", range(len(PARSED["cases"])))
def test_parameters_of_an_infotext_are_those_that_a1111_reads(number):
    case = PARSED["cases"][number]
    assert infotext_parameters(*read_infotext(case["text"])) == PARSED["defaults"] | case["parsed"]


def test_png_info_returns_text_fields_and_other_chunks(a1111):
    import base64
    import io

    chunks = PngInfo()
    text = "a cat\nNegative prompt: dog\nSteps: 5, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x72"
    chunks.add_text("parameters", text)
    chunks.add_text("Author", "somebody")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    answer = a1111.post("png-info", image=base64.b64encode(buffer.getvalue()).decode())
    assert (answer["info"], answer["items"]) == (text, {"Author": "somebody"})
    found = [answer["parameters"][name] for name in ("Prompt", "Negative prompt", "Steps", "Size-1", "Size-2")]
    assert found == ["a cat", "dog", "5", "64", "72"]


def test_png_info_of_an_image_without_recipe_is_empty(a1111, gradient):
    assert a1111.post("png-info", image=to_base64(gradient)) == {"info": "", "items": {}, "parameters": {}}


def test_an_image_is_upscaled_by_a_factor(a1111, gradient):
    answer = a1111.post("extra-single-image", image=to_base64(gradient), upscaler_1="Nearest", upscaling_resize=3)
    image = to_image(answer["image"])
    assert image.size == (192, 192)
    assert image.getpixel((30, 61)) == gradient.getpixel((10, 20))


def test_without_an_upscaler_the_image_stays(a1111, gradient):
    image = to_image(a1111.post("extra-single-image", image=to_base64(gradient))["image"])
    assert (image.size, image.tobytes()) == (gradient.size, gradient.tobytes())


@pytest.mark.parametrize(("crop", "size"), [(True, (100, 50)), (False, (100, 100))])
def test_an_image_is_upscaled_to_a_size(a1111, gradient, crop, size):
    fields = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 50, "upscaling_crop": crop}
    answer = a1111.post("extra-single-image", image=to_base64(gradient), upscaler_1="Lanczos", **fields)
    assert to_image(answer["image"]).size == size


def test_two_upscalers_are_mixed(a1111, gradient):
    def upscaled(**fields):
        answer = a1111.post("extra-single-image", image=to_base64(gradient), upscaling_resize=2, **fields)
        return to_image(answer["image"]).getpixel((31, 64))

    nearest, lanczos = upscaled(upscaler_1="Nearest"), upscaled(upscaler_1="Lanczos")
    mixed = upscaled(upscaler_1="Nearest", upscaler_2="Lanczos", extras_upscaler_2_visibility=0.5)
    assert all(abs(2 * both - one - other) <= 2 for one, other, both in zip(nearest, lanczos, mixed, strict=True))


def test_several_images_are_upscaled(a1111, gradient):
    files = [{"data": to_base64(gradient), "name": "a.png"}, {"data": to_base64(gradient), "name": "b.png"}]
    answer = a1111.post("extra-batch-images", imageList=files, upscaler_1="Lanczos")
    assert [to_image(text).size for text in answer["images"]] == [(128, 128)] * 2
    files = [{"image": to_base64(gradient), "name": "a"}]  # as the clients a1111-webui-api and its kin send them
    answer = a1111.post("extra-batch-images", image_list=files, upscaler_1="Lanczos")
    assert (len(answer["images"]), answer["html_info"]) == (1, "")


def test_what_extras_do_not_have_is_said(a1111, gradient):
    answer = a1111.post("extra-single-image", image=to_base64(gradient), wand=3)
    assert "wand" in answer["html_info"]
    a1111.post("extra-single-image", 422, image=to_base64(gradient), upscaler_1="R-ESRGAN 4x+")


def test_an_image_is_described(a1111):
    picture = next(path for path in sorted(tiny_pictures("robot").iterdir()) if path.suffix == ".png")
    answer = a1111.post("interrogate", image=to_base64(Image.open(picture)))
    assert answer["caption"]
    assert a1111.post("interrogate", 404, image=answer["caption"], model="gpt")["detail"] == "Model not found"
    assert a1111.post("interrogate", 404)["detail"] == "Image not found"


@pytest.fixture
def nearest(models, state):
    """A network in the library that doubles images exactly as nearest neighbours do."""
    path = save_nearest(models / "RealESRGAN", "RealESRGAN_x2plus.pth")
    state.library.refresh()
    yield path
    path.unlink()
    state.library.refresh()


@pytest.mark.parametrize("name", ["RealESRGAN_x2plus", "R-ESRGAN 2x+"])
def test_an_image_is_upscaled_by_a_network_of_the_library(a1111, gradient, nearest, name):
    listed = {upscaler["name"]: upscaler["model_path"] for upscaler in a1111.get("upscalers")}
    assert listed["RealESRGAN_x2plus"] == "RealESRGAN/RealESRGAN_x2plus.pth"
    assert [model["name"] for model in a1111.get("realesrgan-models")] == ["R-ESRGAN 2x+"]
    answer = a1111.post("extra-single-image", image=to_base64(gradient), upscaler_1=name, upscaling_resize=2)
    expected = gradient.resize((128, 128), Image.Resampling.NEAREST)
    assert to_image(answer["image"]).tobytes() == expected.tobytes()


def test_a_network_upscales_the_first_pass(a1111, nearest):
    images, info = a1111.paint(enable_hr=True, hr_upscaler="R-ESRGAN 2x+", denoising_strength=0.4)
    assert images[0].size == (128, 128)
    assert "Hires upscaler: RealESRGAN_x2plus" in info["infotexts"][0]


def test_an_upscaler_that_is_missing_is_named(a1111, gradient):
    answer = a1111.post("extra-single-image", status=422, image=to_base64(gradient), upscaler_1="R-ESRGAN 4x+")
    assert "RealESRGAN_x4plus.pth" in answer["detail"]
