"""What many tests stand on: the tiny base, and hypernetworks that do something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import velatura


@pytest.fixture(scope="session")
def tiny() -> velatura.Base:
    return velatura.tiny()


@pytest.fixture
def hyper(tiny: velatura.Base) -> Callable[..., velatura.Hypernetwork]:
    """Make hypernetworks for the tiny base with weights large enough to change what it says."""

    def make(**options: object) -> velatura.Hypernetwork:
        made = velatura.Hypernetwork.for_base(tiny, **{"seed": 1, "init": "xavier_normal", **options})
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(std=0.1, generator=generator)
        return made

    return make
