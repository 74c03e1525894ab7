"""Valid graphs with one fault: refused, named in a warning, or read as before; never another recipe in silence."""

import copy

import pytest

from tests.sampling.recipe.comfyui.graphs import node, read, sampler, text_to_image
from velatura.errors import BadRecipe

SAMPLER_IN_PARTS = node(
    "SamplerCustomAdvanced", noise=["8", 0], guider=["9", 0], sampler=["10", 0], sigmas=["11", 0], latent_image=["4", 0]
)
GRAPHS = {
    "text to image": text_to_image(),
    "overlays": text_to_image(
        n2=node("CLIPTextEncode", text="a (red:1.2) house", clip=["9", 0]),
        n3=node("CLIPTextEncode", text="blurry", clip=["9", 0]),
        n5=sampler(model=["10", 0]),
        n8=node(
            "LoraLoader",
            lora_name="ink.safetensors",
            strength_model=0.8,
            strength_clip=0.5,
            model=["1", 0],
            clip=["1", 1],
        ),
        n9=node("CLIPSetLastLayer", clip=["8", 1], stop_at_clip_layer=-2),
        n10=node("HypernetworkLoader", hypernetwork_name="inca.pt", strength=0.6, model=["8", 0]),
    ),
    "hires fix": text_to_image(
        n6=node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        n8=node("LatentUpscaleBy", samples=["5", 0], upscale_method="bicubic", scale_by=2),
        n9=sampler(steps=12, denoise=0.5, latent_image=["8", 0], sampler_name="euler"),
    ),
    "image to image": text_to_image(
        n4=node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
        n5=sampler(denoise=0.6),
        n8=node("LoadImage", image="cat.png"),
    ),
    "sampler in parts": text_to_image(
        n5=SAMPLER_IN_PARTS,
        n8=node("RandomNoise", noise_seed=77),
        n9=node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=5),
        n10=node("KSamplerSelect", sampler_name="heun"),
        n11=node("BasicScheduler", model=["1", 0], scheduler="sgm_uniform", steps=24, denoise=1),
    ),
    "combined texts": text_to_image(
        n5=sampler(positive=["8", 0], seed=["10", 0]),
        n8=node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["9", 0]),
        n9=node("CLIPTextEncode", text=["11", 0], clip=["1", 1]),
        n10=node("PrimitiveInt", value=5),
        n11=node("StringConcatenate", string_a="x", string_b="y", delimiter=", "),
    ),
}
WRONG_VALUES = [[], {}, None, True, ["zz"], [None, 0], ["4", 9], ["99", 0]]
# Inputs without which ComfyUI does not run, and on which the picture depends
NEEDED = {
    "KSampler": {"seed", "steps", "cfg", "sampler_name", "scheduler", "model", "positive", "negative", "latent_image"},
    "CLIPTextEncode": {"text", "clip"},
    "EmptyLatentImage": {"width", "height"},
    "LoraLoader": {"lora_name", "strength_model", "strength_clip", "model", "clip"},
    "HypernetworkLoader": {"hypernetwork_name", "strength", "model"},
    "CLIPSetLastLayer": {"clip", "stop_at_clip_layer"},
    "LatentUpscaleBy": {"samples", "upscale_method", "scale_by"},
    "CFGGuider": {"model", "positive", "negative", "cfg"},
    "KSamplerSelect": {"sampler_name"},
    "BasicScheduler": {"scheduler", "steps"},
    "RandomNoise": {"noise_seed"},
    "VAEDecode": {"samples"},
    "VAEEncode": {"pixels"},
}


def outcome(graph):
    """Return the recipe and the set of messages, or None if the graph is refused."""
    try:
        recipe, messages = read(graph)
    except BadRecipe:
        return None
    return recipe, set(messages)


def changed(graph, key, name, value):
    mutated = copy.deepcopy(graph)
    mutated[key]["inputs"][name] = value
    return mutated


def all_inputs(graph):
    return [(key, name) for key, entry in graph.items() for name in entry["inputs"]]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_missing_or_wrong_input_is_refused_or_named(graph):
    before = outcome(graph)
    for key, name in all_inputs(graph):
        removed = copy.deepcopy(graph)
        del removed[key]["inputs"][name]
        for mutated in [removed, *(changed(graph, key, name, value) for value in WRONG_VALUES)]:
            after = outcome(mutated)
            is_silent = after is not None and after[1] <= before[1]
            needed = name in NEEDED.get(graph[key]["class_type"], set())
            assert not is_silent or (after[0] == before[0] and not needed), (key, name, mutated[key])


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_link_to_another_slot_is_refused_or_named(graph):
    before = outcome(graph)
    for key, name in all_inputs(graph):
        link = graph[key]["inputs"][name]
        for slot in range(5) if isinstance(link, list) else ():
            after = outcome(changed(graph, key, name, [link[0], slot]))
            assert after is None or after[0] == before[0] or after[1] - before[1], (key, name, slot)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_an_unknown_node_on_the_way_is_refused_or_named(graph):
    before = outcome(graph)
    for key, name in all_inputs(graph):
        link = graph[key]["inputs"][name]
        if not isinstance(link, list) or name in {"vae", "filename_prefix"}:
            continue
        if graph[key]["class_type"] == "BasicScheduler":  # whose model only counts by its noise levels
            continue
        for inputs in ({name: link, "factor": 3}, {"thing": link}):
            mutated = changed(graph, key, name, ["new", 0]) | {"new": node("Mystery", **inputs)}
            after = outcome(mutated)
            assert after is None or after[1] - before[1], (key, name, inputs)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_an_unknown_kind_of_node_is_read_as_before_or_refused_or_named(graph):
    before = outcome(graph)
    for key in graph:
        mutated = copy.deepcopy(graph)
        mutated[key]["class_type"] = "Mystery"
        after = outcome(mutated)
        assert after is None or after[0] == before[0] or after[1] - before[1], key


SAVES = {"SaveImage", "LoadImage"}  # a file's name is all that is read of them


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("value", [3, "new", True, ["1", 0]], ids=repr)
def test_an_unknown_input_of_a_node_on_the_way_is_named_once(graph, value):
    before = outcome(graph)
    for key in graph:
        after = outcome(changed(graph, key, "foo_unknown", value))
        assert after is not None
        assert after[0] == before[0], key
        kind = graph[key]["class_type"]
        names = (f"foo_unknown of {kind} (node {key})", f"does not support: {kind};")  # the whole node, if it changes
        named = [message for message in after[1] if any(name in message for name in names)]
        assert len(named) == 1 or kind in SAVES, key


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("value", [None, False, "", [], {}], ids=repr)
def test_an_unknown_input_that_is_switched_off_is_not_named(graph, value):
    before = outcome(graph)
    for key in graph:
        assert outcome(changed(graph, key, "foo_unknown", value)) == before, key


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_link_to_any_other_node_never_crashes(graph):
    """Some of them are other valid graphs; a circle and a value of another type are refused."""
    for key, name in all_inputs(graph):
        if isinstance(graph[key]["inputs"][name], list):
            for other in graph:
                outcome(changed(graph, key, name, [other, 0]))
    for key in graph:
        outcome({other: entry for other, entry in graph.items() if other != key})
