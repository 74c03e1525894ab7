"""What a LoRA is asked to be, where a part of it would mean nothing."""

import pytest

import velatura
from velatura.errors import BadOverlay


@pytest.mark.parametrize(
    "asked",
    [
        {"algorithm": "locon", "targets": "attention"},
        {"conv_rank": 4, "targets": "transformer"},
        {"conv_alpha": 1.0, "targets": "linear"},
    ],
)
def test_convolutions_that_would_not_change_are_not_spoken_of(tiny, asked):
    with pytest.raises(BadOverlay, match=r"larger than 1x1: give targets conv, or leave it out$"):
        velatura.Lora.for_base(tiny, rank=2, **asked)
    assert velatura.Lora.for_base(tiny, rank=2, **{**asked, "targets": "conv"}).layers


def test_layers_that_change_follow_the_family_where_nothing_is_said(tiny, xl):
    """On the tiny base all layers, as docs/subjects.md measured; elsewhere attention, as diffusers' scripts do."""
    assert velatura.Lora.for_base(tiny, rank=1).card.structure["targets"] == "conv"
    assert velatura.Lora.for_base(xl, rank=1).card.structure["targets"] == "transformer"
    assert velatura.Lora.for_base(tiny, rank=1, targets="context").card.structure["targets"] == "context"
