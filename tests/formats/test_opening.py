"""Where a base is opened, and in which precision."""

import pytest
import torch

import velatura
from velatura.base import devices
from velatura.errors import UnknownName, VelaturaWarning
from velatura.tiny import DATA_FOLDER

TINY = DATA_FOLDER / "tiny"


def test_a_small_base_opens_in_float32_and_a_large_one_in_the_fastest_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert velatura.open_base(TINY, device="cpu").dtype == torch.float32
    monkeypatch.setattr(devices, "MIN_HALF_PRECISION_BYTES", 0)
    base = velatura.open_base(TINY, device="cpu")
    assert {base.dtype, base.vae.dtype, base.text.model.dtype} == {torch.bfloat16}
    assert base.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert velatura.generate(base, "a red house", seed=1, steps=2).image.size == (64, 64)


def test_the_size_of_a_checkpoint_decides_its_precision(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    velatura.save(tiny, tmp_path / "tiny.safetensors")
    size = (tmp_path / "tiny.safetensors").stat().st_size
    for small, dtype in ((size + 1, torch.float32), (size, torch.bfloat16)):
        monkeypatch.setattr(devices, "MIN_HALF_PRECISION_BYTES", small)
        assert velatura.open_base(tmp_path / "tiny.safetensors", device="cpu").dtype == dtype


def test_a_base_can_be_offloaded_to_the_cpu(tiny):
    with pytest.warns(VelaturaWarning, match="offload saves nothing on a CPU"):
        base = velatura.open_base(TINY, device="cpu", offload=True)
    ours, theirs = (velatura.generate(each, "a red house", seed=1, steps=2) for each in (base, tiny))
    assert ours.image.tobytes() == theirs.image.tobytes()
    assert hasattr(base.unet, "_hf_hook")


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnknownName, match="this machine does not have cuda"):
        velatura.open_base(TINY, device="cuda")
