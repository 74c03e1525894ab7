"""Checkpoints of the tiny base as most files are: with nothing in them that tells what they predict."""

import pytest

import velatura
from velatura.tensors import open_tensors, write_safetensors


@pytest.fixture(scope="module")
def silent(tiny, tmp_path_factory):
    """The tensors and the metadata of a checkpoint that does not say what it predicts."""
    path = tmp_path_factory.mktemp("one") / "one.safetensors"
    velatura.save(tiny, path)
    contents = open_tensors(path)
    metadata = {key: value for key, value in contents.metadata.items() if not key.startswith("modelspec.")}
    return dict(contents.tensors), metadata


@pytest.fixture
def write(silent, tmp_path):
    def write_checkpoint(name, factor=1.0, metadata=(), **more):
        tensors = {key: tensor * factor if tensor.is_floating_point() else tensor for key, tensor in silent[0].items()}
        path = tmp_path / f"{name}.safetensors"
        write_safetensors(path, tensors | more, {**silent[1], **dict(metadata)})
        return path

    return write_checkpoint
