"""A step of which no copy is kept never makes anything of a weight but a number."""

import pytest
import torch

import velatura
from velatura.training.optimizers import (
    BOUNDED_OPTIMIZERS,
    LARGEST_SAFE_RATE,
    LARGEST_SAFE_VALUE,
    OPTIMIZERS,
    create_optimizer,
    is_finite_step,
)

PLAN = velatura.Plan(weight_decay=0.01)


def made(name, weights, rate=1e-3, decay=0.01):
    optimizer = create_optimizer(PLAN.replace(optimizer=name, weight_decay=decay), weights)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


@pytest.mark.parametrize("name", sorted(BOUNDED_OPTIMIZERS - {"adamw8bit"}))
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e-3, 1.0, 1e6, LARGEST_SAFE_VALUE])
def test_what_is_called_safe_stays_finite_at_the_worst_rate(name, size):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.full((64, 32), LARGEST_SAFE_VALUE).requires_grad_(), torch.zeros(7).requires_grad_()]
    optimizer = made(name, weights, LARGEST_SAFE_RATE / 2, decay=1.0)
    for each in weights:
        each.grad = size * (2 * torch.rand(each.shape, generator=generator) - 1)
    assert is_finite_step(name, optimizer, weights)
    optimizer.step()
    assert all(each.isfinite().all() for each in weights)


def test_a_divisor_that_8_bits_round_to_nothing_leads_to_a_number_too():
    """By the formula of AdamW (Loshchilov & Hutter 2019, algorithm 2) with its usual betas, in the first step."""
    mean, epsilon = 0.1 * LARGEST_SAFE_VALUE, 1e-8
    step = torch.tensor(LARGEST_SAFE_RATE) * (mean / (1 - 0.9)) / (0.0 + epsilon)
    assert (torch.tensor(LARGEST_SAFE_VALUE) - step).isfinite()


def test_a_gradient_out_of_bounds_is_not_safe():
    weights = [torch.ones(2).requires_grad_()]
    optimizer = made("adamw", weights)
    weights[0].grad = torch.tensor([0.0, 2 * LARGEST_SAFE_VALUE])
    assert not is_finite_step("adamw", optimizer, weights)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - BOUNDED_OPTIMIZERS))
def test_an_optimizer_that_finds_its_own_rate_is_never_called_safe(name):
    weights = [torch.ones(3).requires_grad_()]
    assert not is_finite_step(name, made(name, weights), weights)


@pytest.mark.parametrize(
    ("rate", "decay", "largest"),
    [(1e7, 0.01, 1.0), (1e-30, 1e37, 1.0), (float("nan"), 0.01, 1.0), (1e-3, 0.01, 1e19), (1e-3, 0.01, float("nan"))],
)
def test_a_rate_a_decay_or_a_weight_out_of_bounds_is_not_safe(rate, decay, largest):
    weights = [torch.tensor([0.5, largest]).requires_grad_()]
    assert not is_finite_step("adamw", made("adamw", weights, rate, decay), weights)
