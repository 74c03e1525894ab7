"""Rows of the law of unknown things: readers of recipes of other programs.

A row reads a recipe, to which an unknown thing is added if it is told to.
"""

import copy
import json

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import velatura
from tests.sampling.recipe.comfyui.graphs import node, sampler, text_to_image
from tests.sampling.recipe.comfyui.test_workflow import text_to_image as workflow
from tests.sampling.recipe.test_programs import DRAW_THINGS, EASY, FOOOCUS, INVOKE, NOVELAI, SD_METADATA, swarm

THING = "foo_unknown"


def infotext(_, is_odd):
    line = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
    return velatura.Recipe.from_text(f"a cat\n{line}, {THING}: 1" if is_odd else f"a cat\n{line}")


def recipe_of_program(values, *place):
    """Return a row for the JSON of another program, to which an unknown setting is added at a place inside."""

    def read(_, is_odd):
        changed = copy.deepcopy(values)
        inner = changed
        for key in place:
            inner = inner[key]
        inner.update({THING: 1} if is_odd else {})
        return velatura.Recipe.from_text(json.dumps(changed))

    return read


def recipe_of_civitai(_, is_odd):
    settings = {"prompt": "a house", "steps": 25, "cfgScale": 6.5, "sampler": "dpmpp_2m", "width": 64, "height": 64}
    graph = {"11": {"class_type": "KSampler", "inputs": {"seed": 7}}, "extra": {"airs": []}}
    metadata = settings | ({THING: 1} if is_odd else {})
    return velatura.Recipe.from_text(json.dumps({**graph, "extraMetadata": json.dumps(metadata)}))


def recipe_of_invokeai_1(folder, is_odd):
    """Read the command of version 1, whose options stand in a chunk of the picture."""
    png = PngInfo()
    png.add_text("Dream", '"a house" -s 25 -S 7 -W 64 -H 64 -C 6.5 -A k_euler' + f" --{THING} 1" * is_odd)
    Image.new("RGB", (64, 64)).save(folder / "x.png", pnginfo=png)
    return velatura.Recipe.from_image(folder / "x.png")


NOVELAI_4 = {
    **NOVELAI,
    "v4_prompt": {"caption": {"base_caption": "a house", "char_captions": []}, "use_coords": False, "use_order": True},
    "v4_negative_prompt": {"caption": {"base_caption": "blurry", "char_captions": []}, "legacy_uc": False},
}


def comfyui(changes, **nodes):
    """Return a row for a graph of ComfyUI, whose inputs of some nodes are changed, and to which nodes are added."""

    def read(_, is_odd):
        graph = text_to_image(n5=sampler(scheduler="normal"))
        if is_odd:
            graph |= {name.removeprefix("n"): added for name, added in nodes.items()}
            for key, inputs in changes.items():
                graph[key]["inputs"] |= inputs
        return velatura.Recipe.from_text(json.dumps(graph))

    return read


def comfyui_workflow(_, is_odd):
    """Read what the editor saves: a value of a node that is connected to another one has its name there."""
    graph = workflow()
    if is_odd:
        graph["nodes"][4]["inputs"].append({"name": THING, "type": "INT", "link": 12})
        graph["links"].append([12, 4, 0, 5, 4, "INT"])
    return velatura.Recipe.from_text(json.dumps(graph))


ROWS = {
    "infotext": infotext,
    "recipe of SwarmUI": recipe_of_program(swarm(), "sui_image_params"),
    "recipe of SwarmUI, beside its settings": recipe_of_program(swarm()),
    "recipe of Fooocus": recipe_of_program({**FOOOCUS, "sharpness": None, "adm_guidance": None}),
    "recipe of InvokeAI": recipe_of_program(INVOKE),
    "recipe of InvokeAI, in its model": recipe_of_program(INVOKE, "model"),
    "recipe of InvokeAI, in a LoRA": recipe_of_program(INVOKE, "loras", 0),
    "recipe of InvokeAI, in a LoRA's model": recipe_of_program(INVOKE, "loras", 0, "lora"),
    "recipe of InvokeAI 2": recipe_of_program(SD_METADATA, "image"),
    "recipe of InvokeAI 2, beside its settings": recipe_of_program(SD_METADATA),
    "recipe of InvokeAI 2, in its prompt": recipe_of_program(SD_METADATA, "image", "prompt", 0),
    "recipe of InvokeAI 1": recipe_of_invokeai_1,
    "recipe of NovelAI": recipe_of_program(NOVELAI),
    "recipe of NovelAI 4": recipe_of_program(NOVELAI_4, "v4_prompt"),
    "recipe of NovelAI 4, in its caption": recipe_of_program(NOVELAI_4, "v4_prompt", "caption"),
    "recipe of Easy Diffusion": recipe_of_program(EASY),
    "recipe of Draw Things": recipe_of_program(DRAW_THINGS),
    "recipe of Draw Things, in a LoRA": recipe_of_program(DRAW_THINGS, "lora", 0),
    "recipe of Civitai's generator": recipe_of_civitai,
    "recipe in the names of diffusers": recipe_of_program(
        {"prompt": "a house", "guidance_scale": 6.5, "num_inference_steps": 25, "seed": 7, "sampler": "ddim"}
        | {"width": 64, "height": 64}
    ),
    "ComfyUI's graph, a node on the way of the model": comfyui(
        {"5": {"model": ["8", 0]}}, n8=node(THING, model=["1", 0], factor=2)
    ),
    "ComfyUI's graph, a node on the way of a prompt": comfyui(
        {"5": {"positive": ["8", 0]}}, n8=node(THING, conditioning=["2", 0], factor=2)
    ),
    "ComfyUI's graph, a node on the way of the picture": comfyui(
        {"7": {"images": ["8", 0]}}, n8=node(THING, image=["6", 0], factor=2)
    ),
    "ComfyUI's graph, an input of the sampler": comfyui({"5": {THING: 3}}),
    "ComfyUI's graph, an input of the loader": comfyui({"1": {THING: "x"}}),
    "ComfyUI's graph, an input of a text": comfyui({"2": {THING: ["4", 0]}}),
    "ComfyUI's workflow, an input of the sampler": comfyui_workflow,
}
