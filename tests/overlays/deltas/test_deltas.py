"""Changes of weights, against what LyCORIS and kohya's trainer compute from the same tensors."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from velatura.errors import BadOverlay
from velatura.overlays.deltas import DELTAS, build_delta
from velatura.overlays.deltas.delta import layer_forward
from velatura.overlays.deltas.lokr import factor_dimension
from velatura.overlays.hooks.output_hooks import DeltaChange
from velatura.overlays.strength import LiveStrength

GOLDEN = Path(__file__).parents[2] / "data" / "trainers"
CASES = {case["id"]: case for case in json.loads((GOLDEN / "layers.json").read_text())}
TOLERANCE = 2e-4  # relative, as the index of the golden files says
STRENGTHS = (1, 0.5, -1)


@pytest.fixture(scope="module")
def golden():
    found = {}
    for key, tensor in load_file(GOLDEN / "layers.safetensors").items():
        case, _, name = key.partition("/")
        found.setdefault(case, {})[name] = tensor
    return found


def layer_of(case, tensors):
    weight, bias = tensors["base.weight"], tensors["base.bias"]
    if case["kind"] == "linear":
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    elif case["kind"] == "ln":
        layer = nn.LayerNorm(len(weight))
    else:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], **case["conv"])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(False)


def delta_in(tensors):
    return build_delta({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net.")})


def expected(case, tensors, strength):
    """What the peer makes; with magnitudes its rule gives no base at strength 0, so there the way lies in between."""
    if "dora_scale" not in case["keys"] or strength == 1:
        return tensors[f"y@{strength}"]
    base = layer_forward(layer_of(case, tensors), tensors["x"], tensors["base.weight"], tensors["base.bias"])
    return base + strength * (tensors["y@1"] - base)


def error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_golden_layers_make_the_same_output(golden, case, strength):
    tensors, known = golden[case], CASES[case]
    layer, delta, read = layer_of(known, tensors), delta_in(tensors), tensors["x"]
    made = layer(read)
    added = delta.output_delta(
        layer, read, made, torch.tensor(float(strength)), delta.prepare_operands(layer, read.dtype)
    )
    assert error(made + added, expected(known, tensors, strength)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_golden_layers_change_the_weight_by_as_much(golden, case, strength):
    tensors, known = golden[case], CASES[case]
    layer, delta = layer_of(known, tensors), delta_in(tensors)
    bias = delta.bias_delta(layer.bias, strength)
    weight = layer.weight + delta.weight_delta(layer.weight, strength)
    changed = layer_forward(layer, tensors["x"], weight, layer.bias if bias is None else layer.bias + bias)
    assert error(changed, expected(known, tensors, strength)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("case", [name for name in CASES if CASES[name]["algo"] not in {"full", "norm"}])
def test_golden_weights_come_out(golden, case):
    weight = golden[case]["base.weight"]
    assert error(weight + delta_in(golden[case]).weight_delta(weight), golden[case]["weight@1"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_batch_may_have_their_own_strengths(golden, case):
    tensors, known = golden[case], CASES[case]
    layer, delta, read = layer_of(known, tensors), delta_in(tensors), tensors["x"]
    made, ready = layer(read), delta.prepare_operands(layer, read.dtype)
    strengths = torch.tensor([0.5, -1.0]).view(2, *[1] * (made.ndim - 1))
    added = delta.output_delta(layer, read, made, strengths, ready)
    for row, strength in enumerate((0.5, -1.0)):
        alone = delta.output_delta(layer, read, made, torch.tensor(strength), ready)
        torch.testing.assert_close(added[row], alone[row])


LAYERS = {
    "linear": lambda: nn.Linear(12, 16),
    "square": lambda: nn.Linear(16, 16, bias=False),
    "conv": lambda: nn.Conv2d(8, 16, 3, padding=1, stride=2),
    "narrow conv": lambda: nn.Conv2d(8, 16, 1),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("algorithm", [name for name in DELTAS if name != "norm"])
def test_untrained_deltas_add_exactly_nothing_and_learn(algorithm, kind):
    torch.manual_seed(0)
    layer = LAYERS[kind]().requires_grad_(False)
    read = torch.randn(2, 8, 6, 6) if "conv" in kind else torch.randn(2, 3, layer.in_features)
    delta, made = DELTAS[algorithm].for_layer(layer, rank=4, alpha=2.0), layer(read)
    added = delta.output_delta(layer, read, made, torch.tensor(1.0), delta.prepare_operands(layer, read.dtype))
    assert not added.any()
    assert not delta.weight_delta(layer.weight).any()
    (made + added).relu().sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in delta.parameters())


@pytest.mark.parametrize("strength", [0.5, [0.5, -1.0]], ids=["one", "rows"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("algorithm", [name for name in DELTAS if name != "norm"])
def test_layers_in_half_precision_are_changed_alike(algorithm, kind, strength):
    torch.manual_seed(0)
    layer = LAYERS[kind]().requires_grad_(False)
    read = torch.randn(2, 8, 6, 6) if "conv" in kind else torch.randn(2, 3, layer.in_features)
    delta = DELTAS[algorithm].for_layer(layer, rank=4, alpha=2.0)
    with torch.no_grad():
        for weight in delta.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        change = DeltaChange(delta, LiveStrength(torch.tensor(strength)), 1.0, lambda _before, _after: None)
        own, narrow = deepcopy(layer).to(dtype), read.to(dtype)
        made = own(narrow)
        found[dtype] = change.add(own, narrow, made, made)
        assert found[dtype].dtype == dtype
        found[dtype].float().square().sum().backward()
    assert (
        error(found[torch.bfloat16].detach().float(), found[torch.float32].detach()) < 0.05
    )  # a bfloat16 has three digits
    assert all(weight.dtype == torch.float32 for weight in delta.parameters())


def test_untrained_norms_add_exactly_nothing():
    layer, read = nn.GroupNorm(2, 4), torch.randn(2, 4, 3, 3)
    delta = DELTAS["norm"].for_layer(layer, rank=0, alpha=0.0)
    assert not delta.output_delta(
        layer, read, layer(read), torch.tensor(1.0), delta.prepare_operands(layer, read.dtype)
    ).any()
    assert {name for name, _ in delta.named_parameters()} == {"w_norm", "b_norm"}


@pytest.mark.parametrize("case", CASES)
def test_deltas_know_which_weights_they_fit(golden, case):
    delta, weight = delta_in(golden[case]), golden[case]["base.weight"]
    assert delta.is_compatible(weight)
    assert not delta.is_compatible(torch.zeros(weight.shape[0] + 2, *[size + 2 for size in weight.shape[1:2]]))


@pytest.mark.parametrize("case", CASES)
def test_state_dicts_have_the_names_of_files(golden, case):
    delta = delta_in(golden[case])
    assert {name: list(tensor.shape) for name, tensor in delta.state_dict().items()} == CASES[case]["keys"]
    assert delta.algorithm


def test_first_ranks_keep_the_scale(golden):
    tensors = golden["lora_linear_a1r4"]
    delta = delta_in(tensors)
    up, down = tensors["net.lora_up.weight"], tensors["net.lora_down.weight"]
    torch.testing.assert_close(
        delta.truncate_rank(2).weight_delta(tensors["base.weight"]),
        up[:, :2] @ down[:2] * 0.25,  # alpha 1 over rank 4, whichever are taken
    )
    assert delta.truncate_rank(4) is delta


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_up.weight": (8, 2)}, "the tensors lora_up.weight belong to no known algorithm"),
        ({"lora_up.weight": (8, 3), "lora_down.weight": (2, 8)}, "do not fit each other"),
        ({"lora_up.weight": (8, 0), "lora_down.weight": (0, 8)}, "a tensor is empty"),
        ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "alpha": (8,)}, "alpha is not one number"),
        ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "dora_scale": (7, 1)}, "do not fit each other"),
        ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "hada_w1_a": (8, 2)}, "lora has no tensor hada_w1_a"),
        ({"hada_w1_a": (8, 2), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)}, "belong to no known algorithm"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)}, "factors lokr_w2_a and lokr_w2_b are missing"),
        ({"oft_blocks": (4, 4)}, "belong to no known algorithm"),
        ({"oft_blocks": (2, 4, 3)}, "do not fit each other"),
        (
            {"q_layer.weight": (2, 8), "p_layer.weight": (8, 2), "lambda_layer": (1, 3)},
            "tlora has tensors",
        ),
        ({"q_layer.weight": (2, 8, 3, 3), "p_layer.weight": (8, 2, 1, 1), "lambda_layer": (1, 2)}, "do not fit each"),
    ],
)
def test_broken_deltas_are_refused(tensors, message):
    with pytest.raises(BadOverlay, match=message):
        build_delta({name: torch.ones(shape) for name, shape in tensors.items()})


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [(320, -1, (16, 20)), (320, 4, (4, 80)), (640, 8, (8, 80)), (13, -1, (1, 13)), (20, 3, (2, 10))],
)
def test_sizes_factorise_as_lycoris_does(size, factor, expected):
    assert factor_dimension(size, factor) == expected
