import pytest
import torch

import velatura
from velatura.errors import BadOverlay, NoEffect, VelaturaWarning, WrongBase
from velatura.merging.lora.combine import combine
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target


@torch.no_grad()
def prediction(base: velatura.Base) -> torch.Tensor:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    return base.predict(latents, torch.tensor(400), base.text.encode(["an owl on a branch"]))


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def trained(base: velatura.Base, algorithm: str, seed: int = 1, **options: object) -> velatura.Lora:
    chosen = {"rank": 4, "targets": "conv", "text": True, "seed": seed, "name": algorithm, **options}
    whole = velatura.Lora.for_base(base, algorithm=algorithm, **chosen)
    made = velatura.Lora(whole.card, dict(list(whole.layers.items())[::4]))  # enough of all kinds of layers
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return made


def together(base: velatura.Base, *laid) -> torch.Tensor:
    held = [velatura.attach(base, overlay, strength) for overlay, strength in laid]
    try:
        return prediction(base)
    finally:
        for each in held:
            each.detach()


def test_ranks_side_by_side_are_the_sum_exactly(tiny):
    laid = [(trained(tiny, "lora"), 0.7), (trained(tiny, "lora", 2, rank=6), velatura.Strength(text=-0.2, unet=0.4))]
    made = combine(laid, name="both")
    assert {each.rank for each in made.layers.values()} == {10}
    assert off(together(tiny, (made, 1.0)), together(tiny, *laid)) < 1e-5
    assert (made.card.name, made.card.family) == ("both", "tiny")
    assert "lora at 0.7, lora at 0.4 (text -0.2)" in made.card.note


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "full", "norm", "oft", "dora", "glora"])
def test_what_has_no_ranks_is_summed_whole(tiny, algorithm):
    laid = [(trained(tiny, "lora"), 0.5), (trained(tiny, algorithm, 2), 0.8)]
    made = combine(laid, base=tiny)
    assert off(together(tiny, (made, 1.0)), together(tiny, *laid)) < 1e-5


def test_what_hangs_on_the_base_asks_for_it(tiny):
    with pytest.raises(BadOverlay, match=r"what dora does in .* hangs on the base"):
        combine([(trained(tiny, "dora"), 1.0)])
    combine([(trained(tiny, "loha"), 1.0), (trained(tiny, "full"), 1.0)])


def test_a_rank_is_the_nearest_there_is(tiny):
    one, two = trained(tiny, "lora"), trained(tiny, "lora", 2)
    made = combine([(one, 1.0), (two, 1.0)], rank=3)
    names = kohya_names(Target.from_model(tiny))
    for own, delta in made.layers.items():
        weight = Target.from_model(tiny).layer(names[own]).weight
        whole = (
            (one.layers[own].weight_delta(weight) + two.layers[own].weight_delta(weight)).flatten(1).detach().double()
        )
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        wanted = (u[:, :3] * s[:3]) @ vh[:3]
        assert delta.rank == 3
        assert torch.allclose(delta.weight_delta(weight).flatten(1).double(), wanted, atol=1e-5)


def test_one_alone_is_resized_to_a_rank_or_a_tolerance(tiny):
    overlay = trained(tiny, "lora", rank=8)
    same = combine([(overlay, 1.0)], rank=8)
    assert off(together(tiny, (same, 1.0)), together(tiny, (overlay, 1.0))) < 1e-5
    near = combine([(overlay, 1.0)], tolerance=0.3)
    assert {each.rank for each in near.layers.values()} <= set(range(1, 9))
    for own, delta in near.layers.items():
        before = overlay.layers[own].weight_delta(torch.zeros(delta.weight_shape)).detach()
        assert off(delta.weight_delta(torch.zeros(delta.weight_shape)), before) <= 0.3001


def test_a_loha_is_squeezed_into_ranks(tiny):
    made = combine([(trained(tiny, "loha"), 1.0)], rank=2)
    assert {each.algorithm for each in made.layers.values()} == {"lora"}
    assert {each.rank for each in made.layers.values()} == {2}


def test_strengths_of_blocks_count(tiny):
    overlay = trained(tiny, "lora").with_block_weights({"MID": 0.0, "BASE": 0.3})
    made = combine([(overlay, 0.8)], base=tiny)
    assert not any("mid_block" in each for each in made.layers)
    assert off(together(tiny, (made, 1.0)), together(tiny, (overlay, 0.8))) < 1e-5
    with pytest.raises(BadOverlay, match="give the base"):
        combine([(overlay, 1.0)])


def test_mistakes_are_refused(tiny, xl, hyper):
    overlay = trained(tiny, "lora")
    with pytest.raises(BadOverlay, match="no LoRA"):
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
    first, second = (trained(tiny, "lora", seed) for seed in (1, 2))
    first.bundled_embeddings = {"inked": {"emb_params": torch.ones(2, 96)}}
    second.bundled_embeddings = {
        "inked": {"emb_params": torch.ones(2, 96)},
        "washed": {"emb_params": torch.zeros(1, 96)},
    }
    made = combine([(first, 0.5), (second, 0.0)], name="both")
    velatura.save(made, tmp_path / "both.safetensors")
    kept = velatura.open_overlay(tmp_path / "both.safetensors").bundled_embeddings
    assert {word: tuple(vectors["emb_params"].shape) for word, vectors in kept.items()} == {
        "inked": (2, 96),
        "washed": (1, 96),
    }
    second.bundled_embeddings["inked"] = {"emb_params": torch.zeros(2, 96)}
    with pytest.warns(VelaturaWarning, match="brings another embedding 'inked'"):
        assert combine([(first, 0.5), (second, 0.5)]).bundled_embeddings["inked"]["emb_params"].all()


def test_a_difference_that_changes_biases_gets_the_rank_that_is_asked_for(tiny, difference):
    whole = difference()
    narrow = combine([(whole, 1.0)], rank=2)
    biased = [
        name for name, each in whole.layers.items() if each.tensor("diff_b") is not None and name in narrow.layers
    ]
    low = [narrow.layers[name] for name in biased if narrow.layers[name].rank is not None]
    assert low
    assert {each.rank for each in low} == {2}
    assert not [each for each in narrow.layers.values() if each.algorithm == "full"]
    name = next(each for each in biased if narrow.layers[each].rank)
    assert torch.equal(narrow.layers[name].bias_delta(None), whole.layers[name].bias_delta(None))
