"""LoRA files of many programs, against the outputs of tiny models in those programs (tests/data/trainers)."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from velatura.errors import BadFile, VelaturaWarning
from velatura.overlays.strength import Strength
from velatura.tensors import open_tensors, write_torch

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "trainers"
CASES = json.loads((GOLDEN / "unet_outputs.json").read_text()) + json.loads((GOLDEN / "peft_outputs.json").read_text())
CLOSE = 1e-5  # of the largest value; the golden values' own tolerance is 1e-3
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
BLOCK = QUERY.rpartition(".")[0]
LAYER = "lora_unet_" + QUERY.replace(".", "_")
LDM = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def find_file(case):
    path = GOLDEN / case["file"]
    return path if path.exists() else DATA / "nature" / path.name


def open_case(case, folder):
    """Open the LoRA of a case; those of peft in a folder with its configuration."""
    if "adapter_config" not in case:
        return velatura.open_overlay(find_file(case))
    shutil.copy(find_file(case), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(case["adapter_config"]))
    return velatura.open_overlay(folder)


def read_config(name):
    return json.loads(open_tensors(GOLDEN / "unet" / name).metadata["config"])


@pytest.fixture(scope="module")
def pipeline():
    unet = UNet2DConditionModel(**read_config("base_unet.safetensors")).eval()
    unet.load_state_dict(load_file(GOLDEN / "unet" / "base_unet.safetensors"))
    text = CLIPTextModel(CLIPTextConfig(**read_config("base_te.safetensors"))).eval()
    weights = load_file(GOLDEN / "unet" / "base_te.safetensors")
    expected_keys = text.state_dict().keys()
    text.load_state_dict(
        {key if key in expected_keys else key.removeprefix("text_model."): weights[key] for key in weights}
    )
    return SimpleNamespace(unet=unet, text_encoder=text)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "unet_outputs.safetensors") | load_file(GOLDEN / "peft_outputs.safetensors")


@torch.no_grad()
def outputs(pipeline, golden):
    x, t, context, ids = (golden[f"inputs/{name}"] for name in ("x", "t", "ctx", "ids"))
    return {"unet": pipeline.unet(x, t, context).sample, "te": pipeline.text_encoder(ids).last_hidden_state}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_file_gives_the_outputs_of_its_own_program(pipeline, golden, tmp_path, case):
    lora = open_case(case, tmp_path)
    for strength in (1.0, 0.5):
        if (strength, case["id"]) == (0.5, "lyco_dora"):
            continue  # LyCORIS's own rule of strength, by which 0 is not off
        with velatura.attach(pipeline, lora, strength):
            results = outputs(pipeline, golden)
        for part, result in results.items():
            if (expected := golden.get(f"{case['id']}/{part}@{strength:g}")) is not None:
                assert (result - expected).abs().max() < CLOSE * expected.abs().max()


def test_text_and_unet_have_strengths_of_their_own(pipeline, golden):
    lora = velatura.open_overlay(DATA / "nature" / "kohya_lora_d4a1.safetensors")
    with velatura.attach(pipeline, lora, Strength(text=0.5, unet=1.0)):
        results = outputs(pipeline, golden)
    assert torch.allclose(results["te"], golden["kohya_lora_d4a1/te@0.5"], atol=1e-5)
    assert torch.allclose(results["unet"], golden["kohya_lora_d4a1/unet@1"], atol=1e-5)


def test_the_card_comes_from_names_and_metadata(pipeline):
    lora = velatura.open_overlay(DATA / "nature" / "kohya_lora_d4a1.safetensors")
    assert (lora.card.name, lora.card.family) == ("kohya_lora_d4a1", "SD1")
    assert "rank 4, 60 layers" in lora.card.outline
    assert lora.target_parts == {"unet", "text"}
    assert lora.metadata["ss_network_module"] == "kohya networks.lora"


DIALECT_KEYS = {  # down, up and alpha of one layer
    "kohya": (f"{LAYER}.lora_down.weight", f"{LAYER}.lora_up.weight", f"{LAYER}.alpha"),
    "diffusers": (f"unet.{QUERY}.lora.down.weight", f"unet.{QUERY}.lora.up.weight", f"unet.{QUERY}.alpha"),
    "diffusers of 2023": tuple(f"{BLOCK}.processor.to_q_lora.{way}.weight" for way in ("down", "up")),
    "ldm": tuple(f"diffusion_model.{LDM}.{suffix}" for suffix in ("lora_A.weight", "lora_B.weight", "alpha")),
    "onetrainer": tuple(f"unet.{QUERY}.{suffix}" for suffix in ("lora_down.weight", "lora_up.weight", "alpha")),
    "hcp": tuple(f"{QUERY}.___.{suffix}" for suffix in ("layer.W_down", "layer.W_up", "alpha")),
}


def pair(rank=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator)


def write_file(path, tensors, metadata=None):
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    else:
        write_torch(path, tensors)
    return path


def change_of(lora, shape=(5, 6)):
    (delta,) = lora.layers.values()
    return delta.weight_delta(torch.zeros(shape))


@pytest.mark.parametrize("dialect", DIALECT_KEYS)
@pytest.mark.parametrize("wrap", [None, "lora", "state_dict"])
def test_one_lora_is_the_same_in_every_dialect(tmp_path, dialect, wrap):
    (down, up), (down_key, up_key, *alpha_key) = pair(), DIALECT_KEYS[dialect]
    tensors = {down_key: down, up_key: up}
    tensors |= {key: torch.tensor(1.0) for key in alpha_key}
    path = tmp_path / ("x.pt" if wrap else "x.safetensors")
    lora = velatura.open_overlay(write_file(path, {wrap: tensors} if wrap else tensors))
    assert list(lora.layers) == [LAYER]
    scale = 1.0 if dialect in {"hcp", "diffusers of 2023"} else 1 / 2  # HCP's alpha is the scale itself
    assert torch.allclose(change_of(lora), scale * up @ down)


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 8}, 4),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {QUERY: 3}}, 3 / 2),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 3}}, 3 / 2),
        ({"lora_alpha": 8, "alpha_pattern": {"^attn1.to_q": 3, "q": 5}}, 4),
        ({}, 1),
    ],
)
@pytest.mark.parametrize("place", ["header", "beside", "folder of parts"])
def test_the_scale_comes_from_the_configuration_of_diffusers_and_peft(tmp_path, fields, scale, place):
    down, up = pair()
    if place == "header":
        header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in fields.items()})}
        path = write_file(
            tmp_path / "x.safetensors", dict(zip(DIALECT_KEYS["diffusers"], (down, up), strict=False)), header
        )
    else:
        folder = tmp_path / "unet" if place == "folder of parts" else tmp_path
        folder.mkdir(exist_ok=True)
        tensors = {f"base_model.model.{QUERY}.lora_A.weight": down, f"base_model.model.{QUERY}.lora_B.weight": up}
        file = write_file(folder / "adapter_model.safetensors", tensors)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
        path = tmp_path if place == "folder of parts" else file
    assert torch.allclose(change_of(velatura.open_overlay(path)), scale * up @ down, atol=1e-6)


# diffusers: UNet2DConditionModel.save_lora_adapter names no part of a pipeline, neither in its keys nor in its header.
# peft: the scale is lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA
@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"r": 4, "lora_alpha": 16}, 4),
        ({"r": 4, "lora_alpha": 16, "use_rslora": True}, 8),
        ({"r": 4, "lora_alpha": 16, "alpha_pattern": {QUERY: 2}}, 1 / 2),
    ],
)
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_settings_without_the_name_of_a_part_are_those_of_every_layer(tmp_path, fields, scale, prefix):
    down, up = pair(rank=4)
    tensors = {f"{prefix}{QUERY}.lora_A.weight": down, f"{prefix}{QUERY}.lora_B.weight": up}
    path = write_file(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps(fields)})
    assert torch.allclose(change_of(velatura.open_overlay(path)), scale * up @ down, atol=1e-5)


@pytest.mark.parametrize("settings", [{"transformer.lora_alpha": 16}, {"rank": 4}])
def test_settings_of_no_layer_in_the_file_are_warned_of(tmp_path, settings):
    tensors = dict(zip(DIALECT_KEYS["diffusers"], pair(), strict=False))
    path = write_file(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.warns(VelaturaWarning, match=r"in its header .* and layers of unet: the settings are ignored"):
        velatura.open_overlay(path)


@pytest.mark.parametrize("prefix", ["lora_my_", "unet.my."])
def test_layers_of_a_unet_under_an_odd_prefix_are_not_called_a_flux(tmp_path, prefix):
    name = QUERY.replace(".", "_") if prefix.endswith("_") else QUERY
    tensors = {f"{prefix}{name}.lora_{way}.weight": tensor for way, tensor in zip(("down", "up"), pair(), strict=True)}
    with pytest.raises(BadFile, match=r"it was made for a UNet like a Stable Diffusion's, by a program whose names"):
        velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))


def test_an_adapter_without_its_configuration_is_warned_of(tmp_path):
    tensors = {f"base_model.model.{QUERY}.lora_{way}.weight": tensor for way, tensor in zip("AB", pair(), strict=True)}
    with pytest.warns(VelaturaWarning, match=r"no adapter_config\.json beside it"):
        velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))


def test_a_regular_expression_is_not_evaluated(tmp_path):
    tensors = {f"base_model.model.{QUERY}.lora_{way}.weight": tensor for way, tensor in zip("AB", pair(), strict=True)}
    write_file(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}}))
    with pytest.raises(BadFile, match="not a plain name"):
        velatura.open_overlay(tmp_path)


def test_an_alpha_too_large_for_float32_is_refused(tmp_path):
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1e38, "unet.use_rslora": True})}
    path = write_file(tmp_path / "x.safetensors", dict(zip(DIALECT_KEYS["diffusers"], pair(), strict=False)), header)
    with pytest.raises(BadFile, match="an invalid lora_alpha"):
        velatura.open_overlay(path)


@pytest.mark.parametrize("key", DIALECT_KEYS["kohya"])
def test_values_beyond_float32_are_refused(tmp_path, key):
    """The largest float32 is 3.4e38; a base in float32 would add infinity."""
    down, up = pair()
    tensors = dict(zip(DIALECT_KEYS["kohya"], (down.double(), up.double(), torch.tensor(1.0).double()), strict=True))
    tensors[key].view(-1)[0] = 1e39
    with pytest.raises(BadFile, match="with values beyond float32"):
        velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(BadFile, match="does not hold an adapter"):
        velatura.open_overlay(tmp_path)


def test_a_folder_without_an_adapter_is_refused_with_what_to_give(tmp_path):
    inner = tmp_path / "run" / "checkpoint-500" / "unet"
    inner.mkdir(parents=True)
    (inner / "adapter_config.json").write_text("{}")
    with pytest.raises(BadFile, match=r"give what is inside, such as .*checkpoint-500$"):
        velatura.open_overlay(tmp_path / "run")
    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "ink.safetensors").touch()
    with pytest.raises(BadFile, match=r"give what is inside, such as .*ink\.safetensors$"):
        velatura.open_overlay(tmp_path / "Lora")
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15" / "model_index.json").write_text("{}")
    with pytest.raises(BadFile, match=r"sd15 is a base in a folder, not an overlay: open it as a base \(--base\)"):
        velatura.open_overlay(tmp_path / "sd15")


def numbered_pairs(part, count, width=4):
    """Make a LoRA of numbered layers, every one of which adds its number."""
    for number in range(count):
        rows = 8 * width if part == "unet" and number % 9 == 4 else width
        yield torch.full((rows, 1), float(number or -1)), torch.ones(1, width)


@pytest.mark.parametrize(("part", "count"), [("unet", 144), ("text_encoder", 48), ("text_encoder", 92)])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_numbered_layers_get_their_names_in_the_model(tmp_path, part, count, ending):
    pairs = list(numbered_pairs(part, count))
    if ending == "pt":
        write_torch(tmp_path / "x.pt", [tensor for both in pairs for tensor in both])
    else:
        tensors = {f"{part}:{i}:{way}": both[way == "down"] for i, both in enumerate(pairs) for way in ("up", "down")}
        save_file({**tensors, "<cat>": torch.ones(2, 768)}, tmp_path / "x.safetensors", {"<cat>": "<embed>"})
    lora = velatura.open_overlay(tmp_path / f"x.{ending}")
    numbers = {name: int(delta.required_tensor("lora_up.weight").detach()[0, 0]) for name, delta in lora.layers.items()}
    assert len(numbers) == count
    if part == "unet":  # diffusers until 0.14 had the feed-forward between the attentions
        assert numbers["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"] == 4
        assert numbers["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"] == 5
        assert numbers["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"] == 143
    else:
        assert numbers["lora_te_text_model_encoder_layers_1_self_attn_k_proj"] == 4
    if ending == "safetensors":
        assert lora.bundled_embeddings["<cat>"]["*"].shape == (2, 768)


def test_numbered_layers_of_another_model_are_refused(tmp_path):
    write_torch(tmp_path / "x.pt", [tensor for both in numbered_pairs("unet", 7) for tensor in both])
    with pytest.raises(BadFile, match="numbers 7 layers of its unet"):
        velatura.open_overlay(tmp_path / "x.pt")


def test_embeddings_in_a_lora_are_read(tmp_path):
    down, up = pair()
    tensors = {
        **dict(zip(DIALECT_KEYS["kohya"], (down, up, torch.tensor(2.0)), strict=True)),
        "bundle_emb.neon.clip_l": torch.ones(1, 768),
    }
    lora = velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))
    assert lora.bundled_embeddings.keys() == {"neon"}
    assert torch.equal(lora.bundled_embeddings["neon"]["clip_l"], torch.ones(1, 768))


def test_tensors_that_fit_no_layer_are_counted_and_named(tmp_path):
    tensors = dict(zip(DIALECT_KEYS["kohya"], (*pair(), torch.tensor(2.0)), strict=True))
    foreign = {f"lora_te3_encoder_block_{i}_q.alpha": torch.tensor(1.0) for i in range(3)}
    with pytest.warns(VelaturaWarning, match=r"has 3 of 6 tensors that fit no layer here \(lora_te3"):
        lora = velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors | foreign))
    assert lora.unmatched_keys == tuple(foreign)


def test_a_lora_for_another_kind_of_model_is_refused_with_a_guess(tmp_path):
    keys = (f"lora_unet_double_blocks_0_img_attn_proj.{suffix}" for suffix in ("lora_down.weight", "lora_up.weight"))
    with pytest.raises(BadFile, match=r"fit no layer here .*: it was made for a Flux"):
        velatura.open_overlay(write_file(tmp_path / "x.safetensors", dict(zip(keys, pair(), strict=True))))


def test_the_first_text_encoder_of_an_sdxl_is_known_by_the_widths(tmp_path):
    down, up = torch.randn(2, 2048), torch.randn(640, 2)
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    unet = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora"
    tensors = {f"{unet}.down.weight": down, f"{unet}.up.weight": up}
    tensors |= {f"{text}.down.weight": torch.randn(2, 768), f"{text}.up.weight": torch.randn(768, 2)}
    lora = velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))
    assert lora.card.family == "SDXL"
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in lora.layers


def test_an_alpha_that_is_an_integer_counts(tmp_path):
    down, up = pair()
    tensors = dict(zip(DIALECT_KEYS["kohya"], (down, up, torch.tensor(4)), strict=True))
    assert torch.allclose(
        change_of(velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))), 2 * up @ down
    )


def test_layers_that_the_base_lacks_are_named_when_it_is_attached(pipeline, tmp_path):
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    known = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    layers = (known, known.replace("to_q", "to_k"), known.replace("down_blocks_0", "down_blocks_3"))
    tensors = {
        f"{layer}.lora_{way}.weight": tensor.clone() for layer in layers for way, tensor in (("down", down), ("up", up))
    }
    tensors |= {f"{layer}.alpha": torch.tensor(1.0) for layer in layers}
    lora = velatura.open_overlay(write_file(tmp_path / "x.safetensors", tensors))
    with pytest.warns(VelaturaWarning, match=r"has 1 layer that .* lacks \(lora_unet_down_blocks_3"):
        velatura.attach(pipeline, lora).detach()
