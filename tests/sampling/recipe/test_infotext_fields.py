"""Fields of infotext by A1111, its extensions and programs that write it too; labels are those in their pictures."""

import pytest

from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.recipe.recipe import Recipe

LINE = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96"
HOUSE = Recipe(prompt="a house", sampler="Euler", seed=1, width=64, height=96, noise="GPU")


def test_templates_behind_the_fields_are_not_part_of_a_prompt():
    """The extension for dynamic prompts writes the prompt that its wildcards came from behind the fields."""
    text = f"a house\nNegative prompt: no\n{LINE}, Version: v1.6.0\nTemplate: a {{house|boat}}\nNegative Template: no"
    expected = HOUSE.replace(negative="no", version="v1.6.0", template="a {house|boat}", negative_template="no")
    assert Recipe.from_infotext(text) == expected
    assert Recipe.from_infotext(expected.infotext()) == expected
    assert expected.infotext().endswith("\nTemplate: a {house|boat}\nNegative Template: no")


@pytest.mark.parametrize(
    "template", ["a\n{house|boat},\nin snow", '"a" {b|c}', '"a {b|c}"', "a\nSteps: 1, Seed: 2, Size: 8x8"]
)
def test_any_template_comes_back(template):
    recipe = HOUSE.replace(template=template, negative_template=template)
    assert Recipe.from_infotext(recipe.infotext()) == recipe


def test_a_template_of_several_lines_is_read():
    text = f"a house\n{LINE}\nTemplate: a\n{{house|boat}}\n\nNegative Template: no\n{{rain|snow}}"
    assert Recipe.from_infotext(text) == HOUSE.replace(template="a\n{house|boat}", negative_template="no\n{rain|snow}")


def test_a_template_among_the_fields_is_read():
    text = f'a house\n{LINE}, Template: "a {{house|boat}}, b", Negative Template: no'
    assert Recipe.from_infotext(text) == HOUSE.replace(template="a {house|boat}, b", negative_template="no")


def test_another_prompt_has_another_template():
    recipe = HOUSE.replace(template="a {house|boat}", negative_template="no {rain|snow}")
    assert recipe.replace(steps=3).template == recipe.replace(prompt="a house").template == "a {house|boat}"
    changed = recipe.replace(prompt="a boat")
    assert (changed.template, changed.negative_template) == (None, "no {rain|snow}")


def test_fields_go_on_behind_a_line_break():
    text = f"a house\n{LINE}\nClip skip: 2, Hires prompt: a\nb, ENSD: 31337"
    assert Recipe.from_infotext(text) == HOUSE.replace(clip_skip=2, hires_prompt="a\nb", ensd=31337)


def test_a_value_in_quotes_may_have_line_breaks():
    text = f'a house\n{LINE}, Hires prompt: "a: b,\nc: d, e",\nClip skip: 2'
    assert Recipe.from_infotext(text) == HOUSE.replace(clip_skip=2, hires_prompt="a: b,\nc: d, e")


def test_line_breaks_of_windows_are_line_breaks():
    text = f"a house\r\nNegative prompt: blurry\r\n{LINE}, Emphasis: No norm\r\nTemplate: x"
    assert Recipe.from_infotext(text) == HOUSE.replace(negative="blurry", emphasis="No norm", template="x")


def test_settings_are_read_where_a_form_of_one_line_removed_the_line_breaks():
    text = f"a house (red:1.2) Negative prompt: blurry, {LINE}"
    assert Recipe.from_infotext(text) == HOUSE.replace(prompt="a house (red:1.2)", negative="blurry,")


def test_other_text_behind_the_fields_is_named():
    with pytest.warns(VelaturaWarning, match="text behind the settings is not read: 'made with love'"):
        recipe = Recipe.from_infotext(f"a house\n{LINE}\nmade with love\nTemplate: a")
    assert recipe == HOUSE.replace(template="a")


def test_a_line_of_settings_within_a_prompt_is_named():
    with pytest.warns(VelaturaWarning, match="a line that looks like settings, 'Steps: 3, Sampler: a, Seed: 2'"):
        recipe = Recipe.from_infotext(f"a house\nSteps: 3, Sampler: a, Seed: 2\n{LINE}")
    assert recipe == HOUSE.replace(prompt="a house\nSteps: 3, Sampler: a, Seed: 2")


@pytest.mark.parametrize("text", ["a house", "a house: old, Turm: hoch", ""])
def test_a_text_that_is_only_a_prompt_is_read_as_one(text):
    assert Recipe.from_infotext(text) == Recipe(prompt=text)


