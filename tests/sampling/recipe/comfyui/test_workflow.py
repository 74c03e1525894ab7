"""Workflows as ComfyUI's editor saves them: values without names, connections by number, muted and bypassed nodes."""

import contextlib
import copy
import json
import warnings

import pytest

from velatura.errors import BadRecipe
from velatura.sampling.recipe.comfyui import infotext_from_comfyui
from velatura.sampling.recipe.recipe import Recipe


def entry(key, kind, inputs=(), outputs=(), values=(), *, mode=0):
    """Return a node; inputs are pairs of a name and a type, outputs are types."""
    return {
        "id": key,
        "type": kind,
        "mode": mode,
        "pos": [0, 0],
        "inputs": [{"name": name, "type": kind_of_value, "link": None} for name, kind_of_value in inputs],
        "outputs": [{"name": kind_of_value, "type": kind_of_value, "links": []} for kind_of_value in outputs],
        "widgets_values": list(values) if isinstance(values, tuple) else values,
    }


def text_to_image(*, lora_mode=0):
    lora_inputs = [("model", "MODEL"), ("clip", "CLIP")]
    sampler_inputs = [
        ("model", "MODEL"),
        ("positive", "CONDITIONING"),
        ("negative", "CONDITIONING"),
        ("latent_image", "LATENT"),
    ]
    nodes = [
        entry(1, "CheckpointLoaderSimple", (), ("MODEL", "CLIP", "VAE"), ("v1-5-pruned.safetensors",)),
        entry(2, "CLIPTextEncode", [("clip", "CLIP")], ("CONDITIONING",), ("a red house",)),
        entry(3, "CLIPTextEncode", [("clip", "CLIP")], ("CONDITIONING",), ("blurry",)),
        entry(4, "EmptyLatentImage", (), ("LATENT",), (512, 768, 1)),
        entry(5, "KSampler", sampler_inputs, ("LATENT",), (77, "randomize", 20, 8.0, "dpmpp_2m", "karras", 1.0)),
        entry(6, "VAEDecode", [("samples", "LATENT"), ("vae", "VAE")], ("IMAGE",)),
        entry(7, "SaveImage", [("images", "IMAGE")], (), ("ComfyUI",)),
        entry(8, "LoraLoader", lora_inputs, ("MODEL", "CLIP"), ("style\\ink.safetensors", 0.8, 0.5), mode=lora_mode),
        entry(9, "Note", (), (), ("<- write here",)),
    ]
    links = [
        [1, 1, 0, 8, 0, "MODEL"],
        [2, 1, 1, 8, 1, "CLIP"],
        [3, 8, 1, 2, 0, "CLIP"],
        [4, 8, 1, 3, 0, "CLIP"],
        [5, 8, 0, 5, 0, "MODEL"],
        [6, 2, 0, 5, 1, "CONDITIONING"],
        [7, 3, 0, 5, 2, "CONDITIONING"],
        [8, 4, 0, 5, 3, "LATENT"],
        [9, 5, 0, 6, 0, "LATENT"],
        [10, 1, 2, 6, 1, "VAE"],
        [11, 6, 0, 7, 0, "IMAGE"],
    ]
    return {"last_node_id": 9, "nodes": nodes, "links": links, "groups": [], "version": 0.4}


def read(workflow, chunk="workflow", size=(512, 768)):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = Recipe.from_infotext(infotext_from_comfyui({chunk: json.dumps(workflow)}, size))
    return recipe, [str(warning.message) for warning in caught]


EXPECTED = Recipe(
    prompt="a red house<lora:ink:0.5:0.8>",
    negative="blurry",
    steps=20,
    sampler="DPM++ 2M",
    scheduler="Karras",
    guidance=8,
    seed=77,
    width=512,
    height=768,
    sgm_noise=True,
    base="v1-5-pruned",
)


@pytest.mark.parametrize("chunk", ["workflow", "prompt"])
def test_a_workflow_is_read_where_the_graph_of_the_server_is_missing(chunk):
    assert read(text_to_image(), chunk) == (EXPECTED, [])


def test_a_workflow_in_a_file_of_its_own_has_no_size_of_a_picture():
    assert read(text_to_image(), size=(0, 0)) == (EXPECTED, [])


def test_the_graph_of_the_server_comes_first():
    graph = {"1": {"class_type": "PreviewImage", "inputs": {}}}
    with pytest.raises(BadRecipe, match="none of its nodes samples"):
        infotext_from_comfyui({"prompt": json.dumps(graph), "workflow": json.dumps(text_to_image())}, (8, 8))
    chunks = {"prompt": "a plain chunk", "workflow": json.dumps(text_to_image())}
    assert Recipe.from_infotext(infotext_from_comfyui(chunks, (512, 768))).seed == 77


