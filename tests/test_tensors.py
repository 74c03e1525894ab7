import hashlib

import pytest
import torch

from velatura.tensors import open_tensors, read_metadata, sha256, write_safetensors, write_torch


def test_safetensors_come_back_with_their_metadata(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4).bfloat16()}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"name": "ink"})
    contents = open_tensors(tmp_path / "x.safetensors")
    assert contents.metadata == read_metadata(tmp_path / "x.safetensors") == {"name": "ink"}
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


def test_other_files_have_no_metadata(tmp_path):
    (tmp_path / "x").write_text("hello")
    assert read_metadata(tmp_path / "x") == {}


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"velatura")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"velatura").hexdigest()
