"""Law: whatever a reader does not understand is named once, and the result is otherwise as before.

A reader's row writes a valid file, or one with an unknown thing called "foo_unknown", and reads it.
"""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

import velatura
from tests.sampling.recipe.test_programs import DRAW_THINGS, EASY, FOOOCUS, INVOKE, NOVELAI, SD_METADATA, swarm
from velatura.datasets.folder import read_dataset
from velatura.errors import VelaturaWarning
from velatura.library.sidecars import read_notes
from velatura.prompts.prompt_file import parse_prompt_lines
from velatura.prompts.styles import read_styles
from velatura.training.rates import LearningRates

THING = "foo_unknown"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = LAYER.replace(".", "_")


def tensors_of(path):
    overlay = velatura.open_overlay(path)
    return {name: tensor.tolist() for name, tensor in overlay.state_dict().items()}


def factors(down, up, alpha=""):
    alphas = {alpha: torch.tensor(2.0)} if alpha else {}
    return {down: torch.full((2, 32), 0.1), up: torch.full((32, 2), 0.1), **alphas}


def write_overlay(tensors):
    """Return a row for a LoRA or an embedding in safetensors, to which an unknown tensor is added."""

    def read(folder, is_odd):
        extra = {THING: torch.ones(3)} if is_odd else {}
        save_file(tensors | extra, folder / "x.safetensors")
        return tensors_of(folder / "x.safetensors")

    return read


