"""Overlays in graphs: loaders of ComfyUI and of extensions, with the inputs that those write."""

import pytest

from tests.sampling.recipe.comfyui.graphs import node, read, read_quietly, sampler, text_to_image
from velatura.errors import BadRecipe


def lora(name, model, clip, unet=1.0, text=1.0):
    return node("LoraLoader", lora_name=name, strength_model=unet, strength_clip=text, model=model, clip=clip)


def with_loader(loader, **nodes):
    """Return a graph whose model and texts come through the node 8."""
    return text_to_image(
        n2=node("CLIPTextEncode", text="a red house", clip=["8", 1]),
        n3=node("CLIPTextEncode", text="blurry", clip=["8", 1]),
        n5=sampler(model=["8", 0]),
        n8=loader,
        **nodes,
    )


def test_loras_become_tags_in_the_order_in_which_they_are_applied():
    first = lora("style\\ink.safetensors", ["1", 0], ["1", 1], 0.8, 0.8)
    second = lora("people/hands v2.safetensors", ["9", 0], ["9", 1], -0.5, 0.25)
    recipe = read_quietly(with_loader(second, n9=first))
    assert recipe.prompt == "a red house<lora:ink:0.8><lora:hands v2:0.25:-0.5>"  # A1111's order: text, then UNet
    assert recipe.negative == "blurry"


def test_a_lora_of_the_model_alone_has_no_strength_in_the_text_encoder():
    graph = text_to_image(
        n5=sampler(model=["8", 0]),
        n8=node("LoraLoaderModelOnly", lora_name="lcm.safetensors", strength_model=0.7, model=["1", 0]),
    )
    assert read_quietly(graph).prompt == "a red house<lora:lcm:0:0.7>"


def test_a_lora_counts_where_its_outputs_go():
    """The model goes around the loader, so that only the text encoder is changed."""
    graph = with_loader(lora("ink.safetensors", ["1", 0], ["1", 1], 0.8, 0.6))
    graph["5"] = sampler(model=["1", 0])
    assert read_quietly(graph).prompt == "a red house<lora:ink:0.6:0>"


def test_a_lora_without_strength_is_left_out():
    assert read_quietly(with_loader(lora("ink.safetensors", ["1", 0], ["1", 1], 0, 0))).prompt == "a red house"


def test_a_hypernetwork_becomes_a_tag():
    graph = text_to_image(
        n5=sampler(model=["8", 0]),
        n8=node("HypernetworkLoader", hypernetwork_name="old\\inca.pt", strength=0.6, model=["1", 0]),
    )
    assert read_quietly(graph).prompt == "a red house<hypernet:inca:0.6>"


@pytest.mark.parametrize(
    ("loader", "tags"),
    [
        (
            node(
                "Power Lora Loader (rgthree)",
                PowerLoraLoaderHeaderWidget={"type": "PowerLoraLoaderHeaderWidget"},
                lora_1={"on": True, "lora": "a.safetensors", "strength": 0.4},
                lora_2={"on": False, "lora": "b.safetensors", "strength": 1},
                lora_3={"on": True, "lora": "x\\c.safetensors", "strength": 0.9, "strengthTwo": 0.5},
                model=["1", 0],
                clip=["1", 1],
            ),
            "<lora:a:0.4><lora:c:0.5:0.9>",
        ),
        (
            node(
                "Lora Loader Stack (rgthree)",
                lora_01="a.safetensors",
                strength_01=0.4,
                lora_02="None",
                strength_02=1,
                model=["1", 0],
                clip=["1", 1],
            ),
            "<lora:a:0.4>",
        ),
        (
            node(
                "LoraTagLoader", text="a house <lora:a:0.4>, <lora:b:0.8:0.2> <lora:c>", model=["1", 0], clip=["1", 1]
            ),
            "<lora:a:0.4><lora:b:0.2:0.8><lora:c:1>",
        ),
        (
            node(
                "LoraLoader|pysssss",
                lora_name={"content": "a.safetensors", "image": None},
                strength_model=1,
                strength_clip=1,
                model=["1", 0],
                clip=["1", 1],
            ),
            "<lora:a:1>",
        ),
        (
            node(
                "CR Load LoRA",
                switch="Off",
                lora_name="a.safetensors",
                strength_model=1,
                strength_clip=1,
                model=["1", 0],
                clip=["1", 1],
            ),
            "",
        ),
    ],
    ids=lambda value: value["class_type"] if isinstance(value, dict) else "",
)
def test_loaders_of_extensions_are_read(loader, tags):
    assert read_quietly(with_loader(loader)).prompt == "a red house" + tags


