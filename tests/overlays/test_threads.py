"""Threads that share a model under an overlay do not mix up what they read."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import velatura


@pytest.fixture
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["linear", "relu", "lora", "loha"])
def overlay(request, hyper, lora):
    if request.param in {"lora", "loha"}:
        return lora(algorithm=request.param)
    made = hyper(activation=request.param)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("name", ["attn1", "attn2"])
@pytest.mark.usefixtures("switching_often")
def test_threads_with_contexts_of_their_own(tiny, overlay, name):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].get_submodule(name)
    contexts = [torch.randn(1, 77, layer.to_k.in_features, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]

    def reads(context, *, v_first):
        with torch.no_grad():
            read = layer.to_v(context) if v_first else None
            k = layer.to_k(context)
            return k, layer.to_v(context) if read is None else read

    def reads_often(job):
        return [reads(contexts[job], v_first=bool(job)) for _ in range(300)]

    with velatura.attach(tiny, overlay, 0.7), ThreadPoolExecutor(2) as threads:
        alone = [reads(context, v_first=bool(job)) for job, context in enumerate(contexts)]
        together = list(threads.map(reads_often, range(2)))
    for expected, found in zip(alone, together, strict=True):
        for output in found:
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("switching_often")
def test_threads_paint_as_they_would_alone(tiny, overlay):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 1, 4, 16, 16, generator=generator)
    contexts = torch.randn(2, 1, 77, 96, generator=generator)

    def predict(job):
        with torch.no_grad():
            return [tiny.predict(latents[job], torch.tensor(500), contexts[job]) for _ in range(6)]

    with velatura.attach(tiny, overlay, 0.7), ThreadPoolExecutor(2) as threads:
        alone = [predict(job)[-1] for job in range(2)]
        for expected, found in zip(alone, threads.map(predict, range(2)), strict=True):
            for output in found:
                torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
