"""Laws 1, 2 and 9: an overlay never changes the base, strength 0 is off, and nothing is a silent no-op."""

from itertools import permutations

import pytest
import torch
from PIL import Image
from torch import nn

import velatura
from velatura.errors import NoEffect
from velatura.overlays import KINDS

CONTEXT_SEED, BATCH = 3, 2
RECIPE = velatura.Recipe(prompt="a red house", negative="a boat", seed=1, steps=2, width=64, height=64)
PLAN = velatura.Plan(steps=2, batch_size=1, pixels=32, precision="float32", validation_pictures=0, rescues=0)


@pytest.fixture
def make(hyper, lora, embedding, aesthetic, difference):
    """Make an overlay of a kind that changes what the tiny base predicts."""
    makers = {"hypernet": hyper, "lora": lora, "embedding": embedding, "aesthetic": aesthetic}
    makers["difference"] = difference
    assert set(makers) == set(KINDS), "a new kind needs a maker here"
    return lambda kind, **options: makers[kind](**options)


@pytest.fixture
def predict(tiny):
    """Predict the noise of a fixed batch with the tiny base."""
    generator = torch.Generator().manual_seed(CONTEXT_SEED)
    latents = torch.randn(BATCH, 4, 16, 16, generator=generator)

    @torch.no_grad()
    def predict(batch: slice = slice(None)):
        context = tiny.text.encode(["a red house", "a boat at night"][:BATCH][batch])  # with the overlays of now
        return tiny.predict(latents[batch], torch.tensor(500), context)

    return predict


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for color in ("red", "green"):
        Image.new("RGB", (32, 32), color).save(folder / f"a {color} square.png")
    return folder


def parts_of(base):
    return {"unet": base.unet, "vae": base.vae, "text": base.text.model}


def snapshot(base):
    return {
        f"{part}.{key}": tensor.clone()
        for part, model in parts_of(base).items()
        for key, tensor in model.state_dict().items()
    }


def describe_tensor(tensor):
    """Everything but the values: the very object, the number of writes to it, its dtype, device and memory format."""
    writes = tensor._version
    return id(tensor), tensor.data_ptr(), writes, tensor.dtype, str(tensor.device), tensor.shape, tensor.stride()


def describe(base):
    """All that a base is besides the values of its weights, by name."""
    found = {}
    for part, model in parts_of(base).items():
        for name, module in model.named_modules():
            attributes = sorted(vars(module)), module.training, id(vars(module).get("forward"))
            found[f"{part}.{name}"] = attributes
            if isinstance(module, nn.Conv2d):
                found[f"{part}.{name} padding"] = module.padding_mode, module.padding
            if hasattr(module, "processor"):
                found[f"{part}.{name} processor"] = id(module.processor), type(module.processor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):  # buffers that are not in files too
            found[f"{part}.{name} tensor"] = describe_tensor(tensor), tensor.requires_grad, tensor.grad is None
    return found


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture
def unchanged(tiny, predict):
    """Check at the end of a test that the base is what it was at its beginning, in every respect."""
    weights, description, hooks, prediction = snapshot(tiny), describe(tiny), hook_counts(tiny), predict()
    yield
    assert describe(tiny) == description
    assert same(snapshot(tiny), weights)
    assert hook_counts(tiny) == hooks
    assert torch.equal(predict(), prediction)


def hook_counts(base):
    modules = [module for model in parts_of(base).values() for module in model.modules()]
    return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unchanged")
def test_detaching_leaves_the_base_bit_identical(tiny, kind, make, predict):
    before = predict()
    with velatura.attach(tiny, make(kind)):
        assert not torch.equal(predict(), before)


@torch.no_grad()
def test_the_description_notices_every_change():
    base = velatura.tiny()
    before = describe(base)
    convolution = base.unet.conv_in
    changes = [
        lambda: setattr(convolution, "padding_mode", "circular"),
        lambda: base.unet.set_attn_processor(type(next(iter(base.unet.attn_processors.values())))()),
        lambda: base.unet.to(memory_format=torch.contiguous_format),  # it opens in channels_last
        base.vae.half,
        lambda: base.text.model.requires_grad_(True),
        lambda: base.unet.conv_out.bias.add_(0),
    ]
    for change in changes:
        change()
        after = describe(base)
        assert after != before
        before = after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"tiling": True}, {"keep_layout": "a tree"}], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_generating_with_an_overlay_leaves_the_base_as_it_was(tiny, kind, make, changes):
    with velatura.attach(tiny, make(kind)):
        velatura.generate(tiny, RECIPE.replace(**changes))


