"""Graphs as ComfyUI writes them into the chunk "prompt" of its pictures, and what is read from them."""

import json
import warnings

from velatura.errors import VelaturaWarning
from velatura.sampling.recipe.comfyui import infotext_from_comfyui
from velatura.sampling.recipe.recipe import Recipe

SIZE = (512, 768)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def text_to_image(**nodes):
    """Return ComfyUI's first graph, with nodes added or replaced: n5 is the node with the key 5."""
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned.safetensors"),
        "2": node("CLIPTextEncode", text="a red house", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="blurry", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "5": sampler(),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="ComfyUI"),
    }
    return graph | {name.removeprefix("n"): new for name, new in nodes.items()}


def sampler(kind="KSampler", **changes):
    inputs = {
        "seed": 156680208700286,
        "steps": 20,
        "cfg": 8.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 1.0,
        "model": ["1", 0],
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
    }
    return node(kind, **{name: value for name, value in (inputs | changes).items() if value is not None})


def read(graph, size=SIZE):
    """Return the recipe of a graph and the messages of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = infotext_from_comfyui({"prompt": json.dumps(graph)}, size)
        assert text is not None
        recipe = Recipe.from_infotext(text)
    assert all(warning.category is VelaturaWarning for warning in caught)
    return recipe, [str(warning.message) for warning in caught]


def read_quietly(graph, size=SIZE):
    """Return the recipe of a graph that is read without a warning."""
    recipe, messages = read(graph, size)
    assert messages == []
    return recipe
