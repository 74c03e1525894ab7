"""One change of a checkpoint or an autoencoder: the weights are the same, or there is a refusal or a warning."""

import warnings
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import VelaturaError, VelaturaWarning
from velatura.formats.checkpoints import vae_file, write_single_file
from velatura.formats.checkpoints.build_models import build_vae
from velatura.formats.checkpoints.ldm_config import vae_config
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX
from velatura.formats.checkpoints.tensor_sources import Destination, apply_sources
from velatura.tensors import meta_tensors, open_tensors, write_torch

TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FINAL_NORM = "cond_stage_model.transformer.text_model.final_layer_norm.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the tensors of the tiny base as one file, and the file's metadata."""
    path = tmp_path_factory.mktemp("checkpoint") / "one.safetensors"
    write_single_file.write(velatura.tiny(), path)
    contents = open_tensors(path)
    return {key: contents.tensors[key].clone() for key in contents.tensors}, dict(contents.metadata)


def base_weights(path):
    base = velatura.open_base(path, dtype="float32", device="cpu")
    models = (base.unet, base.vae, base.text.encoders[0].model)
    return [tensor for model in models for tensor in model.state_dict().values()]


def vae_weights(path):
    contents = vae_file.open_vae(path)
    sources = vae_file.sources(contents)
    config = dict(tiny_vae().config) | vae_config(apply_sources(sources, meta_tensors(contents.tensors)))
    return list(build_vae(config, sources, contents, Destination()).state_dict().values())


@cache
def tiny_vae():
    return velatura.tiny().vae


@cache
def diffusers_vae():
    return {key: tensor.contiguous() for key, tensor in tiny_vae().state_dict().items()}


def write(path, tensors, metadata):
    if path.suffix == ".ckpt":
        write_torch(path, {"state_dict": tensors, "global_step": 3})
    else:
        save_file(tensors, path, metadata)


# Name of the file and the tensors that are changed
FILES = {
    "unet.safetensors": (TO_K,),
    "text.ckpt": (FINAL_NORM,),
    "ldm-vae.safetensors": (
        "encoder.mid.block_1.conv1.weight",
        "decoder.mid.block_1.norm1.weight",
        "post_quant_conv.weight",
    ),
    "diffusers-vae.safetensors": (
        "encoder.mid_block.resnets.0.conv1.weight",
        "decoder.mid_block.resnets.0.norm1.weight",
    ),
}


def set_first(tensor, value):
    tensor.view(-1)[0] = value
    return tensor


CHANGES = {
    "NaN": lambda tensor: set_first(tensor, float("nan")),
    "infinite": lambda tensor: set_first(tensor, float("inf")),
    "huge": lambda tensor: set_first(tensor, 1e30),
    "zero": torch.zeros_like,
    "integers": lambda tensor: tensor.to(torch.int32),
    "double": lambda tensor: tensor.double(),
    "brain": lambda tensor: tensor.bfloat16(),
    "longer": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "with another axis": lambda tensor: tensor[None],
}
MUTATIONS = {
    "dropped": lambda tensors, key: {name: tensor for name, tensor in tensors.items() if name != key},
    "renamed": lambda tensors, key: {f"{name}x" if name == key else name: tensor for name, tensor in tensors.items()},
    "added": lambda tensors, key: {**tensors, f"{key.removesuffix('weight')}unknown": torch.ones(2, 2)},
    "in another order": lambda tensors, _: dict(reversed(tensors.items())),
    **{
        name: lambda tensors, key, change=change: {**tensors, key: change(tensors[key].clone())}
        for name, change in CHANGES.items()
    },
}
OF_CHECKPOINTS = {"dropped", "added", "zero", "longer"}


def tensors_of(name, checkpoint):
    tensors, metadata = checkpoint
    if name == "diffusers-vae.safetensors":
        return diffusers_vae(), None
    if name == "ldm-vae.safetensors":
        vae = {key.removeprefix(VAE_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(VAE_PREFIX)}
        return vae, None
    return tensors, metadata


def outcome(path):
    """Return the weights of a file and whether there was a warning; None for a refused file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            weights = vae_weights(path) if "vae" in path.name else base_weights(path)
        except VelaturaError:
            return None, False
    return weights, any(issubclass(warning.category, VelaturaWarning) for warning in caught)


@cache
def usual_weights(path):
    return outcome(path)[0]


@pytest.fixture(scope="module")
def usual(checkpoint, tmp_path_factory):
    """Return a function that gives the weights of the unchanged file."""
    folder = tmp_path_factory.mktemp("usual")

    def read(name):
        if not (folder / name).exists():
            write(folder / name, *tensors_of(name, checkpoint))
        return usual_weights(folder / name)

    return read


# a checkpoint takes long to open, and its parts are read as an autoencoder is
CASES = [(name, mutation) for name in FILES for mutation in MUTATIONS if "vae" in name or mutation in OF_CHECKPOINTS]


@pytest.mark.parametrize(("name", "mutation"), CASES)
def test_no_change_of_a_base_gives_other_weights_in_silence(tmp_path, checkpoint, usual, name, mutation):
    tensors, metadata = tensors_of(name, checkpoint)
    for key in FILES[name]:
        write(tmp_path / name, MUTATIONS[mutation](tensors, key), metadata)
        weights, is_warned = outcome(tmp_path / name)
        is_same = weights is not None and all(
            first.shape == second.shape and torch.allclose(first, second, rtol=1e-2)
            for first, second in zip(usual(name), weights, strict=True)
        )
        assert weights is None or is_warned or is_same, key


@pytest.mark.parametrize("length", [0, 9, 5_000, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_base_that_is_cut_short_is_refused(tmp_path, checkpoint, name, length):
    write(tmp_path / name, *tensors_of(name, checkpoint))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])
    assert outcome(tmp_path / name)[0] is None
