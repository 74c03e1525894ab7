"""A base as a diffusers folder: what is written opens here and in diffusers, and says the same."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

import velatura
from tests.formats.checkpoints.states import all_tensors, same, weights
from velatura.errors import AlreadyExists
from velatura.tensors import open_tensors


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "tiny"
    velatura.save(tiny, path)
    return path


def test_it_comes_back_bit_for_bit(tiny, folder):
    base = velatura.open_base(folder, dtype="float32", device="cpu")
    assert same(weights(base), weights(tiny))
    assert base.family == tiny.family
    assert torch.equal(base.schedule.alphas_cumprod, tiny.schedule.alphas_cumprod)
    assert base.text.token_ids("a red fox at dusk") == tiny.text.token_ids("a red fox at dusk")


@torch.no_grad()
def test_diffusers_opens_it_as_a_whole_pipeline(tiny, folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text0": pipeline.text_encoder}
    assert same(all_tensors(parts), weights(tiny))
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, tiny.schedule.alphas_cumprod, rtol=1e-4, atol=1e-6)
    words, _ = pipeline.encode_prompt("a red fox", "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(words, tiny.text.encode(["a red fox"]))


def test_old_programs_find_the_tokenizer_in_two_files(tiny, folder):
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    merges = (folder / "tokenizer" / "merges.txt").read_text().splitlines()
    assert len(words) == len(tiny.text.tokenizer)
    assert merges[0].startswith("#version")
    assert all(merge.replace(" ", "") in words for merge in merges[1:])


def test_text_encoders_keep_the_level_text_model_for_older_programs(folder):
    keys = open_tensors(folder / "text_encoder" / "model.safetensors").tensors.keys()
    assert all(key.startswith("text_model.") for key in keys)


def test_half_precision_is_written_when_asked_for(tiny, tmp_path):
    velatura.save(tiny, tmp_path / "half", dtype="float16")
    tensors = open_tensors(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors").tensors
    assert {tensors[key].dtype for key in tensors} == {torch.float16}


def test_an_ending_may_stand_in_the_name_of_a_folder(tiny, tmp_path):
    velatura.save(tiny, f"{tmp_path}/sd-v1.5/")
    assert (tmp_path / "sd-v1.5" / "model_index.json").is_file()


def test_an_existing_folder_is_not_replaced(tiny, folder):
    before = (folder / "model_index.json").stat().st_mtime_ns
    with pytest.raises(AlreadyExists, match="already exists and is not empty"):
        velatura.save(tiny, folder)
    assert (folder / "model_index.json").stat().st_mtime_ns == before


def test_a_failed_write_leaves_nothing(tiny, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("velatura.formats.checkpoints.write_folder.write_safetensors", fail)
    with pytest.raises(velatura.VelaturaError, match="No space left"):
        velatura.save(tiny, tmp_path / "full")
    assert not list(tmp_path.iterdir())
