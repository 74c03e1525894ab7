"""Law 3's trap: dynamo overlooks hooks that come and go after tracing, unless it is told not to."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

import velatura
from velatura.overlays.deltas.full import FullDelta
from velatura.overlays.lora.config import LoraConfig
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target


class Block(nn.Module):
    """One cross-attention of the tiny base's widths: enough to trace, quick to compile."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(query_dim=64, cross_attention_dim=96, heads=2, dim_head=32)

    def forward(self, latents, context):
        return self.attention(latents, encoder_hidden_states=context)


@pytest.fixture
def traces():
    """How often a model was traced: one entry for each graph that dynamo made."""
    return []


@pytest.fixture
def compiled(traces):
    torch._dynamo.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = True  # as a fresh process has it
    torch.manual_seed(0)
    block = Block().requires_grad_(False).eval()

    def eager(graph, _inputs):
        traces.append(graph)
        return graph.forward

    yield block, torch.compile(block, backend=eager)
    torch._dynamo.reset()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 16, 64, generator=generator), torch.randn(2, 77, 96, generator=generator)


def untrained(block, algorithm):
    """A LoRA of the block's layers that shows, or a difference of all of them."""
    if algorithm == "difference":
        place = Target.from_model(block)
        wide = {own: place.layer(name) for own, name in kohya_names(place).items() if "norm" not in own}
        made = {own: FullDelta.for_layer(layer) for own, layer in wide.items()}
        for weight in (parameter for delta in made.values() for parameter in delta.parameters()):
            nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
        return velatura.Difference(velatura.Card(kind="difference"), made)
    made = LoraConfig(algorithm=algorithm, rank=4).build_deltas(Target.from_model(block))
    for weight in (parameter for delta in made.values() for parameter in delta.parameters()):
        nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(1))
    return velatura.Lora(velatura.Card(kind="lora"), made)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hypernet", "lora", "dora", "loha", "lokr", "boft", "difference"])
def test_attaching_after_compiling_is_noticed(compiled, inputs, hyper, traces, kind):
    block, fast = compiled
    overlay = hyper(widths=[96]) if kind == "hypernet" else untrained(block, kind)
    before = fast(*inputs)

    with velatura.attach(block, overlay, 1.0) as attachment:
        torch.testing.assert_close(fast(*inputs), block(*inputs))
        assert not torch.equal(fast(*inputs), before)
        traced = len(traces)
        for strength in (0.7, 0.3, 0.0):
            attachment.strength = strength
            torch.testing.assert_close(fast(*inputs), block(*inputs))
        assert torch.equal(fast(*inputs), before)
        assert len(traces) == traced, "a change of strength must not trace again"

    assert torch.equal(fast(*inputs), before)
    with velatura.attach(block, overlay, 0.5):
        torch.testing.assert_close(fast(*inputs), block(*inputs))
        assert not torch.equal(fast(*inputs), before)
    assert torch.equal(fast(*inputs), before)


@torch.no_grad()
def test_detaching_after_compiling_is_noticed(compiled, inputs, hyper):
    block, fast = compiled
    before = block(*inputs)
    attachment = velatura.attach(block, hyper(widths=[96]), 1.0)
    assert not torch.equal(fast(*inputs), before)
    attachment.detach()
    torch.testing.assert_close(fast(*inputs), before)