def test_both_stand_in_exif_behind_their_names():
    chunks = {"Make": f"Workflow: {json.dumps(text_to_image())}"}
    assert Recipe.from_infotext(infotext_from_comfyui(chunks, (512, 768))) == EXPECTED


def test_a_bypassed_node_passes_on_what_comes_in():
    assert read(text_to_image(lora_mode=4))[0] == EXPECTED.replace(prompt="a red house")


def test_a_muted_node_is_not_there():
    with pytest.raises(BadRecipe, match=r"CLIPTextEncode \(node 2\) has no clip"):
        read(text_to_image(lora_mode=2))


def test_values_that_a_newer_node_saves_behind_the_others_are_named():
    workflow = text_to_image()
    workflow["nodes"][4]["widgets_values"].append(0.7)
    recipe, messages = read(workflow)
    assert recipe == EXPECTED
    assert messages == [
        "the picture's ComfyUI graph has inputs that velatura does not support: value 8 of KSampler (node 5); the "
        "picture may be different"
    ]


def test_a_single_step_behind_a_seed_is_not_what_becomes_of_the_seed():
    workflow = text_to_image()
    workflow["nodes"][4]["widgets_values"] = [77, 1, 8.0, "dpmpp_2m", "karras", 1.0]
    assert read(workflow)[0].steps == 1


@pytest.mark.parametrize("control", ["fixed", "increment", True, None])
def test_what_becomes_of_the_seed_afterwards_is_not_a_value(control):
    workflow = text_to_image()
    workflow["nodes"][4]["widgets_values"][1] = control
    assert read(workflow) == (EXPECTED, [])


def test_links_may_be_objects():
    workflow = text_to_image()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    workflow["links"] = [dict(zip(names, link, strict=True)) for link in workflow["links"]]
    assert read(workflow) == (EXPECTED, [])


def test_primitives_reroutes_and_named_connections_are_followed():
    workflow = text_to_image()
    workflow["nodes"][4]["inputs"].append({"name": "seed", "type": "INT", "link": None, "widget": {"name": "seed"}})
    workflow["nodes"] += [
        entry(10, "PrimitiveNode", (), ("INT",), (5, "fixed")),
        entry(11, "Reroute", [("", "*")], ("LATENT",)),
        entry(12, "SetNode", [("LATENT", "LATENT")], ("*",), ("size",)),
        entry(13, "GetNode", (), ("LATENT",), ("size",)),
    ]
    workflow["links"][7] = [8, 11, 0, 5, 3, "LATENT"]
    workflow["links"] += [[12, 10, 0, 5, 4, "INT"], [13, 13, 0, 11, 0, "LATENT"], [14, 4, 0, 12, 0, "LATENT"]]
    assert read(workflow) == (EXPECTED.replace(seed=5), [])


def test_values_with_names_are_read_by_their_names():
    workflow = text_to_image()
    workflow["nodes"][3]["widgets_values"] = {"width": 640, "height": 960, "batch_size": 1}
    recipe, _ = read(workflow, size=(640, 960))
    assert (recipe.width, recipe.height) == (640, 960)


def test_newer_editors_name_the_values_of_every_kind_of_node():
    workflow = text_to_image()
    workflow["nodes"][3] = entry(4, "My Latent Size", (), ("LATENT",), (640, 960))
    workflow["nodes"][3]["inputs"] = [
        {"name": name, "type": "INT", "link": None, "widget": {"name": name}} for name in ("width", "height")
    ]
    recipe, messages = read(workflow, size=(640, 960))
    assert (recipe.width, recipe.height, messages) == (640, 960, [])


def test_rows_of_rgthrees_loader_are_read():
    workflow = text_to_image()
    workflow["nodes"][7] = entry(
        8,
        "Power Lora Loader (rgthree)",
        [("model", "MODEL"), ("clip", "CLIP")],
        ("MODEL", "CLIP"),
        ({}, {"type": "PowerLoraLoaderHeaderWidget"}, {"on": True, "lora": "a.safetensors", "strength": 0.4}, {}, ""),
    )
    assert read(workflow)[0].prompt == "a red house<lora:a:0.4>"


