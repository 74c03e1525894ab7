"""Upscalers: files of every naming are opened strictly, and their networks compute what spandrel's compute."""

from __future__ import annotations

import gc
import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from tests.upscaling.states import FIRST, REAL_ESRGAN, STATES, compact_state, pixels, rrdb_state
from velatura.formats.inspect.inspect import inspect_file
from velatura.sampling.hires import find_upscaler_file
from velatura.upscaling import open_upscaler, upscale_image

# Run by spandrel 0.4.2 on the states of states.py: some values of its results
SPANDREL = json.loads((Path(__file__).parent / "spandrel.json").read_text("utf-8"))
NEAREST = {  # a compact network whose convolutions are zero adds nothing to the nearest pixels
    key: torch.zeros_like(value) for key, value in compact_state(2).items()
}


def write(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def save_nearest(folder: Path, name: str = "Nearest2x.pth") -> Path:
    """Write an upscaler that doubles an image exactly as nearest neighbours do."""
    folder.mkdir(parents=True, exist_ok=True)
    return write(folder / name, {"params": NEAREST})


@pytest.mark.parametrize("name", STATES)
def test_a_network_computes_what_spandrel_computes(tmp_path, name):
    upscaler = open_upscaler(write(tmp_path / "4x.pth", STATES[name]))
    result = upscaler.network(pixels())
    expected = SPANDREL[name]
    assert (upscaler.scale, list(result.shape)) == (expected["scale"], expected["shape"])
    assert torch.allclose(result.flatten()[::37], torch.tensor(expected["every 37th"]), atol=2e-5)
    assert result.mean().item() == pytest.approx(expected["mean"], abs=2e-5)
    assert result.std().item() == pytest.approx(expected["std"], abs=2e-5)
    assert expected["std"] > 0.01  # the weights of states.py let something through


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict"])
def test_weights_are_found_where_training_programs_put_them(tmp_path, wrapper):
    state = {f"module.{key}": value.half() for key, value in compact_state(2).items()}
    payload = {wrapper: state, "iter": 400000} if wrapper == "state_dict" else {wrapper: state}
    path = write(tmp_path / "net_g.pth", payload)
    assert open_upscaler(path).scale == 2
    info = inspect_file(path)
    assert (info.card.kind, info.card.outline, info.problem) == ("upscaler", "compact, 2x, 2 convolutions of 4", "")


def test_the_averaged_weights_are_used_where_a_file_has_both(tmp_path):
    last = {key: value + 1 for key, value in NEAREST.items()}
    upscaler = open_upscaler(write(tmp_path / "both.pth", {"params": last, "params_ema": NEAREST}))
    assert torch.equal(upscaler.network(pixels())[..., ::2, ::2], pixels())


def altered(change: str) -> dict[str, object]:
    state: dict[str, object] = {**rrdb_state(REAL_ESRGAN)}
    if change == "missing":
        del state["body.0.rdb2.conv3.bias"]
    elif change == "extra":
        state["body.0.rdb1.conv6.weight"] = torch.zeros(1)
    elif change == "shape":
        state["conv_hr.weight"] = torch.zeros(4, 4, 1, 1)
    elif change == "nan":
        state["conv_hr.bias"] = torch.full((4,), torch.nan)
    elif change == "number":
        state["body.987654321.rdb1.conv1.weight"] = torch.zeros(32, 4, 3, 3)
    elif change == "grey":
        state["conv_first.weight"] = torch.zeros(4, 1, 3, 3)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks body.0.rdb2.conv3.bias"),
        ("extra", "'body.0.rdb1.conv6.weight', which has no place"),
        ("shape", r"conv_hr.weight of x.pth has the shape \(4, 4, 1, 1\) instead of \(4, 4, 3, 3\)"),
        ("nan", "conv_hr.bias of x.pth does not hold finite"),
        ("number", "lacks body.1.rdb1.conv1.bias"),
        ("grey", "not an upscaler that velatura opens"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, change, message):
    with pytest.raises(velatura.BadFile, match=message):
        open_upscaler(write(tmp_path / "x.pth", altered(change)))


def test_a_lora_is_not_an_upscaler(tmp_path, tiny):
    path = tmp_path / "ink.safetensors"
    velatura.save(velatura.Lora.for_base(tiny, rank=1, seed=1, name="ink"), path)
    with pytest.raises(velatura.BadFile, match="not an upscaler"):
        open_upscaler(path)


def gradient(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("name", ["compact", "Real-ESRGAN, 2x"])
def test_no_seam_shows_between_tiles(tmp_path, name, monkeypatch):
    upscaler = open_upscaler(write(tmp_path / "x.pth", STATES[name]))
    image = gradient(53, 37)  # odd sides, which the fold of 2x fills up
    whole = np.asarray(upscale_image(upscaler, image), dtype=int)
    monkeypatch.setattr("velatura.upscaling.tiles.TILE_PIXELS", 20)
    calls: list[tuple[int, int]] = []
    tiled = np.asarray(upscale_image(upscaler, image, on_tile=lambda *done: calls.append(done)), dtype=int)
    assert calls == [(number, 6) for number in range(1, 7)]
    assert whole.shape == (37 * upscaler.scale, 53 * upscaler.scale, 3)
    assert abs(whole - tiled).max() <= 1  # rounding


def test_the_network_is_applied_until_the_size_is_reached(tmp_path):
    upscaler = open_upscaler(save_nearest(tmp_path))
    image = gradient(5, 3)
    four_times = upscale_image(upscaler, image, (20, 12))
    assert four_times.tobytes() == image.resize((20, 12), Image.Resampling.NEAREST).tobytes()
    assert upscale_image(upscaler, image, (100, 60)).size == (100, 60)  # 8 times, then Lanczos
    assert upscale_image(upscaler, image, (7, 4)).size == (7, 4)


def test_transparency_stays(tmp_path):
    image = gradient(4, 4).convert("RGBA")
    image.putalpha(Image.new("L", (4, 4), 90))
    result = upscale_image(open_upscaler(save_nearest(tmp_path)), image)
    assert (result.mode, result.size, result.getpixel((3, 3))[3]) == ("RGBA", (8, 8), 90)


@pytest.mark.parametrize("folder", ["models/ESRGAN", "models/RealESRGAN", "models/upscale_models", "models"])
def test_the_library_finds_upscalers_where_people_have_them(tmp_path, folder):
    save_nearest(tmp_path / folder)
    (tmp_path / "models" / "Lora").mkdir()
    library = velatura.Library(tmp_path, cache=tmp_path / "cache")
    assert [(entry.name, entry.kind) for entry in library.entries(kind="upscaler")] == [("Nearest2x", "upscaler")]
    upscaler = find_upscaler_file("nearest2x", library)
    assert upscaler.scale == 2
    assert find_upscaler_file("Nearest2x.pth", library) is upscaler
    os.utime(tmp_path / folder / "Nearest2x.pth", (1, 1))
    assert find_upscaler_file("nearest2x", library) is not upscaler


def test_hires_fix_upscales_by_a_network(tmp_path, tiny):
    save_nearest(tmp_path / "models" / "RealESRGAN", "RealESRGAN_x2plus.pth")
    library = velatura.Library(tmp_path / "models", cache=tmp_path / "cache")
    hires = {"steps": 1, "hires_steps": 1, "hires_scale": 2, "seed": 7, "denoising": 0.3, "library": library}
    nearest = velatura.generate(tiny, "a house", hires_upscaler="Nearest", **hires)
    for name in ("RealESRGAN_x2plus", "R-ESRGAN 2x+"):  # A1111's name of the same file
        picture = velatura.generate(tiny, "a house", hires_upscaler=name, **hires)
        assert picture.recipe.hires_upscaler == "RealESRGAN_x2plus"
        assert np.abs(np.asarray(picture.image, dtype=int) - np.asarray(nearest.image, dtype=int)).max() <= 1
    with pytest.raises(velatura.UnknownName, match=r"needs the file RealESRGAN_x4plus\.pth"):
        velatura.generate(tiny, "a house", hires_upscaler="R-ESRGAN 4x+", **hires)
    with pytest.raises(velatura.UnknownName, match="did you mean 'RealESRGAN_x2plus'"):
        velatura.generate(tiny, "a house", hires_upscaler="RealESRGAN_x2", **hires)


def test_an_upscaler_is_not_opened_without_a_second_pass(tmp_path, tiny):
    (tmp_path / "models" / "ESRGAN").mkdir(parents=True)
    (tmp_path / "models" / "ESRGAN" / "4x.pth").write_bytes(b"damaged")
    library = velatura.Library(tmp_path / "models", cache=tmp_path / "cache")
    for name in ("4x", "missing"):
        with pytest.warns(velatura.VelaturaWarning, match="hires_upscaler changes nothing without hires_scale"):
            picture = velatura.generate(tiny, "a house", steps=1, hires_upscaler=name, library=library)
        assert picture.recipe.hires_upscaler == name


def test_an_upscaler_that_nobody_uses_is_let_go(tmp_path):
    save_nearest(tmp_path / "models" / "ESRGAN")
    upscaler = find_upscaler_file("nearest2x", velatura.Library(tmp_path / "models", cache=tmp_path / "cache"))
    reference = weakref.ref(upscaler)
    del upscaler
    gc.collect()
    assert reference() is None


def test_a_first_file_of_esrgan_is_recognised(tmp_path):
    info = inspect_file(write(tmp_path / "ESRGAN.pth", rrdb_state(FIRST)))
    assert (info.card.outline, info.dialect) == ("ESRGAN, 4x, 1 blocks of 4", "esrgan")


@pytest.mark.parametrize(("size", "max_pixels"), [(None, 63), ((32, 32), 255)])
def test_an_image_that_would_become_too_large_on_the_way_is_refused(tmp_path, size, max_pixels):
    upscaler = open_upscaler(save_nearest(tmp_path))
    image = Image.new("RGB", (4, 4), "red")  # 64 pixels after a pass, 256 after two
    with pytest.raises(velatura.BadArgument, match="choose an upscaler of a smaller scale"):
        upscale_image(upscaler, image, size, max_pixels=max_pixels)
    assert upscale_image(upscaler, image, (16, 16), max_pixels=256).size == (16, 16)


@pytest.mark.parametrize(
    ("name", "key"), [("GFPGAN", "stylegan_decoder.style_mlp.1.weight"), ("CodeFormer", "idx_pred_layer.1.weight")]
)
def test_a_network_that_restores_faces_is_refused_by_its_name(tmp_path, name, key):
    path = write(tmp_path / "faces.pth", {"params_ema": {key: torch.zeros(4, 4)}})
    with pytest.raises(velatura.BadFile, match=f"faces.pth is {name}, which restores faces"):
        open_upscaler(path)
