"""sd-backend-client, another client library of A1111's API, against our server; it is installed if it is not there."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.server.a1111.conftest import import_client

pytestmark = pytest.mark.slow  # they may install a package

SMALL = {"steps": 1, "width": 64, "height": 64, "seed": 7, "sampler": "euler"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The library, with the package that it opens ComfyUI's sockets with."""
    packages = ("sd-backend-client", "websocket-client")
    with import_client("sd_backend_client", *packages, folders=tmp_path_factory) as module:
        yield module


@pytest.fixture(scope="module")
def backend(library: ModuleType, port: int) -> Any:
    """Its client of the running server, over a socket."""
    return library.connect_to_backend(f"http://127.0.0.1:{port}")


def test_the_server_is_taken_for_a1111(backend, library):
    assert isinstance(backend, library.A1111Webservice)
    assert not backend.get_capabilities().controlnet


def test_pictures(backend, library):
    params = library.DiffusionParams(prompt="a red house", **SMALL)
    result = backend.submit_txt2img(params).wait(timeout=300)
    assert (result.images[0].size, result.seeds) == ((64, 64), [7])
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    fields = {"init_images": [result.images[0]], "denoising_strength": 0.7, **SMALL}
    changed = (
        backend.submit_img2img(library.DiffusionParams(prompt="a blue boat", **fields)).wait(timeout=300).images[0]
    )
    assert changed.size == (64, 64)
    inpainted = backend.submit_inpaint(library.DiffusionParams(prompt="a blue boat", mask=mask, **fields))
    inpainted = inpainted.wait(timeout=300).images[0]
    kept = (0, 0, 16, 64)  # far from the mask
    difference = ImageChops.difference(inpainted.convert("RGB"), result.images[0].convert("RGB"))
    assert max(high for _, high in difference.crop(kept).getextrema()) <= 2
    assert difference.getbbox() is not None


def test_several_pictures_with_the_fields_of_a1111_alone(backend, library):
    params = library.DiffusionRequestBody(prompt="a red house", batch_size=2, n_iter=2, **SMALL)
    assert len(backend.submit_txt2img(params).wait(timeout=300).images) == 4
    params = library.DiffusionRequestBody(prompt="a red house", enable_hr=True, hr_scale=2.0, **SMALL)
    assert backend.submit_txt2img(params).wait(timeout=300).images[0].size == (128, 128)


def test_upscaling(backend):
    image = Image.new("RGB", (16, 16), "red")
    assert backend.submit_upscale(image, 32, 32).wait(timeout=300).images[0].size == (32, 32)


def test_every_list(backend):
    assert "euler" in {option.name for option in backend.list_samplers()}
    assert "karras" in {option.name for option in backend.list_schedulers()}
    lists = (backend.list_checkpoints, backend.list_upscalers, backend.get_latent_upscale_modes)
    assert all(read() for read in lists)
    others = (
        backend.list_vaes,
        backend.list_loras,
        backend.list_hypernetworks,
        backend.get_styles,
        backend.get_script_info,
    )
    assert all(isinstance(read(), list) for read in others)
    assert {name.lower() for name in backend.get_scripts().txt2img} >= {"prompt matrix", "x/y/z plot"}


def test_options_progress_refreshes_and_interrupting(backend):
    before = backend.get_config()
    backend.set_config({"CLIP_stop_at_last_layers": 2})
    assert backend.get_config()["CLIP_stop_at_last_layers"] == 2
    backend.set_config({"CLIP_stop_at_last_layers": before["CLIP_stop_at_last_layers"]})
    assert backend.progress_check().progress == 0
    assert backend.refresh_checkpoints().ok
    assert backend.refresh_vae().ok
    assert backend.refresh_loras().ok
    assert backend.interrupt() in ({}, None)


def test_a_picture_is_described(backend):
    assert backend.interrogate(Image.new("RGB", (64, 64), "red"))
