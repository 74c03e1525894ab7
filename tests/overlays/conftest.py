"""What tests of overlays share: a guided batch to say something of, and networks that show."""

import pytest
import torch
from torch import nn


@pytest.fixture
def predict(tiny):
    """Predict the noise of a guided batch: negative prompts first, then the prompts."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 16, 16, generator=generator).repeat(2, 1, 1, 1)
    context = tiny.text.encode(["", "", "a red house", "a boat at night"]).detach()

    def say(*, plain: bool = False):
        with torch.set_grad_enabled(plain):
            return tiny.predict(latents, torch.tensor(500), context).detach()

    return say


@pytest.fixture
def strong(hyper):
    """Make a hypernetwork that shows."""

    def make(seed=0, **options):
        overlay = hyper(seed=seed, **options)
        for weight in overlay.parameters():
            nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(seed))
        return overlay

    return make
