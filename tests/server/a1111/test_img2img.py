"""img2img: images to begin from, masks, and several images for a batch."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from tests.server.a1111.conftest import SMALL, to_base64
from velatura.server.a1111 import generation
from velatura.server.a1111.schemas import Img2ImgRequest
from velatura.server.errors import ApiError
from velatura.server.settings import ServerSettings
from velatura.server.state import ServerState


def mask_of(box):
    """Return a black mask that is white in a box."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, box)
    return to_base64(mask)


def test_an_image_is_needed(a1111):
    assert a1111.post("img2img", 404, **SMALL)["detail"] == "Init image not found"
    assert a1111.post("img2img", 404, init_images=[], **SMALL)["detail"] == "Init image not found"


def test_a_low_denoising_strength_keeps_the_image(a1111, gradient):
    def distance(strength):
        [image], _ = a1111.paint("img2img", init_images=[to_base64(gradient)], denoising_strength=strength, steps=10)
        histogram = ImageChops.difference(image, gradient).convert("L").histogram()
        return sum(level * count for level, count in enumerate(histogram))

    assert distance(0.1) < distance(0.9)


def test_images_are_echoed_only_if_asked_for(a1111, gradient):
    text = to_base64(gradient)
    fields = {"init_images": [text], "mask": mask_of((0, 0, 64, 64)), **SMALL}
    parameters = a1111.post("img2img", **fields)["parameters"]
    assert (parameters["init_images"], parameters["mask"]) == (None, None)
    assert a1111.post("img2img", include_init_images=True, **fields)["parameters"]["init_images"] == [text]


@pytest.mark.parametrize(("inverted", "kept"), [(0, (0, 0, 24, 64)), (1, (40, 0, 64, 64))])
def test_only_what_is_white_in_the_mask_changes(a1111, gradient, inverted, kept):
    [image], info = a1111.paint(
        "img2img",
        init_images=[to_base64(gradient)],
        mask=mask_of((32, 0, 64, 64)),
        mask_blur=0,
        inpainting_mask_invert=inverted,
        inpainting_fill=1,
        inpaint_full_res=False,
        denoising_strength=1,
    )
    assert ImageChops.difference(image, gradient).crop(kept).getbbox() is None
    assert ImageChops.difference(image, gradient).getbbox() is not None
    assert info["is_using_inpainting_conditioning"]


def test_inpainting_fields_reach_the_recipe(a1111, gradient):
    _, info = a1111.paint(
        "img2img",
        init_images=[to_base64(gradient)],
        mask=mask_of((16, 16, 48, 48)),
        inpainting_fill=2,
        inpaint_full_res_padding=8,
        mask_round=False,
        resize_mode=1,
    )
    infotext = info["infotexts"][0]
    assert "Unrounded mask: True" in infotext
    for field in ("Masked content: latent noise", "Inpaint area: Only masked, Masked area padding: 8", "Mask blur: 4"):
        assert field in infotext
    assert "Denoising strength: 0.75" in infotext


def test_each_image_of_several_begins_one_picture_of_a_batch(a1111, gradient):
    black = to_base64(Image.new("RGB", (64, 64)))
    fields = {"denoising_strength": 0.3, "n_iter": 2, "batch_size": 2}
    images, info = a1111.paint("img2img", init_images=[to_base64(gradient), black], **fields)
    assert info["all_seeds"] == [7, 8, 9, 10]
    [alone], _ = a1111.paint("img2img", init_images=[black], denoising_strength=0.3, seed=10)
    assert ImageChops.difference(images[3], alone).getbbox() is None
    a1111.post("img2img", 422, **SMALL, init_images=[black, black, black], batch_size=2)


def test_data_urls_and_line_breaks_are_read(a1111, gradient):
    text = to_base64(gradient)
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for form in (f"data:image/png;base64,{text}", lines):
        a1111.paint("img2img", init_images=[form])


@pytest.mark.parametrize("image", ["", "no image", "http://127.0.0.1/secret.png", "file:///etc/passwd", "/etc/passwd"])
def test_what_is_no_image_is_refused(a1111, image):
    answer = a1111.post("img2img", 422, init_images=[image], **SMALL)
    assert answer["detail"]


def test_a_request_for_which_the_queue_has_no_room_leaves_none_of_its_jobs(tmp_path, gradient):
    state = ServerState(ServerSettings.of(out=tmp_path, library=(), max_queued_jobs=1))  # not started: the queue fills
    request = Img2ImgRequest(prompt="a", init_images=[to_base64(gradient)] * 2, batch_size=2)
    with pytest.raises(ApiError, match="jobs wait already"):
        generation._submit(state, request)
    assert state.jobs.queue.count() == {"cancelled": 1}
    state.stop()
