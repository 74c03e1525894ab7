"""Pictures of other programs; the names of their settings are those in public pictures and in these programs' docs."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.recipe.programs.draw_things import comment_in_xmp
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.samplers import SAMPLERS

SIZE = (512, 768)
HOUSE = Recipe(prompt="a house", negative="blurry", sampler="DPM++ 2M", scheduler="karras", steps=25, guidance=6.5)
HOUSE = HOUSE.replace(seed=7, width=512, height=768)


@pytest.fixture
def read(tmp_path):
    """Return a function that reads the recipe of a PNG with some text chunks; objects are written as JSON."""

    def read_chunks(size=SIZE, **chunks):
        png = PngInfo()
        for name, value in chunks.items():
            png.add_itxt(name.replace("_", "-") if name == "sd_metadata" else name, as_text(value))
        Image.new("RGB", size).save(tmp_path / "picture.png", pnginfo=png)
        return Recipe.from_image(tmp_path / "picture.png")

    return read_chunks


def as_text(value):
    return value if isinstance(value, str) else json.dumps(value)


SWARM = {
    "prompt": "a house",
    "negativeprompt": "blurry",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0.safetensors",
    "seed": 7,
    "steps": 25,
    "cfgscale": 6.5,
    "aspectratio": "2:3",
    "width": 512,
    "height": 768,
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "automaticvae": True,
    "swarm_version": "0.9.3.1",
}


def swarm(**changes):
    return {"sui_image_params": {**SWARM, **changes}, "sui_extra_data": {"date": "2024-10-01"}, "sui_models": []}


def test_swarmui_is_read(read):
    assert read(parameters=swarm()) == HOUSE.replace(base="OfficialStableDiffusion/sd_xl_base_1.0")


@pytest.mark.parametrize(
    ("loras", "weights"),
    [
        (["ink.safetensors", "style/neon"], ["0.8", "1"]),
        ("ink.safetensors,style/neon", "0.8,1"),
        (["ink", "style/neon"], ["0.8"]),
    ],
)
def test_swarmuis_loras_become_tags(read, loras, weights):
    recipe = read(parameters=swarm(loras=loras, loraweights=weights))
    assert recipe.prompt == "a house <lora:ink:0.8> <lora:style/neon:1>"


def test_swarmuis_text_weights_come_first_as_in_our_tags(read):
    recipe = read(parameters=swarm(loras=["ink"], loraweights=["0.8"], loratencweights=["0.5"]))
    assert recipe.prompt == "a house <lora:ink:0.5:0.8>"
    assert read(parameters=swarm(prompt="a <lora:ink:0.8:0.5>")).prompt == "a <lora:ink:0.5:0.8>"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("a <embed:easy_one.pt> house", "a easy_one house"),
        ("a (<embedding:folder/easy>:1.2)", "a (easy:1.2)"),
        ("a \0swarmembed:easy\0end house", "a easy house"),
        ("a <alternate:cat, dog>", "a [cat|dog]"),
        ("a <fromto[0.5]:cat, dog>", "a [cat:dog:0.5]"),
        ("a <alternate:<fromto[0.5]:cat|dog>, fox>", "a [[cat:dog:0.5]|fox]"),
        ("a<comment:note> house", "a house"),
        ("a<break>house", "a BREAK house"),
    ],
)
def test_swarmuis_prompt_syntax_becomes_ours(read, theirs, ours):
    assert read(parameters=swarm(prompt=theirs)).prompt == ours


# in ComfyUI, SwarmUI's backend, a number replaces the emphasis outside its bracket, and a lone bracket is a letter
@pytest.mark.parametrize(
    ("theirs", "ours", "emphasis"),
    [
        ("a (red:1.2) house", "a (red:1.2) house", "ComfyUI"),
        ("a ((red:1.2) house:1.4)", "a (red:1.2)( house:1.4)", "ComfyUI"),
        ("a ((red)) house", "a (red:1.21) house", "ComfyUI"),
        ("a <alternate:(cat:1.2), dog>", "a [(cat:1.2)|dog]", "ComfyUI"),
        ("a [red] house", "a \\[red\\] house", "Original"),
        ("a house :(", "a house :\\(", "Original"),
        ("a \\(red\\) house", "a \\(red\\) house", "Original"),
    ],
)
def test_swarmuis_emphasis_is_that_of_comfyui(read, theirs, ours, emphasis):
    recipe = read(parameters=swarm(prompt=theirs))
    assert (recipe.prompt, recipe.emphasis) == (ours, emphasis)
    assert read(parameters=swarm(negativeprompt=theirs)).emphasis == emphasis


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_fooocus_applies_emphasis_as_the_webui_does(read):  # as its readme says
    values = {"prompt": "a (red:1.2) house", "performance": "Speed", "steps": 25, "base_model": "x"}
    assert read(parameters={**values, "sharpness": 2, "seed": 7}).emphasis == "Original"


def test_other_settings_of_swarmui_are_read(read):
    params = swarm(clipstopatlayer=-2, variationseed=9, variationseedstrength=0.2, seamlesstileable="true", vae="None")
    recipe = read(parameters=params)
    assert (recipe.clip_skip, recipe.variation_seed, recipe.variation_strength, recipe.tiling) == (2, 9, 0.2, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"refinermodel": "x", "refinerupscale": 1.5},
            "refinermodel: x; refinerupscale: 1.5: its picture will",
        ),
        ({"prompt": "a house <segment:face> smiling"}, "the part of the prompt from <segment:face> on"),
        ({"prompt": "a <random:cat,dog>"}, "the tags <random>"),
        ({"initimagecreativity": 0.6}, "that it started from an image"),
        ({"loras": ["ink"], "lorasectionconfinement": ["1"]}, "LoRAs for a part of the picture"),
        ({"width": 256, "height": 384}, "that it was resized from 256x384 to 512x768"),
        ({"freeuapplyto": "Base"}, "freeuapplyto: Base"),
    ],
)
def test_what_swarmui_does_and_velatura_does_not_is_named_once(read, changes, words):
    with pytest.warns(VelaturaWarning, match="by SwarmUI.*" + words) as warned:
        read(parameters=swarm(**changes))
    assert len(warned) == 1


FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 2,
    "full_negative_prompt": ["blurry"],
    "full_prompt": ["a house"],
    "guidance_scale": 6.5,
    "loras": [["sd_xl_offset_example-lora_1.0", 0.1, "4852686128"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "blurry",
    "performance": "Speed",
    "prompt": "a house",
    "prompt_expansion": "",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(512, 768)",
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "seed": "7",
    "sharpness": 2.0,
    "steps": 25,
    "styles": "[]",
    "vae": "Default (model)",
    "version": "Fooocus v2.3.1",
}


def test_fooocus_is_read_with_its_own_ways_named(read):
    with pytest.warns(VelaturaWarning, match="by Fooocus.*not support its sharpness and ADM guidance: its") as warned:
        recipe = read(parameters=FOOOCUS, fooocus_scheme="fooocus")
    assert len(warned) == 1
    assert recipe == HOUSE.replace(
        prompt="a house <lora:sd_xl_offset_example-lora_1.0:0.1>",
        base="juggernautXL_v8Rundiffusion",
        base_hash="aeb7e9e689",
        clip_skip=2,
    )


def test_labels_of_fooocus_log_are_read(read):
    log = {
        "Prompt": "a house",
        "Negative Prompt": "blurry",
        "Styles": "['Fooocus V2']",
        "Performance": "Speed",
        "Resolution": "(512, 768)",
        "Sharpness": 2.0,
        "Guidance Scale": 6.5,
        "Steps": 25,
        "Base Model": "jugger.safetensors",
        "Refiner Model": "None",
        "Refiner Switch": 0.8,
        "Sampler": "dpmpp_2m",
        "Scheduler": "karras",
        "Seed": 7,
        "LoRA 1": "ink.safetensors : 0.5",
        "Version": "2.1.865",
    }
    with pytest.warns(VelaturaWarning, match=r"its styles \(Fooocus V2\); its sharpness: its"):
        assert read(parameters=log) == HOUSE.replace(prompt="a house <lora:ink:0.5>", base="jugger")


def test_fooocus_in_its_other_scheme_is_infotext_with_its_loras(read):
    text = (
        "a house\nNegative prompt: blurry\nSteps: 25, Sampler: DPM++ 2M, Scheduler: karras, Seed: 7, Size: 512x768, "
        'CFG scale: 6.5, CLIP Skip: 2, RNG: CPU, Lora hashes: "ink: 4852686128", Lora weights: "ink: 0.1", '
        "Raw prompt: a house, Styles: [], Version: Fooocus v2.3.1"
    )
    recipe = read(parameters=text, fooocus_scheme="a1111")
    assert recipe.prompt == "a house <lora:ink:0.1>"
    assert (recipe.clip_skip, recipe.scheduler, recipe.guidance) == (2, "karras", 6.5)


INVOKE = {
    "app_version": "3.3.0post3",
    "generation_mode": "txt2img",
    "positive_prompt": "a house",
    "negative_prompt": "blurry",
    "width": 512,
    "height": 768,
    "seed": 7,
    "rand_device": "cpu",
    "cfg_scale": 6.5,
    "steps": 25,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 0,
    "model": {"model_name": "anime", "base_model": "sd-1", "model_type": "main"},
    "controlnets": [],
    "ipAdapters": [],
    "loras": [{"lora": {"model_name": "ink", "base_model": "sd-1"}, "weight": 0.75}],
    "vae": {"model_name": "sd-vae-ft-mse", "base_model": "sd-1"},
}
KARRAS = HOUSE.replace(scheduler="Karras")


def test_invokeai_is_read(read):
    recipe = KARRAS.replace(prompt="a house <lora:ink:0.75>", base="anime", vae="sd-vae-ft-mse")
    assert read(invokeai_metadata=INVOKE) == recipe
    newer = {"model": {"key": "1", "name": "anime", "type": "main"}, "clip_skip": 1, "vae": None, "rand_device": "cuda"}
    loras = [{"model": {"name": "ink", "type": "lora"}, "weight": 0.75}]
    recipe = read(invokeai_metadata={**INVOKE, **newer, "loras": loras})
    assert recipe == KARRAS.replace(prompt="a house <lora:ink:0.75>", base="anime", clip_skip=2, noise="GPU")


def test_a_lora_of_invokeai_that_is_switched_off_is_left_out(read):
    loras = [{"model": {"name": "ink", "type": "lora"}, "weight": 0.75, "is_enabled": False}]
    assert read(invokeai_metadata={**INVOKE, "loras": loras}).prompt == "a house"


def test_embeddings_of_invokeai_are_words(read):
    metadata = {**INVOKE, "positive_prompt": "a <easy-one> house withLora(neon, 0.5)", "loras": [], "vae": None}
    assert read(invokeai_metadata=metadata).prompt == "a easy-one house <lora:neon:0.5>"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positive_prompt": "a house++ at dusk"}, "InvokeAI's emphasis in the prompt"),
        ({"positive_prompt": "a (red house)1.3"}, "InvokeAI's emphasis in the prompt"),
        ({"positive_prompt": "a (red house:1.3)"}, "round brackets in the prompt, which InvokeAI"),
        ({"controlnets": [{"control_model": "canny"}]}, "controlnets: "),
        ({"strength": 0.6}, "started from an image"),
        ({"cfg_rescale_multiplier": 0.7}, "cfg_rescale_multiplier: 0.7"),
        ({"positive_style_prompt": "in oil"}, "another prompt for the second text encoder"),
        ({"hrf_enabled": True}, "hrf_enabled: true"),
        ({"seamless_x": True, "seamless_y": False}, r"tiling in one direction \(seamless_x\)"),
        ({"vae": {"name": "x", "tiles": 4}}, "vae.tiles: 4: its picture"),
        ({"loras": [{"lora": {"name": "ink", "layers": "mid"}, "weight": 1}]}, "lora 1.model.layers: mid: its"),
    ],
)
def test_what_invokeai_does_and_velatura_does_not_is_named_once(read, changes, words):
    with pytest.warns(VelaturaWarning, match="by InvokeAI.*" + words) as warned:
        read(invokeai_metadata={**INVOKE, **changes})
    assert len(warned) == 1


SD_METADATA = {
    "model": "stable diffusion",
    "model_weights": "stable-diffusion-1.5",
    "model_hash": "cc6cb27103",
    "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.2.4",
    "image": {
        "prompt": [{"prompt": "a house [blurry]", "weight": 1.0}],
        "steps": 25,
        "cfg_scale": 6.5,
        "threshold": 0,
        "perlin": 0,
        "width": 512,
        "height": 768,
        "seed": 7,
        "seamless": False,
        "hires_fix": False,
        "type": "txt2img",
        "postprocessing": None,
        "sampler": "k_euler_a",
        "variations": [],
    },
}
OLD_INVOKE = HOUSE.replace(sampler="Euler a", scheduler=None, noise="GPU")


@pytest.mark.parametrize("prompt", [[{"prompt": "a house [blurry]", "weight": 1.0}], "a house [blurry]"])
def test_invokeai_2_is_read(read, prompt):
    metadata = {**SD_METADATA, "image": {**SD_METADATA["image"], "prompt": prompt}}
    assert read(sd_metadata=metadata) == OLD_INVOKE.replace(base="stable-diffusion-1.5")


@pytest.mark.parametrize(
    "options", ["-s 25 -S 7 -W 512 -H 768 -C 6.5 -A k_euler_a", "-s25 -S7 -W512 -H768 -C6.5 -Ak_euler_a"]
)
def test_invokeai_1_is_read(read, options):
    assert read(Dream=f'"a house [blurry]" {options}') == OLD_INVOKE
    with pytest.warns(VelaturaWarning, match=r"by InvokeAI.*-G: 0.8"):
        assert read(Dream=f'"a house [blurry]" {options} -G 0.8') == OLD_INVOKE


NOVELAI = {"steps": 25, "scale": 6.5, "seed": 7, "sampler": "k_dpmpp_2m", "uc": "blurry", "width": 512, "height": 768}
NAI_HOUSE = HOUSE.replace(scheduler=None, clip_skip=2, ensd=31337, noise="GPU")


def test_novelai_is_read(read):
    assert read(Software="NovelAI", Description="a house", Comment=NOVELAI) == NAI_HOUSE
    newer = {
        **NOVELAI,
        "noise_schedule": "karras",
        "sm": False,
        "sm_dyn": False,
        "uncond_scale": 1.0,
        "cfg_rescale": 0.0,
    }
    recipe = read(Software="NovelAI", Description="a house", Comment={**newer, "prompt": "a house"})
    assert recipe == NAI_HOUSE.replace(scheduler="karras")


def test_novelai_4_is_read_and_its_characters_are_named(read):
    captions = {"caption": {"base_caption": "a house", "char_captions": []}, "use_coords": False}
    negative = {"caption": {"base_caption": "blurry", "char_captions": []}}
    settings = {**NOVELAI, "v4_prompt": captions, "v4_negative_prompt": negative, "uc": ""}
    assert read(Software="NovelAI", Description="a house", Comment=settings) == NAI_HOUSE
    captions["caption"]["char_captions"] = [{"char_caption": "a girl", "centers": []}]
    with pytest.warns(VelaturaWarning, match="prompts of characters"):
        read(Software="NovelAI", Description="a house", Comment=settings)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("a {red} house", "a (red:1.05) house"),
        ("a {{red}} house", "a ((red:1.05):1.05) house"),
        ("a [red] house", "a (red:0.9524) house"),
        ("a cat (animal)", r"a cat \(animal\)"),
        (r"a cat \(animal\)", r"a cat \(animal\)"),
    ],
)
def test_emphasis_of_novelai_becomes_ours(read, theirs, ours):
    """A brace multiplies by 1.05, a bracket divides by it (NovelAI's documentation, "Strengthening and Weakening")."""
    assert read(Software="NovelAI", Description=theirs, Comment=NOVELAI).prompt == ours


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sm": True}, "SMEA"),
        ({"strength": 0.7}, "strength: 0.7"),
        ({"prompt": "1.3::red::house"}, "emphasis by numbers"),
        ({"prompt": "a {house"}, "not closed"),
        ({"cfg_rescale": 0.4}, "cfg_rescale: 0.4"),
    ],
)
def test_what_novelai_does_and_velatura_does_not_is_named_once(read, changes, words):
    with pytest.warns(VelaturaWarning, match="by NovelAI.*" + words) as warned:
        read(Software="NovelAI", Description="a house", Comment={**NOVELAI, **changes})
    assert len(warned) == 1


