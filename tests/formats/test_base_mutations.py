"""One change of a base on disk: the same weights and settings, a refusal or a warning; never silence with others.

FILES are valid files of every kind: a checkpoint, one of torch, a diffusers folder, autoencoders under both names.
"""

import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import velatura
from tests.formats.small_base import small_base, small_state, write_checkpoint, write_tokenizer
from velatura.errors import BadFile, VelaturaError, VelaturaWarning
from velatura.formats.checkpoints import vae_file
from velatura.formats.checkpoints.build_models import build_vae
from velatura.formats.checkpoints.ldm_config import vae_config
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX
from velatura.formats.checkpoints.tensor_sources import Destination, apply_sources
from velatura.tensors import DAMAGED_FILE_ERRORS, meta_tensors

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
FOLDER_UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


def read_base(path):
    """Return the weights of a base by name, with its settings as tensors."""
    base = velatura.open_base(path, dtype="float32", device="cpu")
    models = {"unet": base.unet, "vae": base.vae, "text": base.text.encoders[0].model}
    weights = {f"{part}.{key}": tensor for part, model in models.items() for key, tensor in model.state_dict().items()}
    unet_heads = base.unet.config["attention_head_dim"]
    text_heads = base.text.encoders[0].model.config.num_attention_heads
    heads = sum(unet_heads) if isinstance(unet_heads, list | tuple) else unet_heads
    settings = (heads, text_heads, base.family.scaling_factor, base.family.default_pixels, base.schedule.zero_snr)
    return {**weights, "settings": torch.tensor([*settings, base.family.prediction == "v_prediction"])}


def read_vae(path):
    """Return the weights of an autoencoder alone, as opening a base with it reads them, in a tenth of the time."""
    contents = vae_file.open_vae(path)
    sources = vae_file.sources(contents)
    vae_file.warn_of_leftovers(contents, sources)
    try:
        config = dict(small_base().vae.config) | vae_config(apply_sources(sources, meta_tensors(contents.tensors)))
        return build_vae(config, sources, contents, Destination()).state_dict()
    except DAMAGED_FILE_ERRORS as error:
        raise BadFile(str(error)) from None


def write_folder(path, tensors):
    """Write tensors as the UNet of a diffusers folder."""
    if not path.exists():
        velatura.save(small_base(), path)
    save_file(dict(tensors), path / FOLDER_UNET, {"format": "pt"})


@cache
def folder_state():
    return {key: tensor.contiguous() for key, tensor in small_base().unet.state_dict().items()}


def ldm_vae_state():
    state = small_state()
    return {key.removeprefix(VAE_PREFIX): tensor for key, tensor in state.items() if key.startswith(VAE_PREFIX)}


@cache
def diffusers_vae_state():
    return {key: tensor.contiguous() for key, tensor in small_base().vae.state_dict().items()}


@dataclass(frozen=True)
class BaseKind:
    """A kind of file: its name, its tensors, those that are changed in turn, and how it is written and read."""

    name: str
    state: object
    keys: tuple[str, ...]
    write: object
    read: object


