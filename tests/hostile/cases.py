"""A case of the second hostile corpus, and the valid files that its cases change.

Every case is a neighbour of one in tests/data/hostile: another key, precision, position or family. What must happen
follows the choices of that corpus: NaN, integers and contradictions of the structure are refused, unknown metadata and
odd numbers in them are warned of, and all else loads.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

PATH = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
KOHYA = f"{PATH}_attn1_to_q"
DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
UNKNOWN_LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_z"
REFUSE, WARN, LOAD = "refuse", "warn", "load"


@dataclass(frozen=True)
class Case:
    """A hostile input: what it is, and what must happen when it is opened.

    Attributes:
        name: Name of the case, and of its file.
        kind: Class of the corpus, such as "lora".
        must: "refuse", "warn" or "load".
        why: What is odd about it.
        write: Writes it into a folder, and returns the file; a text is the input itself.
        inspected: What inspecting says of a checkpoint where it differs: what it lacks may be beside it.
        is_slow: A neighbour of another case that takes longer; it runs with the slow tests.
    """

    name: str
    kind: str
    must: str
    why: str
    write: Callable[[Path], Path] | str | bytes
    inspected: str = ""
    is_slow: bool = False

    def __str__(self):
        return f"{self.kind}-{self.name}"


def ramp(*shape, dtype=torch.float32):
    """Return small values that differ, as trained weights have."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) % 7 - 3.5) / 100).reshape(shape).to(dtype)


def safetensors_file(name, tensors, metadata=None):
    def write(folder):
        save_file(tensors, folder / f"{name}.safetensors", metadata)
        return folder / f"{name}.safetensors"

    return write


def torch_file(name, payload, suffix=".pt", **options):
    def write(folder):
        torch.save(payload, folder / f"{name}{suffix}", **options)
        return folder / f"{name}{suffix}"

    return write


def bytes_file(name, data, suffix):
    def write(folder):
        (folder / f"{name}{suffix}").write_bytes(data)
        return folder / f"{name}{suffix}"

    return write


def raw_safetensors(header, body=b""):
    """Return the bytes of a safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def lora(layer=KOHYA, *, rank=2, width=32, dtype=torch.float32, alpha=1.0):
    """Return the tensors of one layer under kohya's names."""
    tensors = {
        f"{layer}.lora_down.weight": ramp(rank, width, dtype=dtype),
        f"{layer}.lora_up.weight": ramp(32, rank, dtype=dtype),
    }
    return tensors if alpha is None else {**tensors, f"{layer}.alpha": torch.tensor(alpha, dtype=dtype)}


def loha(layer=KOHYA):
    tensors = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
    return {f"{layer}.{key}": ramp(*shape) for key, shape in tensors.items()} | {f"{layer}.alpha": torch.tensor(1.0)}


def lokr(layer=KOHYA):
    return {
        f"{layer}.lokr_w1": ramp(4, 4),
        f"{layer}.lokr_w2": ramp(8, 8),
        f"{layer}.alpha": torch.tensor(1.0),
    }


def network(width=320, hidden=4, dtype=torch.float32):
    """Return the state dict of one network of a hypernetwork of the structure 1, hidden / width, 1."""
    return {
        "linear.0.weight": ramp(hidden, width, dtype=dtype),
        "linear.0.bias": ramp(hidden, dtype=dtype),
        "linear.1.weight": ramp(width, hidden, dtype=dtype),
        "linear.1.bias": ramp(width, dtype=dtype),
    }


FIELDS = {
    "step": 100,
    "name": "inca",
    "layer_structure": [1, 0.0125, 1],
    "activation_func": "linear",
    "is_layer_norm": False,
    "weight_initialization": "Normal",
    "sd_checkpoint": "cc6cb27103",
    "sd_checkpoint_name": "v1-5",
    "activate_output": False,
    "use_dropout": False,
    "last_layer_dropout": False,
}


def hypernetwork(changes=None, fields=None, width=320):
    """Return a payload of A1111; changes are of the tensors of its first network, or values that replace it."""
    first = network(width) | (changes or {})
    first = {key: tensor for key, tensor in first.items() if tensor is not None}
    return {width: (first, network(width)), **FIELDS, **(fields or {})}


def embedding(vectors=None, fields=None):
    """Return a payload of A1111's embeddings."""
    vectors = ramp(2, 768) if vectors is None else vectors
    plain = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "inca",
        "step": 100,
        "sd_checkpoint": "cc6cb27103",
        "sd_checkpoint_name": "v1-5",
    }
    return plain | (fields or {})
