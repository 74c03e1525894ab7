"""What many tests stand on: the tiny base, and hypernetworks that do something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import velatura
from velatura.base.families import Family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.formats.clip import find_text_projection
from velatura.formats.vocabulary import clip_tokenizer
from velatura.training.run import end_sheet, end_tune


@pytest.fixture(scope="session")
def playwright_engine() -> Iterator[Any]:
    """What starts browsers, one for all tests of a process: a second one cannot run beside it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `dev`, drives pages")
    with api.sync_playwright() as engine:
        yield engine


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what libraries know of files away from the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VELATURA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def sheets_where_asked() -> Iterator[None]:
    """Paint the sheet of strengths, and find the best one, only where a plan asks for it: it takes seconds."""
    paint = end_sheet.paint_end_sheet

    def paint_if_asked(*arguments: Any, path: Path | None, **options: Any) -> end_sheet.EndSheet:
        return paint(*arguments, path=path, **options) if path else end_sheet.EndSheet()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_sheet, "is_sheet_due", lambda _base, is_asked: bool(is_asked))
        patch.setattr(end_tune, "is_tune_due", lambda _base, is_asked, _steps: bool(is_asked))
        patch.setattr(end_sheet, "paint_end_sheet", paint_if_asked)
        yield


@pytest.fixture(scope="session")
def ray_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module ray; installed into a folder of its own if it is not there. It is shut down at the end."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("ray") is None:
            folder = tmp_path_factory.mktemp("ray")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "ray>=2.50,<3"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=400)
            except (subprocess.SubprocessError, OSError):
                pytest.skip("ray cannot be installed here")
            patch.setattr(sys, "path", [*sys.path, str(folder)])  # last: other packages stay those of this environment
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of the workers
        patch.setenv("RAY_worker_niceness", "0")  # else workers wait behind all else on a busy machine
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        yield ray
        ray.shutdown()


@pytest.fixture
def ray(ray_module: Any) -> Any:
    """Ray with two workers on this machine, which the tests that use it share."""
    if not ray_module.is_initialized():
        options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray_module.init(address="local", num_cpus=2, **options)
    return ray_module


@pytest.fixture(scope="session")
def tiny() -> velatura.Base:
    return velatura.tiny()


@pytest.fixture(scope="session")
def inpainting(tiny: velatura.Base) -> velatura.Base:
    """The tiny base as an inpainting model, whose UNet reads nine channels."""
    return widen(tiny, 9, name="inpainting")


@pytest.fixture(scope="session")
def pix2pix(tiny: velatura.Base) -> velatura.Base:
    """The tiny base as an instruct-pix2pix model, whose UNet reads eight channels."""
    return widen(tiny, 8, name="pix2pix")


def copy_four_pictures(name: str, folder: Path) -> Path:
    """Copy four of the bundled pictures of a name with their captions into a new folder, and return it."""
    folder.mkdir()
    for path in sorted(velatura.tiny_pictures(name).iterdir())[:8]:
        shutil.copy(path, folder)
    return folder


def widen(base: velatura.Base, channels: int, *, name: str) -> velatura.Base:
    """Return a base that shares all with another one, except a UNet with more input channels of random weights."""
    config = {key: value for key, value in base.unet.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**config, "in_channels": channels})
    state = {key: tensor.clone() for key, tensor in base.unet.state_dict().items()}
    plain = state["conv_in.weight"]
    more = torch.randn(len(plain), channels - 4, 3, 3, generator=torch.Generator().manual_seed(5)) * plain.std()
    state["conv_in.weight"] = torch.cat([plain, more], dim=1)
    unet.load_state_dict(state, assign=True)
    parts = {"unet": unet, "vae": base.vae, "text": base.text, "schedule": base.schedule}
    return velatura.Base(name, base.family, **parts).to()


@pytest.fixture
def hyper(tiny: velatura.Base) -> Callable[..., velatura.Hypernetwork]:
    """Make hypernetworks for the tiny base with weights large enough to change what it says."""

    def make(**options: object) -> velatura.Hypernetwork:
        made = velatura.Hypernetwork.for_base(tiny, **{"seed": 1, "init": "xavier_normal", **options})
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(std=0.1, generator=generator)
        return made

    return make


@pytest.fixture
def lora(tiny: velatura.Base) -> Callable[..., velatura.Lora]:
    """Make LoRAs of the tiny base's attention layers, its text tower's too, with weights large enough to show."""

    def make(seed: int = 1, **options: object) -> velatura.Lora:
        made = velatura.Lora.for_base(
            tiny, **{"rank": 2, "targets": "attention", "text": True, "seed": seed, **options}
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
        return made

    return make


@pytest.fixture
def embedding(tiny: velatura.Base) -> Callable[..., velatura.Embedding]:
    """Make embeddings for the tiny base that change what it says of the word "a"."""

    def make(seed: int = 1, **options: object) -> velatura.Embedding:
        made = velatura.Embedding.for_base(tiny, **{"name": "a", "vectors": 2, **options})
        for each in made.parameters():
            nn.init.normal_(each, std=0.5, generator=torch.Generator().manual_seed(seed))
        return made

    return make


@pytest.fixture
def difference(tiny: velatura.Base) -> Callable[..., velatura.Difference]:
    """Make differences of all layers of the tiny base that change what it says."""

    def make(seed: int = 1, **options: object) -> velatura.Difference:
        made = velatura.Difference.for_base(tiny, **{"text": True, **options})
        generator = torch.Generator().manual_seed(seed)
        for each in made.parameters():
            nn.init.normal_(each, std=0.02, generator=generator)
        return made

    return make


@pytest.fixture
def aesthetic() -> Callable[..., velatura.Aesthetic]:
    """Make aesthetics for the tiny base that change what it says."""

    def make(seed: int = 1, **options: object) -> velatura.Aesthetic:
        vector = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        return velatura.Aesthetic.from_vector(vector, find_text_projection(64), **{"steps": 2, "rate": 1e-3, **options})

    return make


@pytest.fixture(scope="session")
def xl() -> velatura.Base:
    """A base with an SDXL's parts and random weights, small: two text towers, and a UNet that is told sizes."""
    torch.manual_seed(0)
    towers = [
        ClipTextEncoder(clip_tokenizer(pads_with_zero=zero), kind(CLIPTextConfig(**options)), 2, False, False)
        for zero, kind, options in (
            (False, CLIPTextModel, XL_TOWER | {"hidden_size": 16, "eos_token_id": 49407}),
            (True, CLIPTextModelWithProjection, XL_TOWER | {"hidden_size": 24, "projection_dim": 20}),
        )
    ]
    family = Family("small XL", 40, (64,), 8, 0.13025, 64, "epsilon")
    parts = {"unet": UNet2DConditionModel(**XL_UNET), "vae": AutoencoderKL(**XL_VAE), "text": TextEncoder(towers)}
    return velatura.Base("small XL", family, schedule=NoiseSchedule(), **parts).to("cpu")


XL_TOWER = {"intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 49408}
XL_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 40,
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "norm_num_groups": 8,
}
XL_VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
}