FILES = {
    "checkpoint": BaseKind(
        "x.safetensors",
        small_state,
        (f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", f"{UNET}out.0.weight"),
        write_checkpoint,
        read_base,
    ),
    "checkpoint of torch": BaseKind(
        "x.ckpt",
        small_state,
        (f"{TEXT}encoder.layers.0.mlp.fc1.weight", f"{TEXT}final_layer_norm.weight"),
        write_checkpoint,
        read_base,
    ),
    "diffusers folder": BaseKind(
        "x",
        folder_state,
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight", "conv_norm_out.weight"),
        write_folder,
        read_base,
    ),
    "VAE of LDM": BaseKind(
        "x.safetensors",
        ldm_vae_state,
        ("encoder.down.0.block.0.conv1.weight", "decoder.mid.block_1.norm1.weight", "post_quant_conv.weight"),
        lambda path, tensors: save_file(dict(tensors), path),
        read_vae,
    ),
    "VAE of diffusers": BaseKind(
        "x.safetensors",
        diffusers_vae_state,
        ("encoder.mid_block.attentions.0.to_q.weight", "decoder.mid_block.resnets.0.norm1.weight"),
        lambda path, tensors: save_file(dict(tensors), path),
        read_vae,
    ),
}


def set_first(value):
    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


CHANGES = {
    "NaN": set_first(float("nan")),
    "infinite": set_first(float("inf")),
    "huge": set_first(1e30),
    "zero": torch.zeros_like,
    "integers": lambda tensor: tensor.to(torch.int32),
    "double": lambda tensor: tensor.double(),
    "brain": lambda tensor: tensor.bfloat16(),
    "longer": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "transposed": lambda tensor: tensor.transpose(0, 1).contiguous() if tensor.ndim > 1 else tensor[None],
    "with another axis": lambda tensor: tensor[None],
}
MUTATIONS = {
    "dropped": lambda tensors, key: {name: tensor for name, tensor in tensors.items() if name != key},
    "renamed": lambda tensors, key: {f"{name}x" if name == key else name: tensor for name, tensor in tensors.items()},
    "added": lambda tensors, key: {**tensors, f"{key.removesuffix('weight')}unknown": torch.ones(2, 2)},
    "added at the top": lambda tensors, _: {**tensors, "foo_unknown": torch.ones(2, 2)},
    "in another order": lambda tensors, _: dict(reversed(tensors.items())),
    **{
        name: lambda tensors, key, change=change: {**tensors, key: change(tensors[key].clone())}
        for name, change in CHANGES.items()
    },
}


def outcome(read, path):
    """Return what is read and whether there was a warning; None for a refused file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = read(path)
        except VelaturaError:
            return None, True
    return result, any(issubclass(warning.category, VelaturaWarning) for warning in caught)


def is_same(first, second):
    return first.keys() == second.keys() and all(
        first[key].shape == second[key].shape and torch.allclose(first[key], second[key], rtol=1e-2) for key in first
    )


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Return a function that gives what is read from the unchanged file, which is read without a warning."""
    folder, read = tmp_path_factory.mktemp("usual"), {}

    def read_usual(name):
        kind = FILES[name]
        if name not in read:
            path = folder / name / kind.name
            path.parent.mkdir()
            kind.write(path, kind.state())
            read[name], is_warned = outcome(kind.read, path)
            assert read[name] is not None
            assert not is_warned
        return read[name]

    return read_usual


def is_undetectable(mutation, tensor):
    """Return True for a square matrix that was turned: it is a valid one."""
    return mutation == "transposed" and tensor.ndim > 1 and tensor.shape[0] == tensor.shape[1]


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", FILES)
def test_no_change_of_a_base_gives_others_in_silence(tmp_path, usual, name, mutation):
    kind = FILES[name]
    keys = [key for key in kind.keys if not is_undetectable(mutation, kind.state()[key])]
    # one of the tensors for each change, in turn: opening takes long
    for key in keys[list(MUTATIONS).index(mutation) % max(len(keys), 1) :][:1]:
        kind.write(tmp_path / kind.name, MUTATIONS[mutation](kind.state(), key))
        result, is_told = outcome(kind.read, tmp_path / kind.name)
        assert is_told or is_same(usual(name), result), key


@pytest.mark.parametrize("length", [0, 9, 5_000, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_base_that_is_cut_short_is_refused(tmp_path, name, length):
    kind = FILES[name]
    kind.write(tmp_path / kind.name, kind.state())
    file = tmp_path / kind.name / (FOLDER_UNET if kind.name == "x" else "")
    file.write_bytes(file.read_bytes()[:length])
    assert outcome(kind.read, tmp_path / kind.name)[0] is None


HINTS = {"unet": {"attention_head_dim": 4}, "vae": {"scaling_factor": 0.2}, "text": {"num_attention_heads": 6}}
METADATA = {
    "velatura.base": json.dumps(HINTS),
    "modelspec.prediction_type": "v",
    "modelspec.architecture": "stable-diffusion-v1",
    "format": "pt",
}
# What the metadata say, changed: by one key, its value, or the value's inside
METADATA_MUTATIONS = {
    "in another order": lambda metadata: dict(reversed(metadata.items())),
    "with an unknown key": lambda metadata: {**metadata, "foo_unknown": "1"},
    "prediction in capitals": lambda metadata: {**metadata, "modelspec.prediction_type": "V"},
    "prediction of another kind": lambda metadata: {**metadata, "modelspec.prediction_type": "flow"},
    "prediction empty": lambda metadata: {**metadata, "modelspec.prediction_type": ""},
    "architecture of another model": lambda metadata: {**metadata, "modelspec.architecture": "Flux.1-dev"},
    "architecture of another family": lambda metadata: {
        **metadata,
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
    },
    "architecture of another kind": lambda metadata: {**metadata, "modelspec.architecture": "stable-diffusion-v1/lora"},
    "format of another library": lambda metadata: {**metadata, "format": "np"},
    "settings cut short": lambda metadata: {**metadata, "velatura.base": metadata["velatura.base"][:-3]},
    "settings not JSON": lambda metadata: {**metadata, "velatura.base": "heads: 4"},
    "settings a list": lambda metadata: {**metadata, "velatura.base": "[1]"},
    "settings without a part": lambda metadata: with_hints(metadata, text=None),
    "settings of a part a number": lambda metadata: with_hints(metadata, unet=3),
    "settings with an unknown part": lambda metadata: with_hints(metadata, foo_unknown={"x": 1}),
    "settings with an unknown field": lambda metadata: with_hints(metadata, unet={**HINTS["unet"], "foo_unknown": 1}),
    "settings of another size": lambda metadata: with_hints(
        metadata, unet={**HINTS["unet"], "block_out_channels": [64]}
    ),
    "heads that do not fit": lambda metadata: with_hints(metadata, unet={"attention_head_dim": 5}),
    "heads as text": lambda metadata: with_hints(metadata, unet={"attention_head_dim": "4"}),
    "heads without end": lambda metadata: with_hints(metadata, unet={"attention_head_dim": 1e30}),
    "heads negative": lambda metadata: with_hints(metadata, unet={"attention_head_dim": -4}),
    "heads of text that do not fit": lambda metadata: with_hints(metadata, text={"num_attention_heads": 5}),
    "scale as text": lambda metadata: with_hints(metadata, vae={"scaling_factor": "0.2"}),
    "scale of zero": lambda metadata: with_hints(metadata, vae={"scaling_factor": 0}),
    "scale not a number": lambda metadata: with_hints(metadata, vae={"scaling_factor": float("nan")}),
    "scale empty": lambda metadata: with_hints(metadata, vae={"scaling_factor": None}),
}


def with_hints(metadata, **parts):
    hints = {part: values for part, values in {**HINTS, **parts}.items() if values is not None}
    return {**metadata, "velatura.base": json.dumps(hints)}


@pytest.fixture(scope="module")
def stated(tmp_path_factory):
    """Return what is read from a checkpoint whose metadata say what its tensors do not."""
    path = tmp_path_factory.mktemp("stated") / "x.safetensors"
    write_checkpoint(path, small_state(), METADATA)
    result, is_warned = outcome(read_base, path)
    assert not is_warned
    assert result["settings"].tolist()[:3] == pytest.approx([4, 6, 0.2])
    assert result["settings"][-1] == 1
    return result


@pytest.mark.parametrize("mutation", METADATA_MUTATIONS)
def test_no_change_of_a_checkpoints_metadata_gives_another_base_in_silence(tmp_path, stated, mutation):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, small_state(), METADATA_MUTATIONS[mutation](METADATA))
    result, is_told = outcome(read_base, path)
    assert is_told or is_same(stated, result)


CONFIGS = {
    "model_index.json": {"_class_name": ["StableDiffusionXLPipeline", "FluxPipeline", 3], "unet": [["foo", "X"]]},
    "unet/config.json": {
        "attention_head_dim": ["8", -8, 1e30, [4, -8]],
        "cross_attention_dim": [32],
        "block_out_channels": [[64, 64]],
        "foo_unknown": [1],
        "class_embed_type": ["projection"],
        "mid_block_type": ["foo"],
    },
    "vae/config.json": {
        "scaling_factor": ["0.2", 0, -1, float("nan")],
        "foo_unknown": [1],
        "block_out_channels": [[64, 64]],
    },
    "text_encoder/config.json": {"num_attention_heads": [5, "12", -12], "hidden_size": [48], "foo_unknown": [1]},
    "scheduler/scheduler_config.json": {
        "prediction_type": ["flow", 3],
        "beta_start": ["a", 0.5, -1],
        "beta_end": [None],
        "num_train_timesteps": [500],
        "beta_schedule": ["linear"],
        "rescale_betas_zero_snr": ["no"],
        "foo_unknown": [1],
    },
}
CONFIG_CASES = [
    (file, key, value) for file, values in CONFIGS.items() for key, changes in values.items() for value in changes
]


@pytest.mark.parametrize(("file", "key", "value"), CONFIG_CASES, ids=lambda part: str(part).replace("/", "-"))
def test_no_change_of_a_folders_settings_gives_another_base_in_silence(tmp_path, usual, file, key, value):
    velatura.save(small_base(), tmp_path / "x")
    path = tmp_path / "x" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    result, is_told = outcome(read_base, tmp_path / "x")
    assert is_told or is_same(usual("diffusers folder"), result)


@pytest.mark.parametrize("file", CONFIGS)
def test_settings_of_a_folder_that_are_cut_short_are_refused(tmp_path, file):
    velatura.save(small_base(), tmp_path / "x")
    path = tmp_path / "x" / file
    for text in (path.read_text()[:-3], "[]", ""):
        path.write_text(text)
        assert outcome(read_base, tmp_path / "x")[0] is None


@pytest.mark.parametrize(
    ("schedule", "is_named"),
    [
        (lambda plain, _: plain, False),
        (lambda plain, _: plain.half(), False),
        (lambda _, zero_snr: zero_snr, True),
        (lambda plain, _: plain[:500], True),
        (lambda plain, _: plain * float("nan"), True),
    ],
)
def test_another_noise_schedule_inside_a_checkpoint_is_named(tmp_path, schedule, is_named):
    """A1111 loads the buffer alphas_cumprod with the weights, so that it paints with it."""
    plain = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
    roots = plain.sqrt()  # Lin et al. 2023, algorithm 1
    zero_snr = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {**small_state(), "alphas_cumprod": schedule(plain, zero_snr).contiguous()})
    result, is_told = outcome(read_base, path)
    assert result is not None
    assert is_told == is_named
    if is_named:
        return
    base = velatura.open_base(path, dtype="float32", device="cpu", zero_snr=False)
    assert not base.schedule.zero_snr


def test_the_vocabulary_of_a_checkpoint_is_looked_for_beside_it(tmp_path):
    """Without it the text encoder's table has another size than CLIP's, and no vocabulary fits."""
    save_file(dict(small_state()), tmp_path / "x.safetensors")
    assert outcome(read_base, tmp_path / "x.safetensors")[0] is None
    write_tokenizer(tmp_path)
    assert outcome(read_base, tmp_path / "x.safetensors")[1] is False
    assert load_file(tmp_path / "x.safetensors").keys() == small_state().keys()
