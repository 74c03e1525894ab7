"""One change of a valid file: the result is the same, or there is a refusal or a warning; never silence with another.

FILES makes valid files of every kind, MUTATIONS change one thing in them. The result is what the overlay does: the
changes of weights by a LoRA, the outputs of a hypernetwork, the vectors of an embedding, the weights of a base.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import VelaturaError, VelaturaWarning
from velatura.formats.hypernetworks.optim import read_optim, write_optim
from velatura.formats.native import CARD_KEY
from velatura.overlays.deltas import DELTAS
from velatura.overlays.lora.compatibility import check_compatible
from velatura.overlays.lora.kohya_names import names_in_files
from velatura.overlays.target import Target
from velatura.tensors import open_tensors, write_torch

LAYERS = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
    "lora_unet_down_blocks_0_resnets_0_conv1",
)
NORM_LAYERS = ("lora_unet_down_blocks_0_resnets_0_norm1", "lora_unet_down_blocks_0_resnets_0_norm2")
ALGORITHMS = ("lora", "lora-bias", "dora", "loha", "lokr", "glora", "ia3", "oft", "boft", "oft-2", "full", "norm")
SETTINGS = {"alpha", "on_input", "oft_R.scaled_oft"}
ADDED = "an.unknown.thing.weight"


def noise(shape, seed):
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def target():
    return Target.from_model(velatura.tiny())


def lora_state(target, algorithm):
    """Return tensors of two layers in kohya's names, with weights that do something."""
    names, tensors = names_in_files(target), {}
    for layer in NORM_LAYERS if algorithm == "norm" else LAYERS:
        delta = DELTAS[algorithm].for_layer(target.layer(names[layer]), rank=4, alpha=2.0)
        for suffix, tensor in delta.state_dict().items():
            change = 0 if suffix in SETTINGS else noise(tensor.shape, len(tensors))
            tensors[f"{layer}.{suffix}"] = (tensor.detach() + change).contiguous()
    return tensors


def diffusers_state(target):
    names = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}
    tensors = {}
    for key, tensor in lora_state(target, "lora").items():
        layer, _, suffix = key.partition(".")
        path = names_in_files(target)[layer]
        if suffix != "alpha":
            tensors[path + names[f".{suffix}"]] = tensor
    return tensors


def peft_state(target):
    return {f"base_model.model.{key.removeprefix('unet.')}": tensor for key, tensor in diffusers_state(target).items()}


def lora_result(path, target):
    overlay = velatura.open_overlay(path)
    check_compatible(overlay, target, overlay.deltas(target))
    changes = {}
    for name, delta in overlay.deltas(target).items():
        layer = target.layer(name)
        changes[name] = delta.weight_delta(layer.weight).detach()
        if (bias := delta.bias_delta(layer.bias)) is not None:
            changes[f"{name}.bias"] = bias.detach()
    return changes


@cache
def hypernetwork():
    """Return a hypernetwork whose every tensor does something."""
    overlay = velatura.Hypernetwork.for_base(
        velatura.tiny(), layers=(1, 1.5, 1), layer_norm=True, seed=1, widths=[64, 96]
    )
    with torch.no_grad():
        for index, parameter in enumerate(overlay.parameters()):
            parameter.add_(noise(parameter.shape, index))
    return overlay


def pt_state(_):
    """Name the tensors of an A1111 file by their place in it: 64/0/linear.0.weight."""
    state = hypernetwork().state_dict()
    return {key.replace("_", "/", 1).replace(".", "/", 1): tensor.clone() for key, tensor in state.items()}


def write_pt(path, tensors):
    velatura.save(hypernetwork(), path)
    settings = {key: value for key, value in open_tensors(path).payload.items() if isinstance(key, str)}
    payload = {}
    for key, tensor in tensors.items():
        width, _, rest = key.partition("/")
        network, _, name = rest.partition("/")
        if width.isdecimal():
            payload.setdefault(int(width), ({}, {}))[int(network)][name] = tensor
        else:
            payload[key] = tensor
    write_torch(path, {**payload, **settings})


