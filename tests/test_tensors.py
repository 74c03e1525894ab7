import pytest
import torch

from velatura.tensors import open_tensors, write_safetensors, write_torch


def test_safetensors_come_back_with_their_metadata(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4).bfloat16()}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"name": "ink"})
    contents = open_tensors(tmp_path / "x.safetensors")
    assert contents.metadata == {"name": "ink"}
    assert all(torch.equal(contents.tensors[key], tensors[key]) for key in tensors)


def test_a_torch_file_comes_back(tmp_path):
    write_torch(tmp_path / "x.pt", {768: torch.ones(2), "step": 3})
    payload = open_tensors(tmp_path / "x.pt").payload
    assert payload["step"] == 3
    assert torch.equal(payload[768], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_itself_are_read(tmp_path, zipped):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(open_tensors(tmp_path / "x.pt").payload["a"], torch.ones(2))


def test_a_safetensors_file_is_read_only_where_it_is_asked_for(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.ones(3)})
    tensors = open_tensors(tmp_path / "x.safetensors").tensors
    reads = []
    reader = type("Reader", (), {"get_tensor": lambda _, key: reads.append(key)})
    monkeypatch.setattr(tensors, "_file", reader())
    assert list(tensors) == ["a", "b"]
    assert tensors.get("c") is None
    assert not reads
    tensors["b"]
    assert reads == ["b"]