def peft_folder(folder, is_odd):
    keys = (f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight")
    extra = {f"base_model.model.{THING}.lora_A.weight": torch.ones(2, 2)} if is_odd else {}
    (folder / "x").mkdir()
    save_file(factors(*keys) | extra, folder / "x" / "adapter_model.safetensors")
    (folder / "x" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    return tensors_of(folder / "x")


def peft_settings(folder, is_odd):
    keys = (f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight")
    (folder / "x").mkdir()
    save_file(factors(*keys), folder / "x" / "adapter_model.safetensors")
    settings = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["to_q"], "use_dora": False}
    text = json.dumps(settings | ({THING: 1} if is_odd else {}))
    (folder / "x" / "adapter_config.json").write_text(text)
    return tensors_of(folder / "x")


def flat_hypernetwork(folder, is_odd):
    tensors = {
        f"320_{number}.linear.{layer}.{kind}": torch.full(shape, 0.1)
        for number in (0, 1)
        for layer, kind, shape in (
            (0, "weight", (4, 320)),
            (0, "bias", (4,)),
            (1, "weight", (320, 4)),
            (1, "bias", (320,)),
        )
    }
    fields = {"layer_structure": "[1, 0.0125, 1]", "activation_func": "linear", "step": "3"}
    save_file(tensors, folder / "x.safetensors", fields | ({THING: "1"} if is_odd else {}))
    return tensors_of(folder / "x.safetensors")


def infotext(_, is_odd):
    line = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
    return velatura.Recipe.from_text(f"a cat\n{line}, {THING}: 1" if is_odd else f"a cat\n{line}")


def a1111_embedding(folder, is_odd):
    payload = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 3}
    torch.save(payload | ({THING: 1} if is_odd else {}), folder / "x.pt")
    return tensors_of(folder / "x.pt")


def a1111_hypernetwork(folder, is_odd):
    network = {
        "linear.0.weight": torch.full((4, 320), 0.1),
        "linear.0.bias": torch.full((4,), 0.1),
        "linear.1.weight": torch.full((320, 4), 0.1),
        "linear.1.bias": torch.full((320,), 0.1),
    }
    payload = {320: (network, {key: tensor.clone() for key, tensor in network.items()})}
    fields = {"layer_structure": [1, 0.0125, 1], "activation_func": "linear", "step": 3, "name": "x"}
    torch.save(payload | fields | ({THING: 1} if is_odd else {}), folder / "x.pt")
    return tensors_of(folder / "x.pt")


def torch_zip_member(folder, is_odd):
    import zipfile

    a1111_embedding(folder, is_odd=False)
    if is_odd:
        with zipfile.ZipFile(folder / "x.pt", "a") as archive:
            archive.writestr(f"x/{THING}", b"more")
    return tensors_of(folder / "x.pt")


def checkpoint(folder, is_odd):
    path = folder / "base.safetensors"
    velatura.save(velatura.tiny(), path)
    if is_odd:
        with path.open("rb") as file:
            metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
        save_file(load_file(path) | {THING: torch.ones(2)}, path, metadata)
    base = velatura.open_base(path, dtype="float32", device="cpu")
    return {name: float(tensor.double().sum()) for name, tensor in base.unet.state_dict().items()}


def dataset(write):
    """Return a row for a folder with a picture, cat.png, to which a function adds captions."""

    def read(folder, is_odd):
        Image.new("RGB", (64, 64)).save(folder / "cat.png")
        write(folder, is_odd)
        return [(example.path.name, example.caption) for example in read_dataset(folder).examples]

    return read


def write_json_caption(folder, is_odd):
    (folder / "cat.json").write_text(json.dumps({"text": "a red cat"} | ({THING: 1} if is_odd else {})))


def write_jsonl_captions(folder, is_odd):
    fields = {"file_name": "cat.png", "text": "a red cat"} | ({THING: 1} if is_odd else {})
    (folder / "metadata.jsonl").write_text(json.dumps(fields) + "\n")


def write_csv_captions(folder, is_odd):
    text = f"file_name,text,{THING}\ncat.png,a red cat,1\n" if is_odd else "file_name,text\ncat.png,a red cat\n"
    (folder / "metadata.csv").write_text(text)


def write_odd_ending(folder, is_odd):
    (folder / "cat.txt").write_text("a red cat")
    if is_odd:
        (folder / f"{THING}.heic").write_bytes(b"no picture")


def styles(_, is_odd):
    text = f"name,prompt,negative_prompt,{THING}\na,b,c,d\n" if is_odd else "name,prompt,negative_prompt\na,b,c\n"
    return read_styles(text)


def rates(_, is_odd):
    parsed = LearningRates.parse(f"1e-4, {THING}" if is_odd else "1e-4", 100)
    for message in parsed.warnings:  # the plan of a training prints these
        warnings.warn(message, VelaturaWarning, stacklevel=2)
    return parsed.segments


def notes(folder, is_odd):
    fields = {"description": "a cat", "activation text": "cat"} | ({THING: 1} if is_odd else {})
    (folder / "x.json").write_text(json.dumps(fields))
    found = read_notes([folder / "x.json"])
    for line in found.unread:  # `velatura show` prints these
        warnings.warn(line, VelaturaWarning, stacklevel=2)
    return found.model_copy(update={"unread": ()})


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
PROGRAMS = {
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
}
READERS = {
    "LoRA of kohya": write_overlay(
        factors(f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight", f"lora_unet_{FLAT}.alpha")
    ),
    "LoRA of diffusers": write_overlay(factors(f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight")),
    "LoRA of 2023's diffusers": write_overlay(
        factors(f"unet.{LAYER}.lora.down.weight", f"unet.{LAYER}.lora.up.weight")
    ),
    "LoRA under LDM's names": write_overlay(
        factors(
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight",
        )
    ),
    "LoRA of peft": peft_folder,
    "settings of peft": peft_settings,
    "embedding of sd-scripts": write_overlay({"emb_params": torch.ones(2, 768)}),
    "embedding of SDXL": write_overlay({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}),
    "embedding of A1111": a1111_embedding,
    "hypernetwork of A1111": a1111_hypernetwork,
    "flat hypernetwork": flat_hypernetwork,
    "torch zip": torch_zip_member,
    "checkpoint": checkpoint,
    "captions in .json": dataset(write_json_caption),
    "captions in .jsonl": dataset(write_jsonl_captions),
    "captions in .csv": dataset(write_csv_captions),
    "dataset folder": dataset(write_odd_ending),
    "infotext": infotext,
    "styles.csv": styles,
    "learning rates": rates,
    "notes of A1111": notes,
    **PROGRAMS,
}


def read(reader, folder, *, is_odd):
    folder.mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = reader(folder, is_odd)
    return result, [str(each.message) for each in caught if issubclass(each.category, VelaturaWarning)]


@pytest.mark.parametrize("name", READERS)
def test_an_unknown_thing_is_named_once_and_changes_nothing(tmp_path, name):
    expected, before = read(READERS[name], tmp_path / "plain", is_odd=False)
    result, messages = read(READERS[name], tmp_path / "odd", is_odd=True)
    assert before == []
    assert [THING in message for message in messages] == [True], messages
    assert result == expected


def test_an_unknown_option_in_a_prompts_file_is_refused_by_name():
    with pytest.raises(velatura.BadPrompt, match=THING.replace("_", ".")):
        parse_prompt_lines(f"--prompt a --{THING} 3", ["prompt", "steps"])


def test_every_reader_of_the_page_has_a_row():
    page = (Path(__file__).parents[2] / "docs" / "reading-files.md").read_text()
    kinds = ("LoRA", "embedding", "hypernetwork", "checkpoint", "captions", "notes")
    assert all(f"| {kind}" in page and any(kind in name for name in READERS) for kind in kinds)
