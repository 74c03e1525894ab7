"""Noise of the webui (tests/data/a1111/noise.*), from every source and with all that it mixes in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from velatura.sampling.noise.brownian import BrownianTree
from velatura.sampling.noise.philox import Philox
from velatura.sampling.noise.seeded import SeededNoise, Variation, slerp

GOLDEN = Path(__file__).parents[2] / "data" / "a1111"
TENSORS = load_file(GOLDEN / "noise.safetensors")
CASES = json.loads((GOLDEN / "noise.json").read_text("utf-8"))["cases"]


def noise_of(case):
    height, width = (case[f"seed_resize_from_{side}"] // 8 for side in "hw")
    return SeededNoise(
        case["seeds"],
        case["latent_shape"],
        source=case["source"],
        variation=Variation(case["subseeds"], case["subseed_strength"]) if case["subseeds"] else None,
        seed_size=(height, width) if height and width else None,
        ensd=case["ensd"],
    )


@pytest.mark.parametrize("case", [case for case in CASES if "source" in case], ids=lambda case: case["id"])
def test_noise_is_what_the_webui_draws(case):
    noise = noise_of(case)
    for draw in range(3):
        torch.testing.assert_close(noise.draw(), TENSORS[f"{case['id']}.{draw}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if "slerp" in case], ids=lambda case: case["id"])
def test_noise_is_turned_as_the_webui_turns_it(case):
    low, high, out = (TENSORS[f"{case['id']}.{name}"] for name in ("low", "high", "out"))
    torch.testing.assert_close(slerp(case["slerp"], low, high), out, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["CPU", "NV", "GPU"])
def test_a_picture_draws_the_same_alone_and_in_a_batch(source):
    together, alone = (SeededNoise(seeds, (4, 8, 8), source=source) for seeds in ([5, 6], [6]))
    for _ in range(2):
        assert torch.equal(together.draw()[1], alone.draw()[0])
    paths = [
        each.brownian_noise_sampler(0.03, 14.6)(torch.tensor(7.0), torch.tensor(3.0)) for each in (together, alone)
    ]
    assert torch.equal(paths[0][1], paths[1][0])


def test_a_variation_of_no_strength_is_none():
    plain, varied = (SeededNoise([5], (4, 8, 8), variation=each) for each in (None, Variation([9], 0.0)))
    assert torch.equal(plain.draw(), varied.draw())


def test_the_imitated_gpu_draws_what_an_nvidia_gpu_draws():
    # torch.randn(4, device="cuda", generator=torch.Generator("cuda").manual_seed(...)) as golden runs of the webui's
    # own imitation have it; the first numbers of r0 are those of seed 1
    first = TENSORS["r0.0"].flatten()[:4]
    torch.testing.assert_close(Philox(1).draw((4,)), first, rtol=0, atol=1e-6)
    assert torch.equal(Philox(1).draw((4, 8, 8)).flatten()[:4], Philox(1).draw((4,)))  # counters, not a stream


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_imitated_gpu_draws_what_this_gpu_draws():
    generator, imitated = torch.Generator("cuda").manual_seed(2**40 + 7), Philox(2**40 + 7)
    for shape in ((4, 64, 64), (4, 96, 64)):
        drawn = torch.randn(shape, generator=generator, device="cuda").cpu()
        torch.testing.assert_close(imitated.draw(shape), drawn, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**63 - 1])
def test_numbers_of_the_imitated_gpu_are_normal(seed):
    drawn = Philox(seed).draw((100_000,))
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02


def path(seed=7, low=0.03, high=14.6, size=50_000):
    return BrownianTree(low, high, seed, lambda node: torch.randn(size, generator=torch.Generator().manual_seed(node)))


def test_a_path_is_the_same_whatever_steps_are_taken():
    whole, parted = path(), path()
    ways = [parted(here, there) for here, there in ((14.6, 7), (7, 6.999), (6.999, 1.5), (1.5, 0.03))]
    torch.testing.assert_close(sum(ways), whole(14.6, 0.03), rtol=0, atol=1e-4)
    torch.testing.assert_close(whole(0.5, 3), -path()(3, 0.5), rtol=0, atol=1e-6)


def test_ways_along_a_path_have_the_variance_of_their_length_and_know_nothing_of_each_other():
    ours = path()
    ways = {length: ours(1, 1 + length) for length in (1e-3, 0.5, 9.0)}
    for length, way in ways.items():
        assert way.var() == pytest.approx(length, rel=0.05)
    before, after = ours(0.03, 2), ours(2, 9)
    assert abs(torch.corrcoef(torch.stack([before, after]))[0, 1]) < 0.02


def test_beyond_its_ends_a_path_stands_still():
    assert torch.equal(path()(20, 10), path()(14.6, 10))
    assert not path()(0.03, 0.001).any()
    assert not path()(5, 5).any()