EASY = {
    "prompt": "a house",
    "negative_prompt": "blurry",
    "seed": 7,
    "used_random_seed": True,
    "num_outputs": 1,
    "num_inference_steps": 25,
    "guidance_scale": 6.5,
    "width": 512,
    "height": 768,
    "vram_usage_level": "balanced",
    "use_stable_diffusion_model": "sd-v1-4",
    "use_vae_model": "",
    "use_hypernetwork_model": "neon",
    "hypernetwork_strength": 0.4,
    "use_lora_model": ["ink"],
    "lora_alpha": [0.5],
    "sampler_name": "dpmpp_2m",
    "clip_skip": True,
    "prompt_strength": 0.8,
}
EASY_HOUSE = HOUSE.replace(
    prompt="a house <hypernet:neon:0.4> <lora:ink:0.5>", scheduler=None, clip_skip=2, base="sd-v1-4"
)


def test_easy_diffusion_is_read_from_chunks_and_from_json(read):
    assert read(
        **{key: str(value) for key, value in EASY.items() if not isinstance(value, list)}
    ) == EASY_HOUSE.replace(prompt="a house <hypernet:neon:0.4>")
    assert read(parameters=EASY) == EASY_HOUSE


def test_labels_of_easy_diffusion_are_read(read):
    labels = {
        "Prompt": "a house",
        "Negative Prompt": "blurry",
        "Seed": 7,
        "Steps": 25,
        "Guidance Scale": 6.5,
        "Width": 512,
        "Height": 768,
        "Sampler": "dpmpp_2m",
        "Stable Diffusion model": "sd-v1-4",
        "Clip Skip": "True",
        "Hypernetwork model": "neon",
        "Hypernetwork Strength": 0.4,
        "LoRA model": "ink",
        "LoRA Strength": 0.5,
    }
    assert read(parameters=labels) == EASY_HOUSE


