"""Law 1 by chance: whatever is attached, set and detached in whatever order, the base comes out bit-identical."""

from random import Random

import pytest
import torch
from torch import nn

import velatura
from velatura.overlays import KINDS
from velatura.overlays.composition import Blend, Composition, Leaf, Series

BLOCKS = ("in", "mid", "out")


@pytest.fixture
def overlays(hyper, lora, embedding, difference, aesthetic):
    """Overlays of all kinds and sorts: that fold, that do not, of fewer widths, and put together."""
    made = [hyper(), hyper(activation="relu"), hyper(seed=5, widths=(96,), activation="tanh"), hyper(layers=(1, 1))]
    for seed, overlay in enumerate(made):
        for weight in overlay.parameters():
            nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    tree = Blend((Leaf("a"), Series((Leaf("b", 0.4), Leaf("a", -0.5)))), (1, 2))
    changes = [lora(), lora(algorithm="dora", targets="conv"), lora(algorithm="oft"), difference()]
    of_all = [*made, Composition(tree, {"a": made[0], "b": made[1]}), *changes, embedding(), aesthetic()]
    assert {overlay.kind for overlay in of_all} == set(KINDS)
    return of_all


@torch.no_grad()
def says(base):
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), base.text.encode(["a red house", "a boat"])
    return base.predict(latents, torch.tensor(500), context)


def state(base):
    """All that a base is: tensors, the attributes of every part, the hooks that hang there."""
    models = {"unet": base.unet, "text": base.text.model}
    tensors = {
        f"{part}.{name}": tensor.clone() for part in models for name, tensor in models[part].state_dict().items()
    }
    parts = {
        f"{part}.{name}": (sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for part in models
        for name, module in models[part].named_modules()
    }
    return tensors, parts


def check(base, before, prediction):
    tensors, parts = state(base)
    assert parts == before[1]
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())
    assert torch.equal(says(base), prediction)


def strength(chance):
    strengths = torch.tensor([chance.uniform(0.1, 1), chance.uniform(-1, -0.1)])
    return chance.choice([0.0, 1.0, chance.uniform(-1.5, 1.5), strengths])


def attached(base, overlays, chance):
    on = chance.choice(["both", "both", "prompt", "negative"])
    overlay = chance.choice(overlays)
    blocks = chance.choice([BLOCKS, BLOCKS, ("mid",), ("in", "out")]) if "unet" in overlay.target_parts else BLOCKS
    return velatura.attach(base, overlay, strength(chance), on=on, blocks=blocks)


def operate(base, overlays, chance, operations):
    """Do so many operations, a few of them steps of the base, and look at the base whenever nothing lies on it."""
    before, prediction, attachments = state(base), says(base), []
    for _ in range(operations):
        doing = chance.random()
        if not attachments or (doing < 0.35 and len(attachments) < 8):
            attachments.append(attached(base, overlays, chance))
        elif doing < 0.55:
            chance.choice(attachments).strength = strength(chance)
        elif doing < 0.9:
            attachments.pop(chance.randrange(len(attachments))).detach()
        else:
            says(base)
        if not attachments:
            check(base, before, prediction)
    while attachments:
        attachments.pop(chance.randrange(len(attachments))).detach()
    check(base, before, prediction)


def test_a_hundred_operations_leave_no_trace(tiny, overlays):
    operate(tiny, overlays, Random(0), 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_thousand_operations_leave_no_trace(tiny, overlays, seed):
    operate(tiny, overlays, Random(seed), 1000)
