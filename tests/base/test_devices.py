import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

import velatura
from velatura.base import devices
from velatura.base.devices import find_device, find_dtype
from velatura.errors import UnknownName

LARGE, SMALL = 1_700_000_000, 30_000_000  # bytes of an SD1's UNet in half precision, and of the tiny base's


@pytest.fixture
def machine(monkeypatch):
    """Simulate a machine with these devices, and a CPU with these capabilities."""

    def pretend(*kinds, gpus=1, **capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus if "cuda" in kinds else 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return pretend


@pytest.mark.parametrize(
    ("kinds", "found"), [((), "cpu"), (("cuda",), "cuda"), (("mps",), "mps"), (("cuda", "mps"), "cuda")]
)
def test_the_fastest_device_is_taken(machine, kinds, found):
    machine(*kinds)
    assert find_device("auto") == torch.device(found)
    assert find_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_here_is_refused_with_those_that_are(machine):
    machine("cuda", gpus=2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    for absent in ("cuda:2", "mps"):
        with pytest.raises(UnknownName, match=f"this machine does not have {absent}: choose one of auto, cuda, cpu"):
            find_device(absent)
    with pytest.raises(UnknownName, match="no device is called 'gpu'"):
        find_device("gpu")


@pytest.mark.parametrize(
    ("device", "capabilities", "dtype"),
    [
        ("cuda", {}, torch.float16),
        ("mps", {}, torch.float16),
        ("cpu", {}, torch.float32),
        ("cpu", {"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_the_precision_is_what_the_device_is_fastest_in(machine, device, capabilities, dtype):
    machine(device, **capabilities)
    assert find_dtype("auto", torch.device(device), LARGE) == dtype


def test_small_bases_stay_exact_on_a_cpu(machine):
    machine(amx_bf16=True, avx512_bf16=True)
    assert find_dtype("auto", torch.device("cpu"), SMALL) == torch.float32
    assert find_dtype("bfloat16", torch.device("cpu"), SMALL) == torch.bfloat16
    assert find_dtype(torch.float16, torch.device("cpu"), SMALL) == torch.float16


def test_an_unknown_precision_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        find_dtype("floot16", torch.device("cpu"), SMALL)


def test_every_cpu_says_what_it_can_do():
    assert devices.has_fast_bfloat16() in {True, False}


def test_attention_is_torchs_fused_one(tiny, xl):
    for base in (tiny, xl):
        kinds = {type(processor) for model in (base.unet, base.vae) for processor in model.attn_processors.values()}
        assert kinds == {AttnProcessor2_0}
        assert {encoder.model.config._attn_implementation for encoder in base.text.encoders} == {"sdpa"}


def test_convolutions_have_their_channels_last(tiny):
    weight = tiny.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_tiny_base_is_exact_whatever_the_machine():
    assert velatura.tiny().dtype == torch.float32
