"""Aesthetic gradients, against what their author's own program says (tests/data/trainers/aesthetic.safetensors)."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.tuning import slerp
from velatura.tensors import open_tensors

GOLDEN = Path(__file__).parents[1] / "data" / "trainers" / "aesthetic.safetensors"
RATE = 1e-3  # of the golden steps


class Pipeline:
    """As much of a diffusers pipeline as an aesthetic needs."""

    def __init__(self, unet, tower):
        self.unet, self.text_encoder = unet, tower


@pytest.fixture(scope="module")
def golden():
    contents = open_tensors(GOLDEN)
    return contents.metadata, dict(contents.tensors)


@pytest.fixture
def tower(golden):
    metadata, tensors = golden
    model = CLIPTextModel(CLIPTextConfig(**json.loads(metadata["config"])["text_config"]))
    prefix = "text.text_model."
    model.load_state_dict({key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)})
    return model.eval().requires_grad_(False)


@pytest.fixture
def made(golden):
    tensors = golden[1]

    def make(**settings):
        return Aesthetic.of(tensors["image_emb"], tensors["text.text_projection.weight"], **settings)

    return make


def says(tower, ids):
    with torch.no_grad():
        return tower(input_ids=ids).last_hidden_state


@pytest.mark.filterwarnings("ignore:.*changed nothing")  # of no step
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_prompts_are_drawn_as_the_authors_program_draws_them(tiny, golden, tower, made, steps):
    tokens, expected = golden[1]["tokens"], golden[1][f"z@{steps}"]
    with velatura.attach(Pipeline(tiny.unet, tower), made(steps=steps, rate=RATE)):
        torch.testing.assert_close(says(tower, tokens), expected, rtol=1e-3, atol=1e-4)