@pytest.mark.parametrize("changes", [{"tiling": True}, {"keep_layout": "a tree"}], ids=str)
@pytest.mark.usefixtures("unchanged")
def test_a_generation_that_breaks_off_leaves_the_base_as_it_was(tiny, changes):
    def stop(*_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.generate(tiny, RECIPE.replace(**changes), on_step=stop)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "aesthetic"])  # which no gradient trains
@pytest.mark.usefixtures("unchanged")
def test_training_leaves_the_base_as_it_was(tiny, kind, make, photos, tmp_path):
    velatura.train(tiny, make(kind), photos, PLAN, out=tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "order",
    [
        order if order in {(0, 1, 2), (2, 1, 0), (1, 2, 0)} else pytest.param(order, marks=pytest.mark.slow)
        for order in permutations(range(3))
    ],
)
def test_overlays_come_off_in_any_order(tiny, kind, make, predict, order):
    before = predict()
    overlay = make(kind)
    attachments = [velatura.attach(tiny, item, 0.5) for item in (overlay, make(kind, seed=5), overlay)]
    for index in order:
        assert not torch.equal(predict(), before)
        attachments[index].detach()
    assert torch.equal(predict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_takes_the_overlay_off(tiny, kind, make, predict):
    before = predict()
    with pytest.raises(KeyboardInterrupt), velatura.attach(tiny, make(kind)):
        raise KeyboardInterrupt
    assert torch.equal(predict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_while_attaching_leaves_nothing_behind(tiny, kind, make, predict, monkeypatch):
    before, hooks = predict(), hook_counts(tiny)
    overlay, install_hooks = make(kind), type(make(kind)).install_hooks

    def break_off(self, target, strength):
        yield next(install_hooks(self, target, strength))
        raise RuntimeError

    monkeypatch.setattr(type(overlay), "install_hooks", break_off)
    with pytest.raises(RuntimeError):
        velatura.attach(tiny, overlay)
    assert hook_counts(tiny) == hooks
    assert torch.equal(predict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_twice_does_nothing_more(tiny, kind, make, predict):
    with velatura.attach(tiny, make(kind)):
        attached = predict()
        once = velatura.attach(tiny, make(kind, seed=5))
        once.detach()
        once.detach()
        assert torch.equal(predict(), attached)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0.0, -0.0, torch.zeros(()), torch.zeros(BATCH)], ids=str)
def test_strength_zero_is_bit_identical_to_off(tiny, kind, make, predict, zero):
    before = predict()
    with velatura.attach(tiny, make(kind), zero):
        assert torch.equal(predict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_of_a_batch_may_have_its_own_strength(tiny, kind, make, predict):
    before = predict()
    with velatura.attach(tiny, make(kind), torch.tensor([0.0, 0.7])) as attachment:
        mixed = predict()
        attachment.strength = 0.7
        alike = predict()
    assert torch.equal(mixed[0], before[0])
    torch.testing.assert_close(mixed[1], alike[1])
    assert not torch.equal(mixed[1], before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_overlays_that_only_make_nan_are_off_at_zero(tiny, kind, make, predict):
    before, overlay = predict(), make(kind)
    for weight in overlay.parameters():
        nn.init.constant_(weight, torch.nan)
    with velatura.attach(tiny, overlay, torch.tensor([0.0, 1.0])) as attachment:
        prediction = predict()
        assert torch.equal(prediction[0], before[0])
        assert prediction[1].isnan().all()
        attachment.strength = 0
        assert torch.equal(predict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_counts_from_the_next_step(tiny, kind, make, predict):
    overlay = make(kind)
    with velatura.attach(tiny, overlay, 0.3):
        weak = predict()
    with velatura.attach(tiny, overlay, 1.0) as attachment:
        assert not torch.equal(predict(), weak)
        attachment.strength = 0.3
        assert torch.equal(predict(), weak)
        assert float(attachment.strength) == pytest.approx(0.3)


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
