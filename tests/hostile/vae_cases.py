"""Hostile autoencoders in a file of their own, as users put them beside checkpoints."""

import torch

from tests.hostile.cases import LOAD, REFUSE, WARN, Case, safetensors_file
from tests.hostile.checkpoint_cases import VAE, checkpoint, first_set_to, rows, with_tensor, without

BIAS, CONV = "quant_conv.bias", "decoder.conv_out.weight"
VAES = [
    ("ok", LOAD, "an autoencoder of the least width", dict, {}),
    ("channels_16", LOAD, "16 latent channels", with_tensor("decoder.conv_in.weight", torch.ones(8, 16, 3, 3)), {}),
    ("nan", REFUSE, "NaN in a bias", with_tensor(BIAS, first_set_to(float("nan"))), {}),
    ("inf", REFUSE, "inf in a convolution", with_tensor(CONV, first_set_to(float("inf"))), {}),
    ("int", REFUSE, "int32 for a bias", with_tensor(BIAS, lambda tensor: tensor.int()), {}),
    ("complex", REFUSE, "complex numbers for a bias", with_tensor(BIAS, lambda tensor: tensor + 0j), {}),
    ("last_missing", REFUSE, "no last convolution", without("decoder.conv_out."), {}),
    ("first_missing", REFUSE, "no first convolution", without("encoder.conv_in."), {}),
    ("short", REFUSE, "a bias of 7 values", with_tensor(BIAS, rows(7)), {}),
    ("zero", WARN, "all zeros", lambda state: {key: torch.zeros_like(tensor) for key, tensor in state.items()}, {}),
    ("zero_weight", WARN, "a convolution of zeros", with_tensor(CONV, torch.zeros_like), {}),
    ("denormal", WARN, "denormal numbers only", with_tensor(CONV, lambda tensor: torch.full_like(tensor, 1e-41)), {}),
    ("large", WARN, "1e30", with_tensor(CONV, first_set_to(1e30)), {}),
    ("unknown_tensor", REFUSE, "a tensor of no part", with_tensor("foo", torch.ones(3)), {}),
    ("date", WARN, "a date that is none", dict, {"modelspec.date": "yesterday"}),
    ("title_escape", WARN, "terminal codes in the title", dict, {"modelspec.title": "a\x1b[31m"}),
]


def vae_file(name, change, metadata):
    """Return a writer of an autoencoder, which is made when the first of them is written."""

    def write(folder):
        state = {key.removeprefix(VAE): tensor for key, tensor in checkpoint("sd1")[0].items() if key.startswith(VAE)}
        tensors = {key: tensor.contiguous() for key, tensor in change(state).items()}
        return safetensors_file(name, tensors, metadata or None)(folder)

    return write


CASES = [
    Case(f"vae_{name}", "checkpoint", must, why, vae_file(f"vae_{name}", change, metadata))
    for name, must, why, change, metadata in VAES
]
