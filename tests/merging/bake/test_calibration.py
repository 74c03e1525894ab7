import pytest
import torch

from tests.merging.predictions import CALIBRATION_PROMPTS
from velatura.errors import BadRecipe
from velatura.merging.bake.bake import bake
from velatura.merging.bake.calibration import SPLITS, TEXT_ONLY_COUNT, calibrate, ddim_step
from velatura.merging.bake.hypernet_maps import hypernet_maps
from velatura.merging.bake.inputs import prepare_hypernetwork


def test_one_prompt_of_four_is_held_out(tiny, hyper):
    hypernetworks = prepare_hypernetwork(tiny, hyper(widths=(96, 192)), 0.5)
    calibration = calibrate(
        tiny, hypernetworks, hypernet_maps(tiny, hypernetworks), prompts=CALIBRATION_PROMPTS, steps=1
    )
    assert calibration.prompt_counts == {"fit": 2, "choose": 1, "held out": 1}
    assert len(calibration.held_out_steps) == 1
    assert calibration.held_out_steps[0].latents.shape == (2, 4, 16, 16)  # the negative prompt and the prompt


def test_a_text_is_recorded_once_however_many_layers_and_steps_read_it(tiny, hyper):
    hypernetworks = prepare_hypernetwork(tiny, hyper(widths=(96,)), 0.5)
    calibration = calibrate(
        tiny, hypernetworks, hypernet_maps(tiny, hypernetworks), prompts=CALIBRATION_PROMPTS, steps=2
    )
    counts = [calibration.moments["text 96", 0, split].count for split in dict.fromkeys(SPLITS)]
    assert counts == [(2 * 2 + TEXT_ONLY_COUNT) * 77, 2 * 77, 2 * 77]


def test_contexts_of_self_attention_are_kept_apart_by_layer(tiny, hyper):
    hypernetworks = prepare_hypernetwork(tiny, hyper(widths=(64, 96)), 0.5)
    calibration = calibrate(
        tiny, hypernetworks, {64: hypernet_maps(tiny, hypernetworks)[64]}, prompts=CALIBRATION_PROMPTS, steps=1
    )
    sources = {source for source, _, _ in calibration.moments}
    assert len(sources) == 3
    assert all(source.endswith("attn1") for source in sources)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    assert calibration.moments[name, 1, "held out"].count == 2 * 16 * 16


def test_nothing_stays_on_the_base(tiny, hyper):
    hypernetworks = prepare_hypernetwork(tiny, hyper(), 0.5)
    calibrate(tiny, hypernetworks, hypernet_maps(tiny, hypernetworks), prompts=CALIBRATION_PROMPTS, steps=1)
    assert not [layer for layer in tiny.unet.modules() if layer._forward_pre_hooks]


def test_too_few_prompts_are_refused(tiny, hyper):
    with pytest.raises(BadRecipe, match="fewer than 4"):
        bake(tiny, [(hyper(), 0.5)], prompts=CALIBRATION_PROMPTS[:3], steps=1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_ddim_step_stays_on_the_line_from_noise_to_image(kind):
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 4, 4)
    alpha, next_alpha = 0.3, 0.8

    def at(level: float) -> torch.Tensor:
        return level**0.5 * clean + (1 - level) ** 0.5 * noise

    predicted = noise if kind == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    assert torch.allclose(ddim_step(at(alpha), predicted, alpha, next_alpha, kind), at(next_alpha), atol=1e-5)
