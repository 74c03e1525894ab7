"""Aesthetic embeddings in the files of A1111's extension."""

import pytest
import torch

import velatura
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats.clip import find_text_projection
from velatura.formats.inspect.inspect import inspect_file
from velatura.library import Library
from velatura.tensors import write_torch


@pytest.mark.parametrize("shape", [(64,), (1, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_vector_is_read_as_it_is(tmp_path, shape, dtype):
    vector = torch.randn(shape).to(dtype)
    write_torch(tmp_path / "dusk.pt", vector)
    overlay = velatura.open_overlay(tmp_path / "dusk.pt")
    assert isinstance(overlay, velatura.Aesthetic)
    assert torch.equal(overlay.vector, vector.flatten().float())
    assert torch.equal(overlay.projection, find_text_projection(64))
    assert (overlay.card.name, overlay.card.family) == ("dusk", "tiny")
    assert inspect_file(tmp_path / "dusk.pt").card.family == "tiny"


def test_what_is_written_is_read_back(tmp_path, aesthetic):
    made = aesthetic(steps=5, rate=1e-4)
    velatura.save(made, tmp_path / "dusk.pt")
    velatura.save(made, tmp_path / "dusk.safetensors")
    for ending in ("pt", "safetensors"):
        again = velatura.open_overlay(tmp_path / f"dusk.{ending}")
        assert torch.equal(again.vector, made.vector)
        assert again.settings == made.settings
    assert torch.load(tmp_path / "dusk.pt", weights_only=True).shape == (1, 64)


def test_settings_that_a_pt_cannot_hold_are_warned_of(tmp_path, aesthetic):
    with pytest.warns(VelaturaWarning, match="holds the vector only"):
        velatura.save(aesthetic(steps=9), tmp_path / "dusk.pt")


@pytest.mark.parametrize("width", [768, 1024, 1280])
def test_vectors_of_other_clips_are_read_too(tmp_path, monkeypatch, width):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write_torch(tmp_path / "dusk.pt", torch.randn(1, width))
    assert velatura.open_overlay(tmp_path / "dusk.pt").settings.width == width
    assert inspect_file(tmp_path / "dusk.pt").card.kind == "aesthetic"


@pytest.mark.parametrize("vector", [torch.full((64,), torch.nan), torch.arange(64), torch.zeros(64).to_sparse()])
def test_anything_but_a_vector_of_finite_numbers_is_refused(tmp_path, vector):
    write_torch(tmp_path / "dusk.pt", vector)
    with pytest.raises(BadFile, match="dusk"):
        velatura.open_overlay(tmp_path / "dusk.pt")


def test_the_library_finds_one(tmp_path, aesthetic):
    velatura.save(aesthetic(steps=5, rate=1e-4), tmp_path / "dusk.pt")
    library = Library(tmp_path)
    assert library.overlay("dusk", "aesthetic").kind == "aesthetic"