def test_a_space_that_uses_the_names_of_diffusers_is_read(read):
    settings = {
        "prompt": "a house",
        "negative_prompt": "blurry",
        "resolution": "512 x 768",
        "guidance_scale": 6.5,
        "num_inference_steps": 25,
        "seed": 7,
        "sampler": "DPM++ 2M Karras",
    }
    assert read(metadata=settings) == KARRAS.replace(noise="GPU")


DRAW_THINGS = {
    "c": "a house",
    "uc": "blurry",
    "sampler": "DPM++ 2M Karras",
    "scale": 6.5,
    "seed": 7,
    "seed_mode": "Torch CPU Compatible",
    "size": "512x768",
    "steps": 25,
    "strength": 1,
    "model": "sd_v1.5_f16.ckpt",
    "lora": [{"model": "ink_lora_f16.ckpt", "weight": 0.6}],
    "mask_blur": 1.5,
    "clip_skip": 1,
    "control": [],
}
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description><exif:UserComment><rdf:Alt>
<rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"""


def test_draw_things_is_read_from_xmp(read):
    xmp = XMP.format(json.dumps(DRAW_THINGS).replace('"', "&quot;"))
    recipe = KARRAS.replace(prompt="a house <lora:ink_lora_f16:0.6>", base="sd_v1.5_f16")
    assert read(**{"XML:com.adobe.xmp": xmp}) == recipe
    with pytest.warns(VelaturaWarning, match="its seed mode 'Scale Alike'"):
        read(parameters={**DRAW_THINGS, "seed_mode": "Scale Alike"})


def test_settings_beside_the_graph_of_civitais_generator_are_read(read):
    metadata = {"prompt": "a house", "negativePrompt": "blurry", "steps": 25, "cfgScale": 6.5, "sampler": "dpmpp_2m"}
    graph = {
        "resource-stack": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "urn:air:sd1"}},
        "11": {"class_type": "KSampler", "inputs": {"seed": 7}},
        "extra": {"airs": []},
        "extraMetadata": json.dumps({**metadata, "scheduler": "karras", "workflowId": "txt2img"}),
    }
    assert read(parameters=graph) == HOUSE
    graph["extraMetadata"] = json.dumps({**metadata, "resources": [{"modelVersionId": 12, "strength": 0.8}]})
    with pytest.warns(VelaturaWarning, match="the resource with model version 12 at 0.8"):
        read(parameters=graph)


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        (
            {"parameters": {"colour": "red"}},
            r"png: its metadata is JSON of an unknown program \(it has colour\)",
        ),
        ({"parameters": {"software": "PaintNet", "x": 1}}, "JSON of PaintNet"),
        ({"parameters": json.dumps(swarm())[:100]}, "its parameters is JSON that is cut short or damaged"),
        ({"parameters": {"sui_image_params": 3}}, "SwarmUI has sui_image_params: 3, which is not an object"),
        ({"parameters": {"sui_image_params": {}}}, "SwarmUI has no prompt"),
        ({"Description": "a house --v 6.0 Job ID: 7c1"}, "the picture is by Midjourney"),
        ({"Description": "a house", "Author": "Midjourney"}, "the picture is by Midjourney"),
        ({"Software": "Adobe Firefly", "Title": "a house"}, "the picture is by Adobe Firefly"),
        ({"XML:com.adobe.xmp": '<x xmp:CreatorTool="ideogram.ai"/>'}, "the picture is by Ideogram"),
        ({"comment": "a house, midjourney style"}, "only the comment 'a house, midjourney style'"),
        ({"Software": "NovelAI", "Comment": "cut"}, "by NovelAI, and its Comment is not JSON"),
        ({"invokeai_metadata": "{"}, "by InvokeAI, and its invokeai_metadata is not JSON"),
        ({"Dream": "a house -s 3"}, "no prompt in quotes"),
        ({"comment": "Screenshot"}, "contains no recipe, only the comment 'Screenshot'"),
        ({"Title": "a house"}, "contains no recipe;"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(read, chunks, words):
    with pytest.raises(BadRecipe, match=words):
        read(**chunks)


@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
@pytest.mark.parametrize("prompt", ["portrait, midjourney style", "the logo of OpenAI", "a form with Job ID: 7c1"])
def test_words_of_a_prompt_name_no_program(read, prompt):
    assert read(parameters=prompt).prompt == prompt
    assert Recipe.from_text(prompt).prompt == prompt


@pytest.mark.parametrize(
    ("xmp", "comment"),
    [
        ('<x exif:UserComment="a &amp; b"/>', "a & b"),
        ("<x exif:UserComment='a \"b\"'/>", 'a "b"'),
        ("<exif:UserComment>a</exif:UserComment>", "a"),
        ('<exif:UserComment><rdf:Alt><rdf:li xml:lang="x">a</rdf:li></rdf:Alt></exif:UserComment>', "a"),
        ("<exif:UserComment/>", None),
        ("<x exif:UserComment=a/>", None),
        ("<x/>", None),
        ("<exif:UserComment>" * 60_000, None),  # a megabyte, in which every element could begin a comment
        ("exif:UserComment=" * 60_000, None),
        ("<exif:UserComment " * 60_000, None),
        ("<exif:UserComment>" + "<rdf:" * 200_000 + "</exif:UserComment>", "<rdf:" * 200_000),
    ],
)
def test_comments_in_xmp_are_read_in_one_pass(xmp, comment):
    assert comment_in_xmp(xmp) == comment


def test_an_unknown_sampler_keeps_its_name(read):
    """Sampling refuses it then, with the nearest that there is."""
    assert read(parameters=swarm(sampler="res_multistep")).sampler == "res_multistep"


def test_noise_that_comes_from_the_gpu_is_named(read):
    with pytest.warns(VelaturaWarning, match="dpmpp_2m_sde_gpu draws its noise on the GPU"):
        assert read(parameters=swarm(sampler="dpmpp_2m_sde_gpu")).sampler == "DPM++ 2M SDE"


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samplers_of_a1111_keep_their_names(read, name):
    assert read(parameters=swarm(sampler=name)).sampler == name


def test_a_lora_whose_name_no_tag_can_hold_is_named(read):
    with pytest.warns(VelaturaWarning, match="the lora 'a:b', whose name a tag cannot hold"):
        assert read(parameters=swarm(loras=["a:b"])).prompt == "a house"
