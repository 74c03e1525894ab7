import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadOverlay
from velatura.overlays.composition import Blend, Composition, Leaf, Series


@pytest.fixture
def members(hyper):
    """Three hypernetworks that show; the last knows the cross-attention width only."""
    made = {"a": hyper(activation="relu"), "b": hyper(seed=2), "c": hyper(seed=3, widths=[96], activation="tanh")}
    for seed, overlay in enumerate(made.values()):
        for weight in overlay.parameters():
            nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(seed))
    return made


TREE = Series((Leaf("a", 0.5), Blend((Leaf("b", 0.8), Series((Leaf("c"), Leaf("a", 0.2)))), (1, 3))))


def by_hand(members, context, part):
    first = members["a"].transform(context, 0.5)[part]
    one = members["b"].transform(first, 0.8)[part]
    other = members["a"].transform(members["c"].transform(first, 1.0)[part], 0.2)[part]
    return one / 4 + 3 * other / 4


@pytest.mark.parametrize("width", [64, 96])
def test_a_tree_is_what_its_words_say(members, width):
    mixed, context = Composition(TREE, members), torch.randn(2, 7, width)
    for part, made in enumerate(mixed.transform(context)):
        torch.testing.assert_close(made, by_hand(members, context, part), rtol=1e-5, atol=1e-5)
    for part, made in enumerate(mixed.transform(context, 0.3)):
        expected = context + 0.3 * (by_hand(members, context, part) - context)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed.transform(context, 0.0)[0], context)


def test_attached_it_is_the_same_fast_and_plain_and_leaves_no_trace(tiny, members):
    latents, context = torch.randn(2, 4, 16, 16), tiny.text.encode(["a cat", ""]).detach()

    def predict(*, plain=False):
        with torch.set_grad_enabled(plain):
            return tiny.predict(latents, torch.tensor(500), context).detach()

    off = predict()
    with velatura.attach(tiny, Composition(TREE, members, "mixed"), 0.7) as attachment:
        prediction = predict()
        torch.testing.assert_close(prediction, predict(plain=True), rtol=1e-5, atol=1e-5)
        assert torch.equal(predict(), prediction)
        assert attachment.effect.evaluations == 4
        attachment.strength = 0
        assert torch.equal(predict(), off)
    assert not torch.equal(prediction, off)
    assert torch.equal(predict(), off)


def test_it_describes_itself(members):
    card = Composition(TREE, members, "mixed").card
    assert str(card) == "hypernet (a 0.5, {25% b 0.8, 75% (c 1, a 0.2)}) · tiny"


@pytest.mark.parametrize("weights", [(), (1.0,), (0.0, 0.0), (-1.0, 2.0)])
def test_weights_that_blend_nothing_are_refused(weights):
    with pytest.raises(BadOverlay, match="blend nothing"):
        Blend((Leaf("a"), Leaf("b")), weights)