def test_stacks_of_loras_are_read_through_all_their_nodes():
    graph = with_loader(
        node("CR Apply LoRA Stack", model=["1", 0], clip=["1", 1], lora_stack=["9", 0]),
        n9=node(
            "CR LoRA Stack",
            switch_1="On",
            lora_name_1="a.safetensors",
            model_weight_1=0.4,
            clip_weight_1=0.3,
            switch_2="Off",
            lora_name_2="b.safetensors",
            model_weight_2=1,
            clip_weight_2=1,
            lora_stack=["10", 0],
        ),
        n10=node(
            "LoRA Stacker",
            input_mode="advanced",
            lora_count=2,
            lora_name_1="c.safetensors",
            lora_wt_1=9,
            model_str_1=0.7,
            clip_str_1=0.6,
            lora_name_2="None",
            lora_name_3="d.safetensors",
            model_str_3=1,
            clip_str_3=1,
        ),
    )
    assert read_quietly(graph).prompt == "a red house<lora:c:0.6:0.7><lora:a:0.3:0.4>"


def test_a_loader_whose_loras_are_not_plain_is_named():
    loader = node("My Lora Loader", loras='[{"name": "a"}]', model=["1", 0], clip=["1", 1])
    recipe, messages = read(with_loader(loader))
    assert recipe.prompt == "a red house"
    assert messages == [
        "the picture's ComfyUI graph has nodes that velatura does not support: My Lora Loader; "
        "the picture will be different"
    ]


def test_an_unknown_loader_with_plain_names_is_read():
    loader = node("Fancy LoRA", lora_name="a.safetensors", strength=0.5, model=["1", 0], clip=["1", 1])
    assert read_quietly(with_loader(loader)).prompt == "a red house<lora:a:0.5>"


@pytest.mark.parametrize("strength", ["strong", [], None, True])
def test_a_strength_that_is_not_a_number_is_refused(strength):
    with pytest.raises(BadRecipe, match=r"LoraLoader \(node 8\)"):
        read(with_loader(lora("a.safetensors", ["1", 0], ["1", 1], strength)))


def test_names_that_no_tag_can_have_are_named():
    _, messages = read(with_loader(lora("style #2.safetensors", ["1", 0], ["1", 1])))
    assert messages == [
        "the picture's ComfyUI graph: lora 'style #2' has a name that no tag can have: it is left out; rename the file"
    ]


def test_two_loras_of_one_name_are_named():
    graph = with_loader(lora("a/ink.safetensors", ["9", 0], ["9", 1]), n9=lora("b/ink.pt", ["1", 0], ["1", 1]))
    assert "two different LoRAs are called 'ink'" in read(graph)[1][0]


def test_parts_of_a_base_from_other_files_are_named():
    graph = text_to_image(
        n2=node("CLIPTextEncode", text="a red house", clip=["9", 0]),
        n3=node("CLIPTextEncode", text="blurry", clip=["9", 0]),
        n5=sampler(model=["8", 0]),
        n8=node("UNETLoader", unet_name="unet\\anime.safetensors", weight_dtype="default"),
        n9=node("DualCLIPLoader", clip_name1="clip_g.safetensors", clip_name2="clip_l.safetensors", type="sdxl"),
    )
    recipe, messages = read(graph)
    assert recipe.base == "anime"
    assert messages == [
        "the picture's ComfyUI graph: its text encoders come from other files: clip_g.safetensors, clip_l.safetensors"
    ]
    graph["9"]["inputs"]["type"] = "flux"
    assert "loads text encoders of another family, 'flux'" in read(graph)[1][0]


def test_a_loader_that_is_not_known_is_named():
    graph = text_to_image(n5=sampler(model=["8", 0]), n8=node("NunchakuLoader", path="x"))
    assert "does not support: NunchakuLoader" in read(graph)[1][0]
