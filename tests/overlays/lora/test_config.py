"""What a LoRA is asked to be, where a part of it would mean nothing."""

import pytest

import velatura
from velatura.errors import BadOverlay


@pytest.mark.parametrize("asked", [{"algorithm": "locon"}, {"conv_rank": 4}, {"conv_alpha": 1.0, "targets": "linear"}])
def test_convolutions_that_would_not_change_are_not_spoken_of(tiny, asked):
    with pytest.raises(BadOverlay, match=r"larger than 1x1: give targets conv, or leave it out$"):
        velatura.Lora.for_base(tiny, rank=2, **asked)
    assert velatura.Lora.for_base(tiny, rank=2, **{**asked, "targets": "conv"}).layers
