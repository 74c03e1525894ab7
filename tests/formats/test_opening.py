"""Where a base is opened, and in which precision."""

import shutil

import pytest
import torch

import velatura
from velatura.base import devices
from velatura.errors import BadFile, UnknownName, VelaturaWarning
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


@pytest.mark.parametrize("inner", ["sd15", "models--owner--name/snapshots/5f3a"])
def test_the_folder_above_a_base_points_at_it(tmp_path, inner):
    (tmp_path / "models--owner--name" / "refs").mkdir(parents=True)
    shutil.copytree(TINY, tmp_path / inner)
    with pytest.raises(BadFile, match=f"it holds a base, give {tmp_path / inner}$"):
        velatura.open_base(tmp_path)


def test_the_folder_of_several_bases_points_at_two_of_them(tiny, hyper, tmp_path):
    velatura.save(tiny, tmp_path / "anime.safetensors")
    velatura.save(hyper(), tmp_path / "ink.safetensors")  # not a base
    shutil.copytree(TINY, tmp_path / "sd15")
    bases = f"{tmp_path / 'sd15'} or {tmp_path / 'anime.safetensors'}"
    with pytest.raises(BadFile, match=f"it holds more bases, give {bases}$"):
        velatura.open_base(tmp_path)


def test_a_folder_without_any_base_points_at_none(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadFile, match=r"model_index.json and unet/: give the path of one$"):
        velatura.open_base(tmp_path)
