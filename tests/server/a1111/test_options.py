"""Settings: they are kept, act on pictures, and can be overridden for one request."""

from __future__ import annotations

import pytest
from PIL import ImageChops

import velatura


def test_settings_have_a1111s_names_and_defaults(a1111):
    options = a1111.get("options")
    assert options["sd_model_checkpoint"] == "tiny [4e79e44e20]"
    assert options["sd_checkpoint_hash"] == "4e79e44e20"
    found = [options[name] for name in ("sd_vae", "CLIP_stop_at_last_layers", "sd_hypernetwork", "randn_source")]
    assert found == ["Automatic", 1, "None", "GPU"]


def test_a_setting_is_kept_and_acts(a1111):
    assert a1111.post("options", CLIP_stop_at_last_layers=2, eta_noise_seed_delta=31337) is None
    assert a1111.get("options")["CLIP_stop_at_last_layers"] == 2
    _, info = a1111.paint(sampler_name="Euler a")  # others do not use ENSD
    assert info["clip_skip"] == 2
    assert "Clip skip: 2, ENSD: 31337" in info["infotexts"][0]


def test_settings_that_do_not_exist_are_named_and_not_kept(a1111):
    answer = a1111.client.post("/sdapi/v1/options", json={"grid_colour": "red", "samples_format": "webp"})
    assert (answer.status_code, answer.json()) == (200, None)
    assert "grid_colour" in answer.headers["Warning"]
    assert a1111.get("options")["samples_format"] == "webp"
    assert "grid_colour" not in a1111.get("options")


@pytest.mark.parametrize(
    "changes",
    [
        {"sd_model_checkpoint": "no such model"},
        {"sd_vae": "no such vae"},
        {"sd_hypernetwork": "/etc/passwd"},
        {"CLIP_stop_at_last_layers": "two"},
        {"return_grid": "perhaps"},
        {"sd_hypernetwork_strength": "strong"},
        {"samples_format": "exe"},
    ],
    ids=str,
)
def test_values_that_cannot_act_are_refused_and_nothing_is_kept(a1111, changes):
    a1111.post("options", 422, **changes, tiling=True)
    assert a1111.get("options")["tiling"] is False


def test_overrides_act_once_or_stay(a1111):
    _, info = a1111.paint(override_settings={"CLIP_stop_at_last_layers": 2, "nonsense": 1})
    assert info["clip_skip"] == 2
    assert any("nonsense" in warning for warning in info["warnings"])
    assert a1111.get("options")["CLIP_stop_at_last_layers"] == 1
    a1111.paint(override_settings={"CLIP_stop_at_last_layers": 2}, override_settings_restore_afterwards=False)
    assert a1111.get("options")["CLIP_stop_at_last_layers"] == 2


def test_the_format_of_samples_is_that_of_the_answer(a1111):
    [image], _ = a1111.paint(override_settings={"samples_format": "webp"})
    assert image.format == "WEBP"


def test_a_chosen_lora_and_hypernetwork_are_added_to_prompts(a1111, models, tiny):
    network = velatura.Hypernetwork.for_base(tiny, seed=1, name="neon", init="xavier_normal")
    velatura.save(network, models / "neon.pt")
    a1111.post("refresh-checkpoints")
    a1111.post("options", sd_hypernetwork="neon", sd_hypernetwork_strength=0.5, sd_lora="ink")
    [image], info = a1111.paint()
    assert info["prompt"] == "a red house <hypernet:neon:0.5> <lora:ink:1.0>"
    _, mentioned = a1111.paint(prompt="a red house <hypernet:neon:0.2><lora:ink:0.3>")
    assert mentioned["prompt"] == "a red house <hypernet:neon:0.2><lora:ink:0.3>"
    [without], info = a1111.paint(prompt="a red house <lora:ink:1>", disable_extra_networks=True)
    assert info["prompt"] == "a red house"
    assert ImageChops.difference(image, without).getbbox() is not None
    assert a1111.get("hypernetworks") == [{"name": "neon", "path": "neon.pt"}]


def test_styles_are_added_to_prompts(a1111, models):
    (models / "styles.csv").write_text('name,prompt,negative_prompt\nink,"{prompt}, ink drawing",photo\n', "utf-8")
    assert a1111.get("prompt-styles") == [
        {"name": "ink", "prompt": "{prompt}, ink drawing", "negative_prompt": "photo"}
    ]
    _, info = a1111.paint(styles=["ink", "nowhere"])
    assert (info["prompt"], info["negative_prompt"]) == ("a red house, ink drawing", "photo")
    assert any("nowhere" in warning for warning in info["warnings"])
    assert info["styles"] == ["ink", "nowhere"]


def test_the_base_is_closed_and_opened_again(a1111):
    assert a1111.post("unload-checkpoint") == {}
    assert a1111.post("reload-checkpoint") == {}
    a1111.paint()
