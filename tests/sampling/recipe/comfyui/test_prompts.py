"""Texts of graphs. ComfyUI's rules: round brackets count 1.1, a number replaces what is around it, the rest is text."""

import pytest

from tests.sampling.recipe.comfyui.graphs import node, read, read_quietly, sampler, text_to_image
from velatura.errors import BadRecipe
from velatura.prompts.emphasis import parse_emphasis
from velatura.prompts.prompt import Prompt
from velatura.sampling.recipe.comfyui.graph import Report
from velatura.sampling.recipe.comfyui.prompts import file_stem, split_emphasis, translate_text


def fragments(text):
    """Return words and emphasis as our prompts read the translated text."""
    prompt = translate_text(text, Report()).prompt
    schedule = Prompt.parse(prompt).schedule(10)
    assert len(schedule) == 1
    assert [text.weight for text in schedule[0].texts] == [1]
    return [(words, round(emphasis, 4)) for words, emphasis in schedule[0].texts[0].fragments if words]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red house", [("a red house", 1)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.21)]),
        ("a (b:1.3) c", [("a ", 1), ("b", 1.3), (" c", 1)]),
        ("((a:1.2))", [("a", 1.2)]),  # 1.32 in A1111
        ("(a (b:1.3):1.2)", [("a ", 1.2), ("b", 1.3)]),
        ("(a (b) c:2)", [("a ", 2), ("b", 2.2), (" c", 2)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:1.5)", [(":1.5", 1.1)]),
        ("(a:0)", [("a", 0)]),
        ("(a:-1)", [("a", -1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:1e1)", [("a", 10)]),
        ("\\(a\\)", [("(a)", 1)]),
        ("(a \\(b\\):1.2)", [("a (b)", 1.2)]),
        ("[a]", [("[a]", 1)]),
        ("[a:b:0.5]", [("[a:b:0.5]", 1)]),
        ("[a|b]", [("[a|b]", 1)]),
        ("a\\b", [("a\\b", 1)]),
        ("a (b", [("a (b", 1)]),
        ("a) b", [("a) b", 1)]),
        ("a) (b:1.2)", [("a) (b:1.2)", 1)]),  # the bracket that closes nothing keeps the next from opening
        ("cats AND dogs", [("cats and dogs", 1)]),
        ("cats BREAK dogs", [("cats break dogs", 1)]),
        ("a house:1.2", [("a house:1.2", 1)]),
        ("a house: 2", [("a house: 2", 1)]),
        ("a:2 (b:1.5)", [("a:2 ", 1), ("b", 1.5)]),
        ("", []),
        ("()", []),
    ],
)
def test_emphasis_is_comfyuis(text, expected):
    assert fragments(text) == expected


def test_plain_emphasis_stays_as_it_is_written():
    text = "masterpiece, (best quality:1.2), (sharp), a house"
    assert translate_text(text, Report()) == (text, True, "ComfyUI")
    assert translate_text("a house, sharp", Report()) == ("a house, sharp", False, "ComfyUI")


def test_emphasis_is_applied_as_comfyui_does():
    recipe = read_quietly(text_to_image(n2=node("CLIPTextEncode", text="a (red:1.3) house", clip=["1", 1])))
    assert (recipe.prompt, recipe.emphasis) == ("a (red:1.3) house", "ComfyUI")
    assert read_quietly(text_to_image()).emphasis == "Original"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("embedding:neon", "neon"),
        ("a house, embedding:style/neon.pt, sharp", "a house, neon, sharp"),
        ("a house\nembedding:neon.safetensors", "a house\nneon"),
        ("(embedding:neon:1.2)", "(neon:1.2)"),
        ("(embedding:style\\neon.pt:1.2), a", "(neon:1.2), a"),
        ("embedding:neon\\(v2\\)", "neon\\(v2\\)"),
    ],
)
def test_embeddings_are_named_by_their_file_alone(text, prompt):
    recipe, messages = read(text_to_image(n3=node("CLIPTextEncode", text=text, clip=["1", 1])))
    assert recipe.negative == prompt
    assert "its prompts name the embedding 'neon" in messages[0]


@pytest.mark.parametrize("text", ["myembedding:neon", "a,embedding:neon"])
def test_embeddings_stand_at_the_beginning_of_a_word(text):
    assert read_quietly(text_to_image(n3=node("CLIPTextEncode", text=text, clip=["1", 1]))).negative == text


def test_tags_and_comments_are_only_letters_in_comfyui_and_are_named():
    graph = text_to_image(n2=node("CLIPTextEncode", text="a red house <lora:ink:0.8>, #1", clip=["1", 1]))
    recipe, messages = read(graph)
    assert recipe.prompt == "a red house , 1"
    assert messages[0] == (
        "the picture's ComfyUI graph: <lora:ink:0.8> in its prompt calls nothing in ComfyUI: it is left out"
    )
    assert "the character #, which begins a comment here" in messages[1]