def flat_state(_):
    return {key: tensor.clone() for key, tensor in hypernetwork().state_dict().items()}


def write_flat(path, tensors):
    velatura.save(hypernetwork(), path)
    metadata = {key: text for key, text in open_tensors(path).metadata.items() if key != CARD_KEY}
    save_file(tensors, path, metadata)


def hypernetwork_result(path, target):
    overlay = velatura.open_overlay(path)
    overlay.check_compatible(target)
    names = [f"{width}_{part}" for width in (64, 96) for part in (0, 1)]
    return {
        name: overlay.get_submodule(name)(noise((3, int(name[:2])), 9), torch.tensor(1.0)).detach() for name in names
    }


def write_peft_folder(path, tensors):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["to_out.0", "conv1"]}
    (path / "adapter_config.json").write_text(json.dumps(config))


def optim_state(_):
    """Name the tensors of an optimizer's state by the parameter's index: 0.exp_avg."""
    optimizer = torch.optim.AdamW(hypernetwork().parameters(), lr=1e-3)
    sum(parameter.square().sum() for parameter in hypernetwork().parameters()).backward()
    optimizer.step()
    return {
        f"{index}.{name}": tensor
        for index, tensors in optimizer.state_dict()["state"].items()
        for name, tensor in tensors.items()
    }