def test_a_text_that_lacks_its_settings_is_a_prompt_with_a_warning():
    with pytest.warns(VelaturaWarning, match="no line of settings"):
        assert Recipe.from_infotext("a house\nNegative prompt: blurry") == Recipe(prompt="a house", negative="blurry")
    with pytest.warns(VelaturaWarning, match="no line of settings"):
        assert Recipe.from_infotext("a house\nSteps: 3").prompt == "a house\nSteps: 3"


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("Steps: 20, ", "Steps (20)"),
        ("Sampler: Euler, ", "Sampler (Euler a)"),
        ("CFG scale: 7, ", "CFG scale (7)"),
        ("Seed: 1, ", "Seed (a new one)"),
        (", Size: 64x96", "Size (the base's own)"),
    ],
)
def test_a_missing_setting_is_named_with_what_is_used_instead(field, found):
    text = f"a house\n{LINE}".replace(field, "")
    with pytest.warns(VelaturaWarning) as warned:
        Recipe.from_infotext(text)
    assert [str(each.message).endswith(f"used instead: {found}") for each in warned] == [True]


def test_a_setting_without_a_value_is_named():
    with pytest.warns(VelaturaWarning, match="without a value are left out: Clip skip"):
        assert Recipe.from_infotext(f"a house\n{LINE}, Clip skip: , RNG: CPU") == HOUSE.replace(noise="CPU")


@pytest.mark.parametrize("size", ["64", "64x", "64x96x3", "big", "0x0", "00x96", "64.5x96"])
def test_a_size_that_is_none_is_named_and_the_bases_own_is_used(size):
    with pytest.warns(VelaturaWarning) as warned:
        recipe = Recipe.from_infotext(f"a house\n{LINE}".replace("64x96", size))
    assert recipe == HOUSE.replace(width=None, height=None)
    assert [str(each.message) for each in warned] == [
        f"the recipe's Size is {size!r} and not width x height, such as 512x768: the base's own is used instead"
    ]


@pytest.mark.parametrize("size", ["6400000x96", "64x65537", "-64x96", "64x-1"])
def test_a_size_that_no_base_can_make_is_refused(size):
    with pytest.raises(BadRecipe, match=r"width|height"):
        Recipe.from_infotext(f"a house\n{LINE}".replace("64x96", size))


@pytest.mark.parametrize(
    ("field", "word", "expected"),
    [
        ("Seed: 1", "lucky", HOUSE.replace(seed=None, noise="CPU")),
        ("CFG scale: 7", "high", HOUSE),
    ],
)
def test_a_word_in_place_of_a_number_is_named_and_left_out(field, word, expected):
    key = field.partition(":")[0]
    with pytest.warns(VelaturaWarning, match=f"{key} is '{word}' and not a number: .* is used instead"):
        recipe = Recipe.from_infotext(f"a house\n{LINE}".replace(field, f"{key}: {word}"))
    assert recipe == expected


@pytest.mark.parametrize("label", ["Eta DDIM", "Eta"])  # the second was the web UI's until version 1.6
def test_the_eta_of_ddim_has_its_own_label(label):
    text = f"a house\n{LINE}, {label}: 0.5".replace("Euler", "DDIM")
    recipe = Recipe.from_infotext(text)
    assert recipe == HOUSE.replace(sampler="DDIM", eta=0.5)
    assert recipe.infotext().endswith(", Eta DDIM: 0.5")
    assert Recipe.from_infotext(recipe.infotext()) == recipe


def test_the_eta_of_ddim_changes_no_other_sampler():
    assert Recipe.from_infotext(f"a house\n{LINE}, Eta DDIM: 0.5") == HOUSE
    assert Recipe.from_infotext(f"a house\n{LINE}, Eta DDIM: 0.5, Eta: 0.7") == HOUSE.replace(eta=0.7)
    assert ", Eta: 0.7" in HOUSE.replace(eta=0.7).infotext()


