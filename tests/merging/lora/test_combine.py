import pytest
import torch

import velatura
from tests.merging.predictions import predict_with, random_lora, relative_difference
from velatura.errors import BadOverlay, NoEffect, VelaturaWarning, WrongBase
from velatura.merging.lora.combine import combine
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target


def test_ranks_side_by_side_are_the_sum_exactly(tiny):
    overlays = [
        (random_lora(tiny, "lora"), 0.7),
        (random_lora(tiny, "lora", 2, rank=6), velatura.Strength(text=-0.2, unet=0.4)),
    ]
    made, report = combine(overlays, name="both")
    assert {delta.rank for delta in made.layers.values()} == {10}
    assert (report.exact, report.missed, report.ranks, report.whole) == (True, 0, (10, 10), 0)
    assert report.loras == ("lora at 0.7", "lora at 0.4 (text -0.2)")
    assert relative_difference(predict_with(tiny, (made, 1.0)), predict_with(tiny, *overlays)) < 1e-5
    assert (made.card.name, made.card.family) == ("both", "tiny")
    assert "lora at 0.7, lora at 0.4 (text -0.2)" in made.card.note


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "full", "norm", "oft", "dora", "glora"])
def test_what_has_no_ranks_is_summed_whole(tiny, algorithm):
    overlays = [(random_lora(tiny, "lora"), 0.5), (random_lora(tiny, algorithm, 2), 0.8)]
    made, _ = combine(overlays, base=tiny)
    assert relative_difference(predict_with(tiny, (made, 1.0)), predict_with(tiny, *overlays)) < 1e-5


def test_changes_that_depend_on_the_base_ask_for_it(tiny):
    with pytest.raises(BadOverlay, match=r"the change that dora makes in .* depends on the base"):
        combine([(random_lora(tiny, "dora"), 1.0)])
    combine([(random_lora(tiny, "loha"), 1.0), (random_lora(tiny, "full"), 1.0)])


def test_a_rank_is_the_nearest_there_is(tiny):
    one, two = random_lora(tiny, "lora"), random_lora(tiny, "lora", 2)
    made, report = combine([(one, 1.0), (two, 1.0)], rank=3)
    squared_error = squared_change = 0.0
    names = kohya_names(Target.from_model(tiny))
    for kohya_name, delta in made.layers.items():
        weight = Target.from_model(tiny).layer(names[kohya_name]).weight
        whole = one.layers[kohya_name].weight_delta(weight) + two.layers[kohya_name].weight_delta(weight)
        whole = whole.flatten(1).detach().double()
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        wanted = (u[:, :3] * s[:3]) @ vh[:3]
        assert delta.rank == 3
        assert torch.allclose(delta.weight_delta(weight).flatten(1).double(), wanted, atol=1e-5)
        squared_error += (whole - wanted).square().sum().item()
        squared_change += whole.square().sum().item()
    assert not report.exact
    assert report.missed == pytest.approx((squared_error / squared_change) ** 0.5, rel=1e-3)


def test_one_alone_is_resized_to_a_rank_or_a_tolerance(tiny):
    overlay = random_lora(tiny, "lora", rank=8)
    same, report = combine([(overlay, 1.0)], rank=8)
    assert report.missed < 1e-5
    assert relative_difference(predict_with(tiny, (same, 1.0)), predict_with(tiny, (overlay, 1.0))) < 1e-5
    near, report = combine([(overlay, 1.0)], tolerance=0.3)
    assert 0 < report.missed <= 0.3001
    assert "of the change missed" in str(report)
    assert {delta.rank for delta in near.layers.values()} <= set(range(1, 9))
    for kohya_name, delta in near.layers.items():
        before = overlay.layers[kohya_name].weight_delta(torch.zeros(delta.weight_shape)).detach()
        assert relative_difference(delta.weight_delta(torch.zeros(delta.weight_shape)), before) <= 0.3001


def test_a_loha_is_squeezed_into_ranks(tiny):
    made, report = combine([(random_lora(tiny, "loha"), 1.0)], rank=2)
    assert 0 < report.missed < 1
    assert {delta.algorithm for delta in made.layers.values()} == {"lora"}
    assert {delta.rank for delta in made.layers.values()} == {2}


