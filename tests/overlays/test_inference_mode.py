"""Under torch.inference_mode an overlay does what it does without, also where it is entered or left meanwhile."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn

import velatura

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
MODES = {"inference": torch.inference_mode, "plain": nullcontext}
# every pair of unlike neighbours is in the quick ones
MIXES = [
    mix if mix.count("inference") in {1, 3} else pytest.param(mix, marks=pytest.mark.slow)
    for mix in product(MODES, repeat=3)
]


@pytest.fixture(params=["linear", "relu", "lora", "loha"])
def overlay(request, hyper, lora):
    if request.param in {"lora", "loha"}:
        return lora(algorithm=request.param)
    made = hyper(activation=request.param)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture
def predict(tiny):
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 96, generator=generator)

    def say():
        return tiny.predict(latents, torch.tensor(500), context).detach()

    return say


@pytest.fixture
def expected(tiny, overlay, predict):
    """Predictions at a few strengths, computed plainly, that is with gradients."""
    strengths = [0.7, -0.2, torch.tensor([0.3, 1.0])]
    found = []
    for strength in strengths:
        with velatura.attach(tiny, overlay, strength):
            found.append((strength, predict()))
    return found


@pytest.mark.parametrize("modes", MIXES, ids=", ".join)
def test_every_mix_of_modes_says_the_same(tiny, overlay, predict, expected, modes):
    attaching, setting, running = modes
    with torch.no_grad():
        off = predict()
        with MODES[attaching]():
            attachment = velatura.attach(tiny, overlay, 0.1)
        for strength, prediction in expected:
            with MODES[setting]():
                attachment.strength = strength
            with MODES[running]():
                torch.testing.assert_close(predict().clone(), prediction, **TOLERANCE)
        with MODES[setting]():
            attachment.strength = 0
        assert torch.equal(predict(), off)
        with MODES[running]():
            attachment.detach()
        assert torch.equal(predict(), off)


def test_what_was_remembered_in_inference_mode_serves_outside(tiny, overlay, predict, expected):
    [(strength, prediction), *_] = expected
    with velatura.attach(tiny, overlay, strength):
        with torch.inference_mode():
            predict()
        with torch.no_grad():
            torch.testing.assert_close(predict(), prediction, **TOLERANCE)
        torch.testing.assert_close(predict(), prediction, **TOLERANCE)


def test_a_strength_made_in_inference_mode_is_taken(tiny, overlay, predict, expected):
    [*_, (strengths, prediction)] = expected
    with torch.inference_mode():
        made = strengths.clone()
    with velatura.attach(tiny, overlay, 0.4) as attachment:
        attachment.strength = made
        torch.testing.assert_close(predict(), prediction, **TOLERANCE)


def test_one_made_and_attached_in_inference_mode_can_be_trained_afterwards(tiny):
    with torch.inference_mode():
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=0)
        velatura.attach(tiny, overlay).detach()
    optimizer = torch.optim.SGD(overlay.train().parameters(), 0.1)
    k, v = overlay.transform(torch.randn(1, 7, 96))
    (k + v).square().mean().backward()
    optimizer.step()
    assert not any(weight.is_inference() for weight in overlay.parameters())
