"""txt2img: A1111's fields and defaults make the pictures that the same recipe makes without a server."""

from __future__ import annotations

import json

import pytest
from PIL import ImageChops

import velatura
from tests.server.a1111.conftest import SMALL

# A1111's own defaults, from its documentation of the API
DEFAULTS = {
    "prompt": "",
    "negative_prompt": "",
    "styles": None,
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "sampler_name": None,
    "sampler_index": "Euler",
    "scheduler": None,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 50,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 512,
    "restore_faces": None,
    "tiling": None,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "eta": None,
    "denoising_strength": None,
    "s_min_uncond": None,
    "s_churn": None,
    "s_tmax": None,
    "s_tmin": None,
    "s_noise": None,
    "override_settings": None,
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None,
    "refiner_switch_at": None,
    "disable_extra_networks": False,
    "firstpass_image": None,
    "comments": None,
    "enable_hr": False,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2.0,
    "hr_upscaler": None,
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "force_task_id": None,
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
    "infotext": None,
}
# fmt: off
INFO_FIELDS = {
    "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed",
    "all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size",
    "restore_faces", "face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash",
    "seed_resize_from_w", "seed_resize_from_h", "denoising_strength", "extra_generation_params",
    "index_of_first_image", "infotexts", "styles", "job_timestamp", "clip_skip", "is_using_inpainting_conditioning",
    "version",
}
# fmt: on


def test_the_answer_repeats_the_request_with_a1111s_defaults(a1111):
    given = {"prompt": "a red house", **SMALL}
    answer = a1111.post("txt2img", **given)
    assert answer["parameters"] == DEFAULTS | given


def test_info_has_all_fields_of_a1111(a1111):
    _, info = a1111.paint()
    assert info.keys() >= INFO_FIELDS
    assert (info["seed"], info["all_seeds"], info["width"], info["sd_model_name"]) == (7, [7], 64, "tiny")
    assert info["infotexts"][0].startswith("a red house\nSteps: 1, Sampler: Euler, Schedule type: Automatic, ")


def test_a_picture_is_the_one_that_generate_makes(a1111, tiny):
    [image], _ = a1111.paint(negative_prompt="snow", cfg_scale=5, sampler_name="Euler a", steps=3)
    recipe = velatura.Recipe(
        prompt="a red house", negative="snow", guidance=5, sampler="Euler a", steps=3, seed=7, width=64, height=64
    )
    assert ImageChops.difference(image, velatura.generate(tiny, recipe).image).getbbox() is None


def test_pictures_carry_their_recipe(a1111):
    [image], info = a1111.paint()
    assert image.text["parameters"] == info["infotexts"][0]


def test_seeds_count_over_batches(a1111):
    images, info = a1111.paint(batch_size=2, n_iter=2)
    assert (len(images), info["all_seeds"], info["index_of_first_image"]) == (4, [7, 8, 9, 10], 0)
    [alone], _ = a1111.paint(seed=9)
    assert ImageChops.difference(images[2], alone).getbbox() is None


def test_variations_keep_the_seed_and_count_the_other_one(a1111):
    _, info = a1111.paint(n_iter=2, subseed=3, subseed_strength=0.5)
    assert (info["all_seeds"], info["all_subseeds"]) == ([7, 7], [3, 4])


