"""Inspection of files that A1111, kohya's and LyCORIS's trainers, diffusers and peft wrote, and of models by shape."""

import json
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile
from velatura.formats.inspect.inspect import inspect_file
from velatura.tensors import open_meta, open_tensors, write_safetensors, write_torch

DATA = Path(__file__).parents[2] / "data"
# Kind, dialect and outline, from the lists that the fixtures bring
FILES = {
    "a1111_8v.pt": ("embedding", "a1111", "8 vectors of 24"),
    "original_ti.pt": ("embedding", "a1111", "2 vectors of 16"),
    "bf16.PT": ("embedding", "a1111", "4 vectors of 16"),
    "learned_embeds.bin": ("embedding", "diffusers", "1 vector of 16"),
    "half.bin": ("embedding", "diffusers", "2 vectors of 24"),
    "st_emb_params.safetensors": ("embedding", "kohya", "3 vectors of 16"),
    "st_token.safetensors": ("embedding", "diffusers", "2 vectors of 24"),
    "sdxl.safetensors": ("embedding", "kohya", "2 vectors of 16 and 24"),
    "sdxl_pt.pt": ("embedding", "kohya", "1 vector of 16 and 24"),
    "bad_list.pt": ("unknown", "", ""),
    "bad_other.pt": ("unknown", "", ""),
    "bad_two_concepts.bin": ("unknown", "", ""),
    "kohya_lora_d4a1.safetensors": ("lora", "kohya", "LoRA, rank 4, 60 layers"),
    "lyco_dora.safetensors": ("lora", "kohya", "LoRA with DoRA, rank 2, 62 layers"),
    "lyco_ia3.safetensors": ("lora", "kohya", "IA3, 44 layers"),
    "lyco_oft.safetensors": ("lora", "kohya", "OFT, 62 layers"),
    "lyco_lokr_f4.safetensors": ("lora", "kohya", "LoKr, 95 layers"),
    "diff_lora_r4a8.safetensors": ("lora", "diffusers", "LoRA, rank 4, 32 layers"),
    "peft_ia3.safetensors": ("lora", "peft", "IA3, 20 layers"),
    "peft_oft.safetensors": ("lora", "peft", "OFT, 32 layers"),
}
UNET = "model.diffusion_model."
CROSS = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def checkpoint(width: int, channels: int = 4, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors by which a checkpoint is known."""
    return {
        f"{UNET}input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3),
        CROSS: torch.zeros(8, width),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(8),
        **more,
    }


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_known_by_names_and_shapes(name):
    info = inspect_file(DATA / "nature" / name)
    assert (info.card.kind, info.dialect, info.card.outline) == FILES[name]


def test_steps_and_name_of_an_embedding_are_read():
    info = inspect_file(DATA / "nature" / "a1111_8v.pt")
    assert info.card.steps == 12345  # as the fixtures' list says
    assert info.aliases == (info.card.name,)


@pytest.mark.parametrize(
    ("name", "outline"), [("l01_nai.pt", "8,16 · 1,2,1 linear"), ("l02_oct11.pt", "8,16 · 1,2,1 linear")]
)
def test_a_hypernetwork_of_any_era_has_its_card(name, outline):
    info = inspect_file(DATA / "hypernet" / name)
    assert (info.card.kind, info.dialect, info.card.outline) == ("hypernet", "a1111", outline)
    assert info.card == velatura.open_overlay(DATA / "hypernet" / name).card


def test_a_file_of_velatura_has_its_card(hyper, tmp_path):
    velatura.save(hyper(name="inca"), tmp_path / "x.safetensors")
    info = inspect_file(tmp_path / "x.safetensors")
    assert info.card == velatura.open_overlay(tmp_path / "x.safetensors").card
    assert info.dialect == "velatura"
    assert info.parameters == sum(parameter.numel() for parameter in hyper().parameters())


@pytest.mark.parametrize(
    ("width", "family"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL"), (1280, "SDXL refiner"), (96, "tiny")]
)
def test_the_family_of_a_checkpoint_is_known_by_the_width_of_cross_attention(tmp_path, width, family):
    write_safetensors(tmp_path / "x.safetensors", checkpoint(width))
    card = inspect_file(tmp_path / "x.safetensors").card
    assert (card.kind, card.family, card.outline) == ("checkpoint", family, "")


@pytest.mark.parametrize(
    ("channels", "purpose"), [(9, "inpainting"), (8, "pix2pix"), (5, "depth"), (7, "upscaling"), (6, "of 6 channels")]
)
def test_the_purpose_of_a_checkpoint_is_known_by_its_input_channels(tmp_path, channels, purpose):
    write_torch(tmp_path / "x.ckpt", {"state_dict": checkpoint(768, channels), "global_step": 3})
    card = inspect_file(tmp_path / "x.ckpt").card
    assert (card.kind, card.outline) == ("checkpoint", purpose)


def test_markers_and_missing_parts_of_a_checkpoint_are_named(tmp_path):
    tensors = checkpoint(2048, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    del tensors["first_stage_model.decoder.conv_in.weight"]
    write_safetensors(tmp_path / "x.safetensors", tensors)
    assert inspect_file(tmp_path / "x.safetensors").card.outline == "v-prediction, zero terminal SNR, without VAE"


def test_the_tiny_base_is_a_whole_checkpoint(tiny, tmp_path):
    velatura.save(tiny, tmp_path / "x.safetensors")
    card = inspect_file(tmp_path / "x.safetensors").card
    assert (card.kind, card.family, card.outline) == ("checkpoint", "tiny", "")


def test_a_folder_of_diffusers_is_a_checkpoint(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (tmp_path / "unet" / "config.json").write_text('{"cross_attention_dim": 2048, "in_channels": 4}')
    info = inspect_file(tmp_path)
    assert (info.card.kind, info.card.family, info.dialect) == ("checkpoint", "SDXL", "diffusers")
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(BadFile, match=r"unet/config\.json cannot be read"):
        inspect_file(tmp_path)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_alone_is_known(tmp_path, prefix):
    shape = torch.zeros(8, 4, 3, 3)
    tensors = {f"{prefix}decoder.conv_in.weight": shape, f"{prefix}encoder.conv_in.weight": shape}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    card = inspect_file(tmp_path / "x.safetensors").card
    assert (card.kind, card.outline) == ("vae", "4 latent channels")


def test_an_aesthetic_embedding_is_one_tensor(tmp_path):
    write_torch(tmp_path / "x.pt", torch.zeros(1, 768))
    assert inspect_file(tmp_path / "x.pt").card.kind == "aesthetic"


def test_a_composition_names_its_parts(tmp_path):
    (tmp_path / "both.hns").write_text('[("inca", 0.5), "neon"]')
    card = inspect_file(tmp_path / "both.hns").card
    assert (card.kind, card.outline) == ("hypernet", "of inca, neon")


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v2_v", "ss_v2": "True"}, "SD2"),
        ({"ss_v2": "True"}, "SD2"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        ({}, ""),
    ],
)
def test_metadata_tell_the_family_if_shapes_do_not(tmp_path, metadata, family):
    down, up = torch.zeros(2, 8), torch.zeros(8, 2)
    key = "lora_unet_down_blocks_1_attentions_0_proj_in"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    write_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    assert inspect_file(tmp_path / "x.safetensors").card.family == family


def test_the_metadata_of_a_lora_are_read(tmp_path):
    metadata = {
        "ss_output_name": "ink_v2",
        "ss_steps": "1200",
        "ss_sd_model_name": "sd15.ckpt",
        "ss_new_sd_model_hash": "a" * 64,
        "ss_training_comment": "None",
        "ss_network_args": json.dumps(["conv_dim=4", "algo=loha"]),
        "ss_learning_rate": "0.0001",
        "modelspec.trigger_phrase": "in ink",
        "sshs_model_hash": "b" * 64,
    }
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.zeros(2, 768), f"{key}.lora_up.weight": torch.zeros(8, 2)}
    write_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    info = inspect_file(tmp_path / "x.safetensors")
    assert (info.card.steps, info.card.base, info.card.base_hash) == (1200, "sd15.ckpt", "a" * 10)
    assert (info.card.trigger_words, info.card.note, info.card.family) == (("in ink",), "", "SD1")
    assert (info.aliases, info.claimed_hashes) == (("ink_v2",), ("b" * 64,))
    assert info.details["arguments"] == "conv_dim=4, algo=loha"


def test_no_tensor_is_read(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"x": torch.ones(3)})
    write_torch(tmp_path / "x.pt", {"x": torch.ones(3)})
    assert open_meta(tmp_path / "x.safetensors").tensors["x"].is_meta
    payload = open_meta(tmp_path / "x.pt").payload
    assert payload["x"].is_meta
    assert payload["x"].shape == (3,)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no weights at all")
    with pytest.raises(BadFile, match="neither a safetensors nor a torch file"):
        inspect_file(tmp_path / "x.pt")


def test_endless_names_and_texts_are_cut(tmp_path):
    tensors = {"attn2.to_k" * 20_000 + ".lora_down.weight": torch.zeros(1, 1), "x": torch.zeros(1)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"ss_network_args": "[" * 2**22, "ss_steps": "9" * 2**20})
    info = inspect_file(tmp_path / "x.safetensors")
    assert info.card.kind == "unknown"
    assert len(info.details["arguments"]) == 1000


def test_the_first_embeddings_hold_their_vectors_in_a_module():
    expected = open_tensors(DATA / "nature" / "expected_vectors.safetensors").tensors["original_ti.pt::vec"]
    payload = open_tensors(DATA / "nature" / "original_ti.pt").payload
    assert payload["string_to_param"]["*"].equal(expected)  # as A1111 read them


def test_vectors_for_two_terms_are_not_an_embedding(tmp_path):
    torch.save({"string_to_param": {"a": torch.ones(1, 8), "b": torch.ones(1, 8)}}, tmp_path / "two.pt")
    assert inspect_file(tmp_path / "two.pt").card.kind != "embedding"


def test_hostile_files_are_inspected_or_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("VELATURA_MARKER_DIR", str(tmp_path))  # where their payloads would leave a file
    files = [path for path in (DATA / "hostile").rglob("*") if path.is_file()]
    assert len(files) > 100
    refusals: list[str] = []
    for path in files:
        try:
            inspect_file(path)
        except BadFile as error:
            refusals.append(str(error))
    assert not any("\n" in refusal for refusal in refusals)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("adapter", ["default", "style_2", "my-style"])
def test_a_lora_of_peft_is_known_whatever_its_adapter_is_called(tmp_path, adapter):
    path = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k"
    tensors = {
        f"base_model.model.{path}.lora_A.{adapter}.weight": torch.zeros(4, 768),  # peft: (rank, in features)
        f"base_model.model.{path}.lora_B.{adapter}.weight": torch.zeros(320, 4),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    found = inspect_file(tmp_path / "x.safetensors")
    assert (found.card.kind, found.card.outline, found.card.family) == ("lora", "LoRA, rank 4, 1 layer", "SD1")


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_inside_wrappers_is_known(tiny, tmp_path, key):
    velatura.save(tiny, tmp_path / "tiny.safetensors")
    tensors = open_tensors(tmp_path / "tiny.safetensors").tensors
    torch.save({key: {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "tiny.ckpt")
    assert inspect_file(tmp_path / "tiny.ckpt").card.kind == "checkpoint"