@pytest.mark.parametrize(
    "fields",
    [
        'Hashes: {"model": "6ce0161689", "lora:ink": "0123456789"}',
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"A, B [x]: y"}], Civitai metadata: {}',
        "Created Date: 2024-12-22T01:01:01.0222111Z",
        "App: SD.Next, Backend: Diffusers, Pipeline: StableDiffusionPipeline, Operations: txt2img, Parser: native",
        "Batch size: 4, Batch pos: 1",
        "Mask mode: Inpaint masked, Diffusion in Low Bits: Automatic, Hires checkpoint: Use same checkpoint",
        "Hires sampler: Use same sampler, Token merging ratio: 0",
        'Wildcard prompt: "{a|b}, c"',
        "Hires CFG Scale: 7",
        "Hires CFG Scale: 7.0, Downcast alphas_cumprod: False, Pad conds: False",
        "Model: any-v3, Hires checkpoint: any-v3 [6ce0161689]",
        "Script: X/Y/Z plot, X Type: Steps, Fixed X Values: 1",
    ],
)
def test_fields_that_leave_the_picture_as_it_is_are_read_without_a_warning(fields):
    assert Recipe.from_infotext(f"a house\n{LINE}, {fields}").replace(base=None) == HOUSE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("Module 1: sdxl_vae", r"Module 1: sdxl_vae; the picture will be different \(another VAE or text encoder was"),
        (
            "ADetailer model: face_yolov8n.pt, ADetailer confidence: 0.3, ADetailer blur: 4, ADetailer version: 24",
            r"ADetailer confidence: 0.3 and 2 more of the kind; .* \(ADetailer repainted faces",
        ),
        ('ControlNet 0: "Module: canny, Model: x"', r"ControlNet 0: Module: canny.*; .* \(ControlNet guided it"),
        ("Hires CFG Scale: 5", "not supported: Hires CFG Scale: 5; the picture will be different$"),
        (
            "Downcast alphas_cumprod: True, Pad conds: True",
            "not supported: Downcast alphas_cumprod: True, Pad conds: True; details of the picture may differ$",
        ),
        ("FP8 weight: Enable", "not supported: FP8 weight: Enable"),
        ("Token merging ratio: 0.5", "not supported: Token merging ratio: 0.5"),
        ("Diffusion in Low Bits: bnb-nf4", "not supported: Diffusion in Low Bits: bnb-nf4"),
        (
            ", ".join(f"K{number}: 1" for number in range(5000)),
            "not supported: K0: 1, K1: 1, .*, K19: 1 and 4980 others; the picture",
        ),
        ("Some new thing: 3", "not supported: Some new thing: 3; the picture will be different$"),
    ],
)
def test_fields_that_change_the_picture_are_named_once_with_what_they_mean(fields, words):
    with pytest.warns(VelaturaWarning, match=words) as warned:
        assert Recipe.from_infotext(f"a house\n{LINE}, {fields}") == HOUSE
    assert len(warned) == 1


RESOURCES = (
    'Civitai resources: [{"type":"checkpoint","modelVersionId":128078,"modelName":"SD XL","modelVersionName":"v1.0"},'
    '{"type":"lora","weight":0.85,"modelVersionId":210432,"modelName":"Double Exposure"}]'
)


def test_civitais_resources_name_the_base():
    recipe = Recipe.from_infotext(f"a <lora:exposure:0.85>\n{LINE}, {RESOURCES}")
    assert (recipe.base, recipe.prompt) == ("SD XL", "a <lora:exposure:0.85>")
    assert Recipe.from_infotext(f"a <lora:x:1>\n{LINE}, Model: mine, {RESOURCES}").base == "mine"


def test_overlays_of_civitais_generator_that_no_tag_calls_are_listed():
    recipe = Recipe.from_infotext(f"a house\n{LINE}, {RESOURCES}")
    [resource] = recipe.resources
    assert (resource.kind, resource.name, resource.version) == ("lora", "Double Exposure", "210432")
    assert resource.weight == 0.85
    assert Recipe.from_infotext(recipe.infotext()) == recipe
    by_urn = 'Civitai resources: [{"air":"urn:air:sd1:lora:civitai:1@2","weight":1}]'
    [resource] = Recipe.from_infotext(f"a house\n{LINE}, {by_urn}").resources
    assert (resource.version, resource.name) == ("2", "urn:air:sd1:lora:civitai:1@2")
    by_hash = (
        'Civitai resources: [{"type":"hypernetwork","name":"a, b","hash":"ABCDEF0123"},{"type":"embed"},{"type":7}]'
    )
    first, second = Recipe.from_infotext(f"a house\n{LINE}, {by_hash}").resources
    assert (first.kind, first.name, first.hash, first.weight) == ("hypernet", "a, b", "abcdef0123", 1)
    assert (second.kind, second.name, second.version) == ("lora", "", "")
    with pytest.warns(VelaturaWarning, match="Civitai resources cannot be read"):
        Recipe.from_infotext(f"a house\n{LINE}, Civitai resources: [cut")


def test_a_sampler_that_civitai_does_not_know_is_named():
    with pytest.warns(VelaturaWarning, match=r"used instead: Sampler \(Euler a\)"):
        Recipe.from_infotext(f"a house\n{LINE}".replace("Euler", "Undefined"))


def test_a_scheduler_has_other_names_elsewhere():
    assert Recipe.from_infotext(f"a house\n{LINE}, Scheduler: karras").scheduler == "karras"
    assert Recipe.from_infotext(f"a house\n{LINE}, Schedule type: Beta, Scheduler: karras").scheduler == "Beta"


def test_what_follows_a_comma_in_a_value_without_quotes_is_named():
    with pytest.warns(VelaturaWarning, match="these parts of the settings are not read: 'a blue one, at dusk'"):
        recipe = Recipe.from_infotext(f"a house\n{LINE}, Hires prompt: a red one, a blue one, at dusk")
    assert recipe.hires_prompt == "a red one"
