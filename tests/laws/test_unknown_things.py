"""Law: whatever a reader does not understand is named once, and the result is otherwise as before.

A reader's row writes a valid file, or one with an unknown thing called "foo_unknown", and reads it.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import velatura
from tests.laws import unknown_models, unknown_recipes
from tests.laws.unknown_models import THING
from velatura.datasets.folder import read_dataset
from velatura.errors import VelaturaWarning
from velatura.library.sidecars import read_notes
from velatura.prompts.prompt_file import parse_prompt_lines
from velatura.prompts.styles import read_styles
from velatura.training.rates import LearningRates

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


def notes(ending, fields):
    """Return a row for the notes beside a model."""

    def read(folder, is_odd):
        path = folder / f"x{ending}"
        path.write_text(json.dumps(fields | ({THING: 1} if is_odd else {})))
        found = read_notes([path])
        for line in found.unread:  # `velatura show` prints these
            warnings.warn(line, VelaturaWarning, stacklevel=2)
        return found.model_copy(update={"unread": ()})

    return read


def torch_lora(arrange):
    """Return a row for a LoRA in a torch file, whose weights and unknown entry a function arranges."""

    def read(folder, is_odd):
        names = (f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight", f"lora_unet_{FLAT}.alpha")
        torch.save(arrange(factors(*names), {THING: 1} if is_odd else {}), folder / "x.pt")
        return tensors_of(folder / "x.pt")

    return read


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
    "captions in .json": dataset(write_json_caption),
    "captions in .jsonl": dataset(write_jsonl_captions),
    "captions in .csv": dataset(write_csv_captions),
    "dataset folder": dataset(write_odd_ending),
    "styles.csv": styles,
    "learning rates": rates,
    "LoRA of torch": torch_lora(lambda weights, extra: {**weights, **extra}),
    "LoRA of torch in a state dict": torch_lora(lambda weights, extra: {"state_dict": weights, "epoch": 3, **extra}),
    "notes of A1111": notes(".json", {"description": "a cat", "activation text": "cat", "preferred weight": 0.8}),
    "notes of Civitai": notes(
        ".civitai.info",
        {"id": 3, "baseModel": "SD 1.5", "trainedWords": ["cat"], "stats": {"downloadCount": 5}, "nsfwLevel": 1},
    ),
    **unknown_models.ROWS,
    **unknown_recipes.ROWS,
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


@pytest.mark.parametrize("name", unknown_models.REFUSED)
def test_an_unknown_thing_that_would_change_the_result_is_refused_by_name_or_place(tmp_path, name):
    reader = unknown_models.REFUSED[name]
    assert read(reader, tmp_path / "plain", is_odd=False)[1] == []
    with pytest.raises(velatura.VelaturaError, match=rf"{THING}|at line 1, column \d+"):
        read(reader, tmp_path / "odd", is_odd=True)


def test_an_unknown_option_in_a_prompts_file_is_refused_by_name():
    with pytest.raises(velatura.BadPrompt, match=THING.replace("_", ".")):
        parse_prompt_lines(f"--prompt a --{THING} 3", ["prompt", "steps"])


def test_every_reader_of_the_page_has_a_row():
    page = (Path(__file__).parents[2] / "docs" / "reading-files.md").read_text()
    kinds = ("LoRA", "embedding", "hypernetwork", "checkpoint", "diffusers folder", "captions", "notes", "recipe")
    assert all(f"| {kind}" in page and any(kind in name for name in READERS) for kind in kinds)