def write_optim_file(path, tensors):
    """Write tensors as the state of AdamW; one without an index stands beside the settings."""
    if not path.with_suffix("").exists():
        velatura.save(hypernetwork(), path.with_suffix(""))
    groups = torch.optim.AdamW(hypernetwork().parameters(), lr=1e-3).state_dict()["param_groups"]
    states, rest = {}, {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if index.isdecimal():
            states.setdefault(int(index), {})[name] = tensor
        else:
            rest[key] = tensor
    write_optim(path.with_suffix(""), "AdamW", {"state": states, "param_groups": groups, **rest})


def optim_result(path, _):
    stored = read_optim(path.with_suffix(""))
    states = {} if stored is None else stored.state["state"]
    return {f"{index}.{name}": tensor for index, state in states.items() for name, tensor in state.items()}


def write_safe(path, tensors):
    save_file(tensors, path)


def write_a1111_embedding(path, tensors):
    vectors = {"*": tensors["emb_params"]} if "emb_params" in tensors else {}
    rest = {key: value for key, value in tensors.items() if key != "emb_params"}
    write_torch(path, {"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "x", "step": 3, **rest})


def embedding_result(path, _):
    return dict(enumerate(velatura.open_overlay(path).vectors))


@dataclass(frozen=True)
class Kind:
    """A kind of file: its tensors, how they are written, and what comes out."""

    ending: str
    state: Callable
    write: Callable
    result: Callable


FILES = {
    **{
        f"lora of kohya: {name}": Kind(
            "safetensors", lambda target, name=name: lora_state(target, name), write_safe, lora_result
        )
        for name in ALGORITHMS
    },
    "lora of diffusers": Kind("safetensors", diffusers_state, write_safe, lora_result),
    "lora of peft": Kind("safetensors", peft_state, write_safe, lora_result),
    "folder of peft": Kind("adapter", peft_state, write_peft_folder, lora_result),
    "hypernetwork of A1111": Kind("pt", pt_state, write_pt, hypernetwork_result),
    "flat hypernetwork": Kind("safetensors", flat_state, write_flat, hypernetwork_result),
    "optimizer of A1111": Kind("pt.optim", optim_state, write_optim_file, optim_result),
    "embedding of A1111": Kind(
        "pt", lambda _: {"emb_params": noise((2, 64), 1)}, write_a1111_embedding, embedding_result
    ),
    "embedding of kohya": Kind(
        "safetensors", lambda _: {"emb_params": noise((2, 64), 1)}, write_safe, embedding_result
    ),
    "embedding of diffusers": Kind("safetensors", lambda _: {"<x>": noise((2, 64), 1)}, write_safe, embedding_result),
}


def replace(change):
    def mutate(tensors, key):
        return {**tensors, key: change(tensors[key].clone())}

    return mutate


def set_first(value):
    def change(tensor):
        tensor = tensor.float()
        tensor.view(-1)[0] = value
        return tensor

    return change


def enlarge(tensor):
    return torch.cat([tensor, tensor[:1]]) if tensor.ndim else torch.stack([tensor, tensor])


MUTATIONS = {
    "dropped": lambda tensors, key: {name: tensor for name, tensor in tensors.items() if name != key},
    "renamed": lambda tensors, key: {f"{name}x" if name == key else name: tensor for name, tensor in tensors.items()},
    "added": lambda tensors, _: {**tensors, ADDED: torch.ones(2, 2)},
    "NaN": replace(set_first(float("nan"))),
    "infinite": replace(set_first(float("inf"))),
    "huge": replace(set_first(1e30)),
    "zero": replace(torch.zeros_like),
    "integers": replace(lambda tensor: tensor.to(torch.int32)),
    "double": replace(lambda tensor: tensor.double()),
    "brain": replace(lambda tensor: tensor.bfloat16()),
    "longer": replace(enlarge),
    "transposed": replace(lambda tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor[None]),
    "in another order": lambda tensors, _: dict(reversed(tensors.items())),
}
CLOSE = 1e-2  # of the largest value: bfloat16 has three digits


def outcome(kind, path, target):
    """Return what a file gives and the warnings, or the refusal."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = kind.result(path, target)
        except VelaturaError as error:
            return None, [str(error)]
    return result, [str(warning.message) for warning in caught if issubclass(warning.category, VelaturaWarning)]


def is_same(first, second):
    if first.keys() != second.keys():
        return False
    return all(
        first[key].shape == second[key].shape
        and (first[key] - second[key]).abs().max() <= CLOSE * first[key].abs().max()
        for key in first
    )


def mutated_keys(tensors):
    """Choose the last tensor of every name behind the layer."""
    return {".".join(key.split(".")[1:]) or key: key for key in tensors}.values()


def is_undetectable(name, mutation, tensor):
    """Return True if a change gives a valid file.

    One more vector, a square matrix turned, an untrained bias, the moments of a parameter without gradients, or one
    number in a list.
    """
    if name.startswith("optimizer"):
        return mutation == "zero" or (mutation == "transposed" and tensor.ndim == 0)
    is_bias = "hypernetwork" in name and mutation == "zero" and tensor.ndim == 1
    is_square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
    return (
        is_bias or (name.startswith("embedding") and mutation == "longer") or (mutation == "transposed" and is_square)
    )


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", FILES)
def test_no_change_of_a_file_gives_another_result_in_silence(tmp_path, target, name, mutation):
    kind = FILES[name]
    state = kind.state(target)
    path = tmp_path / f"x.{kind.ending}"
    kind.write(path, state)
    expected, usual = outcome(kind, path, target)
    assert expected is not None, usual
    silent = []
    for key in mutated_keys(state):
        if is_undetectable(name, mutation, state[key]):
            continue
        kind.write(path, MUTATIONS[mutation](state, key))
        result, messages = outcome(kind, path, target)
        is_told = result is None or set(messages) - set(usual)
        if not is_told and not is_same(expected, result):
            silent.append(key)
        assert all("\n" not in message for message in messages)
    assert not silent


CUTS = {
    "to half": lambda content: content[: len(content) // 2],
    "by one byte": lambda content: content[:-1],
    "to its first bytes": lambda content: content[:9],
    "to nothing": lambda content: content[:0],
}


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_refused(tmp_path, target, name, cut):
    kind = FILES[name]
    path = tmp_path / f"x.{kind.ending}"
    kind.write(path, kind.state(target))
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    file.write_bytes(CUTS[cut](file.read_bytes()))
    result, messages = outcome(kind, path, target)
    assert result is None
    assert file.name in messages[0] or path.name in messages[0]
