"""Weights that load and are probably wrong.

The limits are IEEE 754's: float16 ends at 65504, its smallest normal number is 2**-14; float32's are 3.4e38, 2**-126.
"""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import velatura
from velatura.errors import VelaturaWarning

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def write_lora(path, up, dtype=torch.float32):
    down = torch.full((2, 32), 0.1)
    tensors = {f"{LAYER}.alpha": torch.tensor(1.0), f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up}
    save_file({key: tensor.to(dtype).clone() for key, tensor in tensors.items()}, path)
    return path


def messages(path, open_file=velatura.open_overlay):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VelaturaWarning)
        open_file(path)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("value", "dtype", "problem"),
    [
        (65504.0, torch.float16, "up to 6.55e+04, the largest number of float16"),
        (3.4e38, torch.float32, "up to 3.4e+38, the largest number of float32"),
        (3.38e38, torch.bfloat16, "the largest number of bfloat16"),
        (2e4, torch.float32, "up to 2e+04 ("),
        (2.0**-130, torch.float32, "1 tensor of denormal numbers"),
        (2.0**-20, torch.float16, "1 tensor of denormal numbers"),
        (0.0, torch.float32, "a factor of every layer's change holds only zeros"),
    ],
)
def test_values_that_no_training_gives_are_warned_of_once(tmp_path, value, dtype, problem):
    [message] = messages(write_lora(tmp_path / "lora.safetensors", torch.full((32, 2), value), dtype))
    assert problem in message


@pytest.mark.parametrize(
    ("value", "dtype"), [(900.0, torch.float32), (2.0**-13, torch.float16), (2.0**-20, torch.float32)]
)
def test_values_that_training_may_give_are_not_warned_of(tmp_path, value, dtype):
    assert messages(write_lora(tmp_path / "lora.safetensors", torch.full((32, 2), value), dtype)) == []


def test_zeros_for_one_of_two_text_encoders_are_warned_of(tmp_path):
    save_file({"clip_l": torch.zeros(1, 768), "clip_g": torch.ones(1, 1280)}, tmp_path / "x.safetensors")
    assert messages(tmp_path / "x.safetensors") == [
        "x.safetensors holds only zeros for clip_l: that text encoder learned nothing"
    ]


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "tiny.safetensors"
    velatura.save(tiny, path)
    return path


@pytest.mark.parametrize(
    ("value", "problem"), [(65504.0, "holds weights of up to 6.55e+04"), (0.0, "only zeros for its AutoencoderKL")]
)
def test_a_base_with_odd_values_is_warned_of(checkpoint, tmp_path, value, problem):
    tensors = load_file(checkpoint)
    changed = {key: torch.full_like(tensor, value) for key, tensor in tensors.items() if "first_stage" in key}
    with velatura.tensors.open.open_for_reading(checkpoint) as file:
        length = int.from_bytes(file.read(8), "little")
        metadata = velatura.files.parse_json(file.read(length))["__metadata__"]
    save_file(tensors | changed, tmp_path / "odd.safetensors", metadata)
    [message] = messages(
        tmp_path / "odd.safetensors", lambda path: velatura.open_base(path, dtype="float32", device="cpu")
    )
    assert problem in message
