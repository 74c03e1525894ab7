"""The activations that a hypernetwork may have, by the names that A1111's files hold."""

import pytest
import torch
from torch import nn

from velatura.errors import BadOverlay, UnknownName
from velatura.overlays.structure import ACTIVATIONS, HypernetworkStructure

# A1111 1.8 offers the lower-cased names of all classes in torch.nn.modules.activation, of which these can be built.
NAMES = {
    *("linear", "relu", "leakyrelu", "elu", "swish", "hardswish", "tanh", "sigmoid", "silu", "mish", "gelu", "selu"),
    *("celu", "softplus", "hardtanh", "hardsigmoid", "relu6", "logsigmoid", "softsign", "tanhshrink", "softshrink"),
    *("hardshrink", "rrelu", "prelu", "softmax", "softmin", "logsoftmax", "softmax2d"),
}

# by the formulas in torch's documentation, at -2, -0.25 and 1.5
VALUES = {
    "leakyrelu": [-0.02, -0.0025, 1.5],
    "elu": [-0.8646647, -0.2211992, 1.5],
    "hardsigmoid": [0.1666667, 0.4583333, 0.75],
    "softsign": [-0.6666667, -0.2, 0.6],
    "tanhshrink": [-1.0359724, -0.0050813, 0.5948517],
    "softshrink": [-1.5, 0.0, 1.0],
    "hardshrink": [-2.0, 0.0, 1.5],
    "rrelu": [-2 * 11 / 48, -0.25 * 11 / 48, 1.5],
    "prelu": [-0.5, -0.0625, 1.5],
    "gelu": [-0.0455003, -0.1003234, 1.3997892],
}


def test_all_of_a1111s_activations_are_known_and_no_others():
    assert ACTIVATIONS.keys() == NAMES


@pytest.mark.parametrize("name", VALUES)
def test_activations_are_torchs_with_the_defaults(name):
    made = ACTIVATIONS[name]().eval()(torch.tensor([-2.0, -0.25, 1.5]))
    torch.testing.assert_close(made, torch.tensor(VALUES[name]), rtol=1e-5, atol=1e-6)


def test_swish_is_hardswish():
    assert type(ACTIVATIONS["swish"]()) is type(ACTIVATIONS["hardswish"]()) is nn.Hardswish


@pytest.mark.parametrize("name", ["softmax", "softmin", "logsoftmax", "softmax2d"])
def test_the_softmax_family_runs_along_the_batch(name):
    made = ACTIVATIONS[name]()(torch.randn(3, 5, 8))
    shares = made.exp() if name == "logsoftmax" else made
    torch.testing.assert_close(shares.sum(0), torch.ones(5, 8))


@pytest.mark.parametrize("name", ["threshold", "multiheadattention", "glu", "module", "swissh"])
def test_what_builds_no_activation_is_refused(name):
    with pytest.raises((UnknownName, BadOverlay), match="activation"):
        HypernetworkStructure.from_fields({"widths": (8,), "activation": name})
