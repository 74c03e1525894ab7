"""The effect of an overlay is measured on predictions, alike for every kind."""

import copy

import pytest
import torch

import velatura
from velatura.training.run.prompt_effect import PromptEffectMeter, measure_effect
from velatura.training.run.verdict import LOWER_STRENGTHS

KINDS = {
    "hypernet": "hyper",
    "lora": "lora",
    "embedding": "embedding",
    "difference": "difference",
    "aesthetic": "aesthetic",
}


@pytest.fixture(scope="module")
def deaf(tiny):
    """The difference to a base whose UNet reads nothing from a prompt: the values of its cross-attention are zeros."""
    unet = copy.deepcopy(tiny.unet)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                weight.zero_()
    parts = {"unet": unet, "vae": tiny.vae, "text": tiny.text, "schedule": tiny.schedule}
    return velatura.Difference.from_bases(tiny, velatura.Base("deaf", tiny.family, **parts))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_predictions_more_at_a_higher_strength_and_not_at_0(tiny, request, kind):
    overlay = request.getfixturevalue(KINDS[kind])()
    meter = PromptEffectMeter(tiny, overlay)
    changes = [meter.measure(strength).change for strength in (0.5, 1.0)]
    assert 0 < changes[0] < changes[1]
    # At 0 the name of an embedding is ordinary text, as it is beside an overlay that changes nothing
    name = overlay.card.name if kind == "embedding" else ""
    untrained = PromptEffectMeter(tiny, velatura.Lora.for_base(tiny, rank=2, name="none"), called_by=name)
    assert meter.measure(0.0).change == pytest.approx(untrained.measure(1.0).change, abs=1e-5)


def test_an_overlay_that_changes_nothing_leaves_the_whole_prompt(tiny):
    effect, milder = measure_effect(tiny, velatura.Lora.for_base(tiny, rank=2, name="none"))
    assert (effect.change, milder) == (0, None)
    assert effect.prompt_left == pytest.approx(1)


def test_a_base_that_reads_no_prompt_has_nothing_of_it_left(tiny, deaf):
    effect, milder = measure_effect(tiny, deaf)
    assert effect.prompt_left == pytest.approx(0, abs=1e-5)
    assert effect.change > 0.5  # half of the prompt's effect at least is what it takes away
    assert milder in LOWER_STRENGTHS
    more_is_left = [PromptEffectMeter(tiny, deaf).measure(strength).prompt_left for strength in (0.6, 0.2)]
    assert 0 < more_is_left[0] < more_is_left[1] < 1
