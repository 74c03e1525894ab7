"""Graphs as ComfyUI writes them into the chunk "prompt" of its pictures."""

import json

import pytest

from velatura.sampling.recipe.foreign import infotext_from_chunks
from velatura.sampling.recipe.recipe import Recipe

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red house", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "10": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "clip": ["4", 1], "lora_name": "x"}},
}


def text_of(graph):
    return infotext_from_chunks({"prompt": json.dumps(graph)}, (512, 768))


def test_a_graph_with_one_sampler_gives_a_recipe():
    recipe = Recipe.from_infotext(text_of(GRAPH))
    assert recipe == Recipe(
        prompt="a red house",
        negative="blurry",
        steps=20,
        sampler="DPM++ 2M",
        scheduler="Karras",
        guidance=8,
        seed=156680208700286,
        width=512,
        height=768,
        base="v1-5-pruned.safetensors",
    )


def test_an_image_to_begin_from_shows_in_the_denoising_strength():
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"]["denoise"] = 0.6
    assert "Denoising strength: 0.6" in text_of(graph)


@pytest.mark.parametrize(
    "graph",
    [
        {},
        [],
        {"3": GRAPH["3"]},  # no text
        {**GRAPH, "30": GRAPH["3"]},  # which of two
        {"3": {**GRAPH["3"], "inputs": {"positive": ["3", 0]}}},  # a circle
        {"3": "KSampler"},
    ],
)
def test_a_graph_that_says_too_little_gives_nothing(graph):
    assert text_of(graph) is None


def test_what_is_no_json_gives_nothing():
    assert infotext_from_chunks({"prompt": "a plain chunk"}, (8, 8)) is None
    assert infotext_from_chunks({"prompt": "[" * 100_000}, (8, 8)) is None
    assert infotext_from_chunks({"Software": "NovelAI", "Comment": "none"}, (8, 8)) is None
