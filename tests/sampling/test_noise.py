import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from velatura.sampling.noise import Noise

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"
TENSORS = load_file(GOLDEN / "noise.safetensors")


def plain(case):
    varied = case.get("subseeds") or case.get("seed_resize_from_h") or case.get("ensd")
    return case.get("source") == "CPU" and not varied


CASES = [case for case in json.loads((GOLDEN / "noise.json").read_text("utf-8"))["cases"] if plain(case)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_noise_is_what_the_webui_draws_on_the_cpu(case):
    noise = Noise(case["seeds"], case["latent_shape"])
    for draw in range(3):
        torch.testing.assert_close(noise.draw(), TENSORS[f"{case['id']}.{draw}"], rtol=0, atol=1e-5)


def test_a_picture_draws_the_same_alone_and_in_a_batch():
    together, alone = Noise([5, 6], (4, 8, 8)), Noise([6], (4, 8, 8))
    for _ in range(2):
        assert torch.equal(together.draw()[1], alone.draw()[0])