def test_subgraphs_are_part_of_the_graph():
    workflow = text_to_image()
    encoders = workflow["nodes"][1:3]
    workflow["nodes"] = [node for node in workflow["nodes"] if node["id"] not in {2, 3}]
    workflow["nodes"].append(entry(20, "an-id", [("clip", "CLIP")], ("CONDITIONING", "CONDITIONING")))
    workflow["links"] = [link for link in workflow["links"] if not {2, 3} & {link[1], link[3]}]
    workflow["links"] += [
        [12, 8, 1, 20, 0, "CLIP"],
        [13, 20, 0, 5, 1, "CONDITIONING"],
        [14, 20, 1, 5, 2, "CONDITIONING"],
    ]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inner = [
        [1, -10, 0, 2, 0, "CLIP"],
        [2, -10, 0, 3, 0, "CLIP"],
        [3, 2, 0, -20, 0, "CONDITIONING"],
        [4, 3, 0, -20, 1, "CONDITIONING"],
    ]
    links = [dict(zip(names, link, strict=True)) for link in inner]
    workflow["definitions"] = {"subgraphs": [{"id": "an-id", "nodes": encoders, "links": links}]}
    assert read(workflow) == (EXPECTED, [])
    workflow["definitions"]["subgraphs"][0]["nodes"] = [*encoders, entry(21, "an-id")]
    with pytest.raises(BadRecipe, match="subgraphs are inside each other without end"):
        read(workflow)


def test_subgraphs_that_multiply_are_refused():
    workflow = text_to_image()
    workflow["nodes"].append(entry(20, "level 0"))
    workflow["definitions"] = {
        "subgraphs": [
            {"id": f"level {depth}", "nodes": [entry(key, f"level {depth + 1}") for key in range(7)], "links": []}
            for depth in range(10)  # 7 ** 10 nodes, in a file of a few kilobytes
        ]
    }
    with pytest.raises(BadRecipe, match="it is too large: with its subgraphs it has more than 20,000 nodes"):
        read(workflow)


@pytest.mark.parametrize(("key", "link_count"), [(1, 2_000), ("a" * 200_000, 1)])
def test_subgraphs_with_much_in_them_are_refused_if_they_are_used_often(key, link_count):
    workflow = text_to_image()
    workflow["nodes"] += [entry(number, "much") for number in range(20, 1_020)]
    links = [[number, key, 0, 2, number, "MODEL"] for number in range(link_count)]
    workflow["definitions"] = {"subgraphs": [{"id": "much", "nodes": [entry(key, "FreeU")], "links": links}]}
    with pytest.raises(BadRecipe, match="it is too large: it has too many connections"):
        read(workflow)


def test_thousands_of_pairs_that_set_and_get_a_value_are_read():
    workflow = text_to_image()
    workflow["nodes"] += [entry(key, "SetNode", [("LATENT", "LATENT")], (), (f"n{key}",)) for key in range(100, 5_100)]
    workflow["nodes"] += [entry(key + 5_000, "GetNode", (), ("LATENT",), (f"n{key}",)) for key in range(100, 5_100)]
    workflow["links"] += [[key, 4 if key == 100 else key + 4_999, 0, key, 0, "LATENT"] for key in range(100, 600)]
    workflow["links"] = [link for link in workflow["links"] if link[0] != 8] + [[8, 5_400, 0, 5, 3, "LATENT"]]
    assert read(workflow) == (EXPECTED, [])


def test_a_choice_that_only_the_editor_makes_is_named():
    workflow = text_to_image()
    workflow["nodes"][1]["widgets_values"] = ["a {red|blue} house"]
    assert read(workflow)[1] == [
        "the picture's ComfyUI graph: its prompt has a choice such as {a|b}, which is read as it stands"
    ]


def test_bypassed_nodes_in_a_circle_are_refused():
    workflow = text_to_image(lora_mode=4)
    workflow["links"][0] = [1, 8, 0, 8, 0, "MODEL"]
    with pytest.raises(BadRecipe, match="its connections form a circle"):
        read(workflow)


@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
@pytest.mark.parametrize("wrong", [None, [], {}, "x", -1, [[]], [None], [[1, 2]], [{"id": []}]])
@pytest.mark.parametrize("part", ["nodes", "links", "definitions"])
def test_a_damaged_workflow_never_crashes(part, wrong):
    workflow = copy.deepcopy(text_to_image())
    workflow[part] = wrong
    with contextlib.suppress(BadRecipe):
        infotext_from_comfyui({"workflow": json.dumps(workflow)}, (8, 8))


@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
def test_values_of_another_type_in_a_node_never_crash():
    for number in range(9):
        for part in ("id", "type", "mode", "inputs", "outputs", "widgets_values"):
            for wrong in (None, [], {}, "x", -1, [None], [{"name": []}], [{"widget": 3}]):
                workflow = copy.deepcopy(text_to_image())
                workflow["nodes"][number][part] = wrong
                with contextlib.suppress(BadRecipe):
                    infotext_from_comfyui({"workflow": json.dumps(workflow)}, (512, 768))