def test_strengths_of_blocks_count(tiny):
    overlay = random_lora(tiny, "lora").with_block_weights({"MID": 0.0, "BASE": 0.3})
    made, _ = combine([(overlay, 0.8)], base=tiny)
    assert not any("mid_block" in kohya_name for kohya_name in made.layers)
    assert relative_difference(predict_with(tiny, (made, 1.0)), predict_with(tiny, (overlay, 0.8))) < 1e-5
    with pytest.raises(BadOverlay, match="give the base"):
        combine([(overlay, 1.0)])


def test_mistakes_are_refused(tiny, xl, hyper):
    overlay = random_lora(tiny, "lora")
    with pytest.raises(BadOverlay, match="is not a LoRA"):
        combine([(hyper(), 1.0)])
    with pytest.raises(NoEffect):
        combine([(overlay, 0.0)])
    with pytest.raises(BadOverlay, match="rank 0"):
        combine([(overlay, 1.0)], rank=0)
    with pytest.raises(WrongBase, match="one family"):
        combine([(overlay, 1.0), (velatura.Lora.for_base(xl, rank=2), 1.0)])
    with pytest.raises(BadOverlay, match="tolerance"):
        combine([(overlay, 1.0)], tolerance=2.0)


def test_embeddings_come_along_with_their_loras(tiny, tmp_path):
    first, second = (random_lora(tiny, "lora", seed) for seed in (1, 2))
    first.bundled_embeddings = {"inked": {"emb_params": torch.ones(2, 96)}}
    second.bundled_embeddings = {
        "inked": {"emb_params": torch.ones(2, 96)},
        "washed": {"emb_params": torch.zeros(1, 96)},
    }
    made, _ = combine([(first, 0.5), (second, 0.0)], name="both")
    velatura.save(made, tmp_path / "both.safetensors")
    kept = velatura.open_overlay(tmp_path / "both.safetensors").bundled_embeddings
    assert {word: tuple(vectors["emb_params"].shape) for word, vectors in kept.items()} == {
        "inked": (2, 96),
        "washed": (1, 96),
    }
    second.bundled_embeddings["inked"] = {"emb_params": torch.zeros(2, 96)}
    with pytest.warns(VelaturaWarning, match="brings another embedding 'inked'"):
        made, _ = combine([(first, 0.5), (second, 0.5)])
    assert made.bundled_embeddings["inked"]["emb_params"].all()


def test_a_difference_that_changes_biases_gets_the_rank_that_is_asked_for(tiny, difference):
    whole = difference()
    narrow, _ = combine([(whole, 1.0)], rank=2)
    biased = [
        name for name, delta in whole.layers.items() if delta.tensor("diff_b") is not None and name in narrow.layers
    ]
    low = [narrow.layers[name] for name in biased if narrow.layers[name].rank is not None]
    assert low
    assert {delta.rank for delta in low} == {2}
    assert not [delta for delta in narrow.layers.values() if delta.algorithm == "full"]
    name = next(name for name in biased if narrow.layers[name].rank)
    assert torch.equal(narrow.layers[name].bias_delta(None), whole.layers[name].bias_delta(None))


def test_the_first_text_encoder_has_one_name_in_the_result():
    """diffusers leaves out the number of the first of two text encoders: both LoRAs change the same layer."""
    layer = "text_model_encoder_layers_0_self_attn_q_proj"

    def lora(*names):
        tensors = {}
        for name in names:
            tensors |= {f"{name}.lora_down.weight": torch.ones(1, 4), f"{name}.lora_up.weight": torch.ones(4, 1)}
        return velatura.Lora.from_tensors(tensors)

    first, both = lora(f"lora_te_{layer}"), lora(f"lora_te1_{layer}", f"lora_te2_{layer}")
    made, _ = combine([(first, 0.5), (both, 1.0)])
    assert made.layers.keys() == {f"lora_te1_{layer}", f"lora_te2_{layer}"}
    assert torch.allclose(made.layers[f"lora_te1_{layer}"].weight_delta(torch.zeros(4, 4)), torch.full((4, 4), 1.5))
    alone, _ = combine([(first, 1.0), (first, 1.0)])
    assert alone.layers.keys() == {f"lora_te_{layer}"}
