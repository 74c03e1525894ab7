"""Laws 1, 2 and 9: an overlay never changes the base, strength 0 is off, and nothing is a silent no-op."""

from itertools import permutations

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import NoEffect
from velatura.overlays import KINDS

CONTEXT_SEED, BATCH = 3, 2


@pytest.fixture
def make(hyper, lora, embedding, aesthetic, difference):
    """Make an overlay of a kind that does something to the tiny base."""
    makers = {"hypernet": hyper, "lora": lora, "embedding": embedding, "aesthetic": aesthetic}
    makers["difference"] = difference
    assert set(makers) == set(KINDS), "a new kind needs a maker here"
    return lambda kind, **options: makers[kind](**options)


@pytest.fixture
def says(tiny):
    """What the tiny base says of a fixed batch."""
    generator = torch.Generator().manual_seed(CONTEXT_SEED)
    latents = torch.randn(BATCH, 4, 16, 16, generator=generator)

    @torch.no_grad()
    def say(batch: slice = slice(None)):
        context = tiny.text.encode(["a red house", "a boat at night"][:BATCH][batch])  # as overlays have it now
        return tiny.predict(latents[batch], torch.tensor(500), context)

    return say


def snapshot(base):
    parts = {"unet": base.unet, "vae": base.vae, "text": base.text.model}
    return {f"{name}.{key}": each.clone() for name, part in parts.items() for key, each in part.state_dict().items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def hook_counts(base):
    modules = [*base.unet.modules(), *base.text.model.modules()]
    return [len(each._forward_pre_hooks) + len(each._forward_hooks) for each in modules]


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_leaves_the_base_bit_identical(tiny, kind, make, says):
    tensors, before, hooks = snapshot(tiny), says(), hook_counts(tiny)
    with velatura.attach(tiny, make(kind)):
        assert not torch.equal(says(), before)
    assert torch.equal(says(), before)
    assert same(snapshot(tiny), tensors)
    assert hook_counts(tiny) == hooks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_overlays_come_off_in_any_order(tiny, kind, make, says, order):
    before = says()
    overlay = make(kind)
    laid = [velatura.attach(tiny, each, 0.5) for each in (overlay, make(kind, seed=5), overlay)]
    for index in order:
        assert not torch.equal(says(), before)
        laid[index].detach()
    assert torch.equal(says(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_takes_the_overlay_off(tiny, kind, make, says):
    before = says()
    with pytest.raises(KeyboardInterrupt), velatura.attach(tiny, make(kind)):
        raise KeyboardInterrupt
    assert torch.equal(says(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_while_attaching_leaves_nothing_behind(tiny, kind, make, says, monkeypatch):
    before, hooks = says(), hook_counts(tiny)
    overlay, touched = make(kind), type(make(kind)).install_hooks

    def breaks_off(self, target, strength):
        yield next(touched(self, target, strength))
        raise RuntimeError

    monkeypatch.setattr(type(overlay), "install_hooks", breaks_off)
    with pytest.raises(RuntimeError):
        velatura.attach(tiny, overlay)
    assert hook_counts(tiny) == hooks
    assert torch.equal(says(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_twice_does_nothing_more(tiny, kind, make, says):
    with velatura.attach(tiny, make(kind)):
        attached = says()
        once = velatura.attach(tiny, make(kind, seed=5))
        once.detach()
        once.detach()
        assert torch.equal(says(), attached)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0.0, -0.0, torch.zeros(()), torch.zeros(BATCH)], ids=str)
def test_strength_zero_is_bit_identical_to_off(tiny, kind, make, says, zero):
    before = says()
    with velatura.attach(tiny, make(kind), zero):
        assert torch.equal(says(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_of_a_batch_may_have_its_own_strength(tiny, kind, make, says):
    before = says()
    with velatura.attach(tiny, make(kind), torch.tensor([0.0, 0.7])) as laid:
        mixed = says()
        laid.strength = 0.7
        alike = says()
    assert torch.equal(mixed[0], before[0])
    torch.testing.assert_close(mixed[1], alike[1])
    assert not torch.equal(mixed[1], before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_overlays_that_only_make_nan_are_off_at_zero(tiny, kind, make, says):
    before, overlay = says(), make(kind)
    for weight in overlay.parameters():
        nn.init.constant_(weight, torch.nan)
    with velatura.attach(tiny, overlay, torch.tensor([0.0, 1.0])) as laid:
        said = says()
        assert torch.equal(said[0], before[0])
        assert said[1].isnan().all()
        laid.strength = 0
        assert torch.equal(says(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_counts_from_the_next_step(tiny, kind, make, says):
    overlay = make(kind)
    with velatura.attach(tiny, overlay, 0.3):
        weak = says()
    with velatura.attach(tiny, overlay, 1.0) as laid:
        assert not torch.equal(says(), weak)
        laid.strength = 0.3
        assert torch.equal(says(), weak)
        assert float(laid.strength) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_the_state_dict_never_change(tiny, kind, make):
    keys = snapshot(tiny).keys()
    with velatura.attach(tiny, make(kind)), velatura.attach(tiny, make(kind, seed=5)):
        assert snapshot(tiny).keys() == keys


@pytest.mark.parametrize("kind", KINDS)
def test_training_an_overlay_leaves_no_gradients_in_the_base(tiny, kind, make):
    overlay = make(kind).train()
    if not any(weight.requires_grad for weight in overlay.parameters()):
        pytest.skip("learns nothing by gradients")
    latents = torch.randn(1, 4, 16, 16)
    with velatura.attach(tiny, overlay):
        tiny.predict(latents, torch.tensor([10]), tiny.text.encode(["a tree"])).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in overlay.parameters())
    assert all(weight.grad is None for weight in tiny.unet.parameters())


def test_an_overlay_that_touches_nothing_is_an_error(tiny):
    class Idle(velatura.Overlay):
        kind = "idle"
        card = velatura.Card(kind="idle")

        def install_hooks(self, _target, _strength):
            return iter(())

    with pytest.raises(NoEffect, match="changes nothing in tiny"):
        velatura.attach(tiny, Idle())