def test_a_line_that_looks_like_a_negative_prompt_stays_in_the_prompt():
    graph = text_to_image(n2=node("CLIPTextEncode", text="a house\nNegative prompt: trees", clip=["1", 1]))
    recipe = read_quietly(graph)
    assert (recipe.prompt, recipe.negative) == ("a house Negative prompt: trees", "blurry")
    graph["2"]["inputs"]["text"] = "Negative prompt: trees"
    with pytest.raises(BadRecipe, match="its prompt begins with 'Negative prompt:'"):
        read(graph)


@pytest.mark.parametrize("text", ["{" + "|" * 300_000, "<" + "a" * 300_000, "a" * 300_000 + "<b"])
def test_long_texts_that_only_begin_a_choice_or_a_tag_are_read_in_one_pass(text):
    report = Report()
    translate_text(text, report)
    assert not report.remarks


def test_brackets_without_end_are_refused():
    with pytest.raises(BadRecipe, match="more than 100 brackets inside each other"):
        split_emphasis("(" * 200 + "a" + ")" * 200)
    assert split_emphasis("(" * 10_000)[0].emphasis == 1


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.safetensors", "a"),
        ("x\\y/a.b.ckpt", "a.b"),
        ("a v1.5", "a v1.5"),
        ("a.PT", "a"),
    ],
)
def test_names_of_files_lose_folder_and_suffix(name, stem):
    assert file_stem(name) == stem


@pytest.mark.parametrize(
    ("text_node", "text"),
    [
        (node("PrimitiveStringMultiline", value="a dog"), "a dog"),
        (node("Text Multiline", text="a dog"), "a dog"),
        (node("CR Prompt Text", prompt="a dog"), "a dog"),
        (node("easy positive", positive="a dog"), "a dog"),
        (node("ShowText|pysssss", text=["9", 0]), "a cat"),
        (
            node("ImpactWildcardProcessor", wildcard_text="__a__", populated_text="a dog", mode="populate", seed=3),
            "a dog",
        ),
        (node("StringConcatenate", string_a=["9", 0], string_b="at dusk", delimiter=", "), "a cat, at dusk"),
        (node("Text Concatenate", delimiter=", ", clean_whitespace="true", text_a=" b ", text_c=["9", 0]), "b, a cat"),
        (node("JoinStrings", string1="b", string2=["9", 0], delimiter=" "), "b a cat"),
        (node("CR Text Concatenate", text1="b", text2=["9", 0], separator=" + "), "b + a cat"),
    ],
    ids=lambda value: value["class_type"] if isinstance(value, dict) else "",
)
def test_texts_come_from_other_nodes(text_node, text):
    graph = text_to_image(
        n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]), n8=text_node, n9=node("PrimitiveString", value="a cat")
    )
    assert read_quietly(graph).prompt == text


def test_a_text_comes_from_a_loader_without_the_tags_that_it_reads():
    loader = node("LoraTagLoader", text="a dog <lora:x:1>", model=["1", 0], clip=["1", 1])
    graph = text_to_image(
        n2=node("CLIPTextEncode", text=["8", 2], clip=["8", 1]), n5=sampler(model=["8", 0]), n8=loader
    )
    graph["3"]["inputs"]["clip"] = ["8", 1]
    assert read_quietly(graph).prompt == "a dog<lora:x:1>"


def test_a_text_that_is_made_anew_each_time_is_named():
    graph = text_to_image(
        n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
        n3=node("CLIPTextEncode", text=["8", 1], clip=["1", 1]),
        n8=node("SDXLPromptStyler", text_positive="a dog", text_negative="cats", style="base", log_prompt="No"),
    )
    recipe, messages = read(graph)
    assert (recipe.prompt, recipe.negative) == ("a dog", "cats")
    assert messages == [
        "the picture's ComfyUI graph: SDXLPromptStyler changed the prompt in a way that the picture does not contain"
    ]


def test_a_text_that_no_node_holds_is_refused_by_its_node():
    graph = text_to_image(
        n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]), n8=node("OllamaGenerate", model="x", url="y", seed=1)
    )
    with pytest.raises(BadRecipe, match=r"its prompt comes from OllamaGenerate \(node 8\)"):
        read(graph)


def test_texts_in_a_circle_or_doubled_without_end_are_refused():
    circle = node("StringConcatenate", string_a=["8", 0], string_b="a", delimiter="")
    graph = text_to_image(n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]), n8=circle)
    with pytest.raises(BadRecipe, match="its texts form a circle"):
        read(graph)
    doubling = {
        f"n{key}": node("StringConcatenate", string_a=[str(key - 1), 0], string_b=[str(key - 1), 0], delimiter="")
        for key in range(9, 60)
    }
    graph = text_to_image(
        n2=node("CLIPTextEncode", text=["59", 0], clip=["1", 1]), n8=node("PrimitiveString", value="a"), **doubling
    )
    with pytest.raises(BadRecipe, match=r"too large|longer than"):
        read(graph)


def text(words):
    return node("CLIPTextEncode", text=words, clip=["1", 1])


def test_combined_texts_are_joined_by_and_with_equal_parts():
    """ComfyUI averages the predictions of combined texts, and AND adds them up."""
    graph = text_to_image(
        n5=sampler(positive=["8", 0]),
        n8=node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["9", 0]),
        n9=text("a dog"),
    )
    recipe = read_quietly(graph)
    assert recipe.prompt == "a red house :0.5 AND a dog :0.5"
    assert [(part.words, part.weight) for part in Prompt.parse(recipe.prompt).subprompts] == [
        ("a red house", 0.5),
        (" a dog", 0.5),
    ]