@pytest.mark.parametrize(
    "sampler",
    [
        {"sampler_name": "DPM++ 2M Karras"},
        {"sampler_name": "DPM++ 2M", "scheduler": "karras"},
        {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
        {"sampler_index": "DPM++ 2M"},
        {"sampler_name": "k_dpmpp_2m_ka"},
        {"sampler_name": "DPM++ 2M Karras", "scheduler": "exponential"},
    ],
    ids=str,
)
def test_the_scheduler_stands_inside_the_samplers_name_or_apart(a1111, sampler):
    [image], _ = a1111.paint(steps=3, **sampler)
    [expected], _ = a1111.paint(steps=3, sampler_name="DPM++ 2M", scheduler="Karras")
    assert ImageChops.difference(image, expected).getbbox() is None


def test_a_second_pass_doubles_the_size(a1111):
    [image], info = a1111.paint(enable_hr=True, denoising_strength=0.5)
    assert image.size == (128, 128)
    assert "Hires upscale: 2, Hires upscaler: Latent" in info["infotexts"][0]
    [image], _ = a1111.paint(enable_hr=True, width=96, height=96, firstphase_width=64, firstphase_height=64)
    assert image.size == (96, 96)
    [image], _ = a1111.paint(enable_hr=True, hr_resize_x=72, hr_upscaler="Lanczos", hr_sampler_name="Euler a")
    assert image.size == (72, 72)


def test_unknown_fields_are_accepted_and_named(a1111, state):
    _, info = a1111.paint(hair_colour="red", firstpass_image="AAAA")
    assert info["warnings"][0] == "the request has fields that are not read: hair_colour"
    assert "firstpass_image has no effect" in info["warnings"][1]
    [job] = state.jobs.queue.list(limit=1)
    assert job.warnings[:2] == tuple(info["warnings"][:2])


def test_null_stands_for_the_default(a1111):
    [plain], _ = a1111.paint()
    [image], info = a1111.paint(hr_prompt=None, styles=None, cfg_scale=None, script_args=None, alwayson_scripts=None)
    assert image.tobytes() == plain.tobytes()
    assert (info["cfg_scale"], info.get("warnings", [])) == (7.0, [])


def test_an_infotext_fills_in_what_is_left_open(a1111):
    infotext = "a blue cat\nNegative prompt: snow\nSteps: 2, Sampler: Euler a, CFG scale: 4, Seed: 5, Size: 64x72"
    _, info = a1111.paint(infotext=infotext)
    assert (info["prompt"], info["seed"], info["steps"], info["height"]) == ("a red house", 7, 1, 64)
    answer = json.loads(a1111.post("txt2img", infotext=infotext, steps=1)["info"])
    found = [answer[name] for name in ("prompt", "negative_prompt", "seed", "steps", "height", "cfg_scale")]
    assert found == ["a blue cat", "snow", 5, 1, 72, 4.0]


def test_images_are_left_out_where_they_are_not_wanted(a1111):
    assert a1111.post("txt2img", send_images=False, **SMALL)["images"] == []


def test_saved_pictures_come_with_a_grid_in_front(a1111):
    images, info = a1111.paint(save_images=True, n_iter=2)
    assert (len(images), images[0].size, info["index_of_first_image"]) == (3, (128, 64), 1)
    images, _ = a1111.paint(save_images=True, n_iter=2, override_settings={"return_grid": False})
    assert len(images) == 2


def test_pictures_that_must_not_be_saved_leave_the_history(a1111, state):
    before = len(state.pictures.list(limit=500))
    a1111.paint(do_not_save_samples=True)
    assert len(state.pictures.list(limit=500)) == before
    a1111.paint()
    assert len(state.pictures.list(limit=500)) == before + 1


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, {"sampler_name": "no such sampler"}),
        (422, {"script_name": "no such script"}),
        (422, {"alwayson_scripts": {"Seed": {"args": []}, "ControlNet": {"args": [{"image": "..."}]}}}),
        (422, {"alwayson_scripts": {"ControlNet": [1]}}),
        (422, {"steps": 10**9}),
        (422, {"cfg_scale": "many"}),
        (413, {"n_iter": 10**9}),
        (413, {"width": 8192, "height": 8192}),
        (422, {"enable_hr": True, "hr_upscaler": "no such upscaler"}),
        (422, {"override_settings": {"sd_model_checkpoint": "no such model"}}),
    ],
    ids=str,
)
def test_mistakes_are_answered_in_a1111s_shape(a1111, status, fields):
    answer = a1111.post("txt2img", status, **{**SMALL, **fields})
    assert answer.keys() == {"error", "detail", "body", "errors"}


def test_an_always_on_script_without_arguments_changes_no_picture_and_is_named(a1111):
    scripts = {"ControlNet": {"args": []}, "Seed": {}, "ADetailer": None}
    [image], info = a1111.paint(alwayson_scripts=scripts)
    assert image.tobytes() == a1111.paint()[0][0].tobytes()
    assert any("ADetailer, ControlNet, Seed" in warning for warning in info["warnings"])


def test_a_field_of_the_wrong_type_is_named_as_fastapi_names_it(a1111):
    [fault] = a1111.post("txt2img", 422, steps="many")["detail"]
    assert fault["loc"] == ["body", "steps"]


def test_a_tag_of_a_missing_overlay_is_skipped_with_a_warning(a1111):
    images, info = a1111.paint(prompt="a red house <lora:nowhere:1>")
    assert len(images) == 1
    assert any("nowhere" in warning for warning in info["warnings"])
