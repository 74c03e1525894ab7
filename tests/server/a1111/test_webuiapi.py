"""webuiapi, a client library of A1111's API, against our server; `pip install webuiapi` makes these tests run."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.server.a1111.conftest import import_client, page_blocks

pytestmark = pytest.mark.slow  # they may install a package

SMALL = {"steps": 1, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def webuiapi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The library."""
    with import_client("webuiapi", "webuiapi", folders=tmp_path_factory) as module:
        yield module


@pytest.fixture(scope="module")
def api(webuiapi: ModuleType, port: int) -> Any:
    """webuiapi's client of the running server, over a socket."""
    return webuiapi.WebUIApi(host="127.0.0.1", port=port, sampler="Euler", steps=1)


def test_pictures(api, webuiapi):
    result = api.txt2img(prompt="a red house", negative_prompt="snow", cfg_scale=5, **SMALL)
    assert (result.image.size, result.info["seed"], result.parameters["steps"]) == ((64, 64), 7, 1)
    larger = api.txt2img(
        prompt="a red house", enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.Latent, denoising_strength=0.5, **SMALL
    )
    assert larger.image.size == (128, 128)
    again = api.img2img(images=[result.image], prompt="a red house", denoising_strength=0.5, **SMALL)
    assert again.info["denoising_strength"] == 0.5
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    painted = api.img2img(
        images=[result.image],
        mask_image=mask,
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=False,
        prompt="a tree",
        denoising_strength=1.0,
        **SMALL,
    )
    difference = ImageChops.difference(painted.image.convert("RGB"), result.image.convert("RGB"))
    assert difference.crop((0, 0, 24, 64)).getbbox() is None
    assert difference.getbbox() is not None


def test_scripts(api):
    arguments = [1, "7,8", "", 0, "", "", 0, "", "", "True", "False", "False", "False"]
    result = api.txt2img(prompt="a house", script_name="X/Y/Z Plot", script_args=arguments, **SMALL)
    assert "X Type: seed" in result.info["infotexts"][0]


def test_images(api, webuiapi):
    image = api.txt2img(prompt="a red house", **SMALL).image
    upscaled = api.extra_single_image(image=image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    assert upscaled.image.size == (96, 96)
    batch = api.extra_batch_images(images=[image, image], upscaler_1=webuiapi.Upscaler.Nearest, upscaling_resize=2)
    assert [image.size for image in batch.images] == [(128, 128)] * 2
    assert "Steps: 1" in api.png_info(image).info
    assert api.interrogate(image=image).info


def test_lists(api):
    assert api.util_get_current_model() == "tiny [4e79e44e20]"
    assert api.util_get_model_names()
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert any(lora["name"] == "ink" for lora in api.get_loras())
    assert api.get_face_restorers() == []
    assert api.get_realesrgan_models() == []
    for call in (
        api.get_cmd_flags,
        api.get_sd_vae,
        api.get_upscalers,
        api.get_latent_upscale_modes,
        api.get_sd_models,
        api.get_hypernetworks,
        api.get_prompt_styles,
        api.get_embeddings,
        api.get_memory,
        api.get_scripts,
        api.get_samplers,
        api.get_schedulers,
        api.refresh_checkpoints,
    ):
        assert "detail" not in str(call())[:20]


def test_settings_and_progress(api):
    api.set_options({"CLIP_stop_at_last_layers": 2})
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    api.set_options({"CLIP_stop_at_last_layers": 1})
    assert api.get_progress()["state"]["job_count"] == 0
    api.util_wait_for_ready(check_interval=0.1)
    api.util_set_model("tiny")
    assert api.interrupt() == {}
    assert api.skip() is None


def test_a_mistake_is_raised(api):
    with pytest.raises(RuntimeError):
        api.txt2img(prompt="a house", sampler_name="no such sampler", **SMALL)


def test_the_pages_python_runs(webuiapi, port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in page_blocks("py", port):
        exec(compile(block, "docs/a1111-api.md", "exec"), {})
    with Image.open(tmp_path / "snow.png") as image:
        assert image.size == (64, 64)