def test_concatenated_texts_are_joined_by_break():
    graph = text_to_image(
        n5=sampler(positive=["8", 0]),
        n8=node("ConditioningConcat", conditioning_to=["2", 0], conditioning_from=["9", 0]),
        n9=text("a dog"),
    )
    recipe = read_quietly(graph)
    assert recipe.prompt == "a red house BREAK a dog"
    assert [words for words, _ in parse_emphasis(recipe.prompt)] == ["a red house", "BREAK", "a dog"]


@pytest.mark.parametrize(
    ("strength", "prompt", "count"), [(1.0, "a red house", 0), (0.0, "a dog", 0), (0.7, "a red house", 1)]
)
def test_an_average_of_texts_is_named_unless_it_is_one_of_them(strength, prompt, count):
    graph = text_to_image(
        n5=sampler(positive=["8", 0]),
        n8=node(
            "ConditioningAverage",
            conditioning_to=["2", 0],
            conditioning_from=["9", 0],
            conditioning_to_strength=strength,
        ),
        n9=text("a dog"),
    )
    recipe, messages = read(graph)
    assert recipe.prompt == prompt
    assert len(messages) == count


def test_the_slot_decides_which_side_a_controlnet_gives():
    controlnet = node(
        "ControlNetApplyAdvanced",
        positive=["2", 0],
        negative=["3", 0],
        control_net=["9", 0],
        image=["10", 0],
        strength=1,
    )
    graph = text_to_image(n5=sampler(positive=["8", 0], negative=["8", 1]), n8=controlnet)
    recipe, messages = read(graph)
    assert (recipe.prompt, recipe.negative) == ("a red house", "blurry")
    assert "does not support: ControlNetApplyAdvanced" in messages[0]
    graph["5"] = sampler(positive=["8", 1], negative=["8", 0])
    recipe, _ = read(graph)
    assert (recipe.prompt, recipe.negative) == ("blurry", "a red house")


def test_the_slot_decides_for_unknown_nodes_too_and_they_are_named():
    adapter = node("ApplyInstantID", model=["1", 0], positive=["2", 0], negative=["3", 0], image=["10", 0])
    graph = text_to_image(n5=sampler(model=["8", 0], positive=["8", 1], negative=["8", 2]), n8=adapter)
    recipe, messages = read(graph)
    assert (recipe.prompt, recipe.negative) == ("a red house", "blurry")
    assert "does not support: ApplyInstantID" in messages[0]
    graph["5"] = sampler(positive=["8", 0], negative=["8", 2])
    with pytest.raises(BadRecipe, match="its positive prompt comes from ApplyInstantID"):
        read(graph)


def test_zeros_for_the_negative_prompt_are_named():
    graph = text_to_image(n5=sampler(negative=["8", 0]), n8=node("ConditioningZeroOut", conditioning=["2", 0]))
    recipe, messages = read(graph)
    assert recipe.negative == ""
    assert "replaces the negative prompt by zeros, which is what an empty negative prompt means for SDXL" in messages[0]


def test_texts_for_both_encoders_of_sdxl_are_read():
    encoder = node("CLIPTextEncodeSDXL", text_g="a red house", text_l="a red house", clip=["1", 1])
    encoder["inputs"] |= {"width": 512, "height": 768, "target_width": 512, "target_height": 768}
    assert read_quietly(text_to_image(n2=encoder)).prompt == "a red house"
    encoder["inputs"]["text_l"] = "a dog"
    assert "another text for SDXL's first encoder" in read(text_to_image(n2=encoder))[1][0]


@pytest.mark.parametrize("names", [("width", "height"), ("target_width", "target_height")])
def test_another_size_that_is_told_to_sdxl_is_named(names):
    encoder = node("CLIPTextEncodeSDXL", text_g="a red house", text_l="a red house", clip=["1", 1])
    encoder["inputs"] |= dict.fromkeys(names, 2048)
    _, messages = read(text_to_image(n2=encoder))
    assert len(messages) == 1
    assert f"tells SDXL of a picture of 2048x2048 ({names[0]}), and velatura of 512x768" in messages[0]


def test_texts_that_an_extension_reads_as_a1111_does_stay_as_they_are():
    encoder = node("smZ CLIPTextEncode", text="a [red:blue:0.5] ((house))", parser="A1111", clip=["1", 1])
    recipe = read_quietly(text_to_image(n2=encoder))
    assert (recipe.prompt, recipe.emphasis) == ("a [red:blue:0.5] ((house))", "Original")
    encoder["inputs"]["mean_normalization"] = False
    assert read_quietly(text_to_image(n2=encoder)).emphasis == "No norm"
    graph = text_to_image(n2=encoder, n3=node("CLIPTextEncode", text="(blurry)", clip=["1", 1]))
    assert "its texts apply emphasis in different ways: 'No norm' is used for all" in read(graph)[1][0]
