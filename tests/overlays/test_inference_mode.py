"""Under torch.inference_mode an overlay does what it does without, also where it is entered or left meanwhile."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn

import velatura

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
MODES = {"inference": torch.inference_mode, "plain": nullcontext}


@pytest.fixture(params=["linear", "relu", "lora", "loha"])
def overlay(request, hyper, lora):
    if request.param in {"lora", "loha"}:
        return lora(algorithm=request.param)
    made = hyper(activation=request.param)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture
def says(tiny):
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 96, generator=generator)

    def say():
        return tiny.predict(latents, torch.tensor(500), context).detach()

    return say


@pytest.fixture
def expected(tiny, overlay, says):
    """What is said at a few strengths the plain way, that is with gradients."""
    strengths = [0.7, -0.2, torch.tensor([0.3, 1.0])]
    found = []
    for each in strengths:
        with velatura.attach(tiny, overlay, each):
            found.append((each, says()))
    return found


@pytest.mark.parametrize("modes", list(product(MODES, repeat=3)), ids=", ".join)
def test_every_mix_of_modes_says_the_same(tiny, overlay, says, expected, modes):
    attaching, setting, running = modes
    with torch.no_grad():
        off = says()
        with MODES[attaching]():
            laid = velatura.attach(tiny, overlay, 0.1)
        for strength, said in expected:
            with MODES[setting]():
                laid.strength = strength
            with MODES[running]():
                torch.testing.assert_close(says().clone(), said, **TOLERANCE)
        with MODES[setting]():
            laid.strength = 0
        assert torch.equal(says(), off)
        with MODES[running]():
            laid.detach()
        assert torch.equal(says(), off)


def test_what_was_remembered_in_inference_mode_serves_outside(tiny, overlay, says, expected):
    [(strength, said), *_] = expected
    with velatura.attach(tiny, overlay, strength):
        with torch.inference_mode():
            says()
        with torch.no_grad():
            torch.testing.assert_close(says(), said, **TOLERANCE)
        torch.testing.assert_close(says(), said, **TOLERANCE)


def test_a_strength_made_in_inference_mode_is_taken(tiny, overlay, says, expected):
    [*_, (strengths, said)] = expected
    with torch.inference_mode():
        made = strengths.clone()
    with velatura.attach(tiny, overlay, 0.4) as laid:
        laid.strength = made
        torch.testing.assert_close(says(), said, **TOLERANCE)


def test_one_made_and_attached_in_inference_mode_can_be_trained_afterwards(tiny):
    with torch.inference_mode():
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=0)
        velatura.attach(tiny, overlay).detach()
    optimizer = torch.optim.SGD(overlay.train().parameters(), 0.1)
    k, v = overlay.transform(torch.randn(1, 7, 96))
    (k + v).square().mean().backward()
    optimizer.step()
    assert not any(each.is_inference() for each in overlay.parameters())
