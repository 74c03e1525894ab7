"""Metadata that cannot be true are named once, and change nothing; those of real programs are not warned of.

The fields are those of sd-scripts, ModelSpec 1.0.1 (dates in ISO 8601, hashes in hex after 0x) and safetensors.
"""

import warnings

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import VelaturaWarning
from velatura.formats.check_metadata import find_metadata_problems
from velatura.formats.check_texts import has_hidden_text, mixes_scripts
from velatura.formats.metadata import family_from_metadata

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KOHYA = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "2",
    "ss_network_alpha": "1.0",
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
    "ss_steps": "1600",
    "ss_epoch": "10",
    "ss_learning_rate": "0.0001",
    "ss_text_encoder_lr": "[1e-05, 1e-05]",
    "ss_unet_lr": "1e-4",
    "ss_seed": "None",
    "ss_clip_skip": "None",
    "ss_lr_warmup_steps": "0.05",
    "ss_resolution": "(512, 768)",
    "ss_sd_model_name": "runwayml/stable-diffusion-v1-5",
    "ss_sd_model_hash": "cc6cb27103",
    "ss_new_sd_model_hash": "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    "ss_vae_name": "None",
    "ss_training_started_at": "1674000000.5",
    "ss_training_comment": "two lines\nof words",
    "sshs_legacy_hash": "e3b0c442",
    "sshs_model_hash": "71061a70c01ad01d27d075e662bc36e0d977e7dae76af38c2a215c83e815aaaa",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.date": "2023-10-27T21:12:00",
    "modelspec.resolution": "512x512",
    "modelspec.hash_sha256": "0x71061a70c01ad01d27d075e662bc36e0d977e7dae76af38c2a215c83e815aaaa",
    "format": "pt",
}


def write_lora(path, metadata, layer=LAYER, width=32):
    tensors = {
        f"{layer}.alpha": torch.tensor(1.0),
        f"{layer}.lora_down.weight": torch.full((2, width), 0.1),
        f"{layer}.lora_up.weight": torch.full((32, 2), 0.1),
    }
    save_file(tensors, path, metadata)
    return path


def messages(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VelaturaWarning)
        velatura.open_overlay(path)
    return [str(each.message) for each in caught]


def test_metadata_of_a_real_training_are_not_warned_of(tmp_path):
    assert messages(write_lora(tmp_path / "lora.safetensors", KOHYA)) == []


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("modelspec.date", "yesterday", "not a date"),
        ("modelspec.date", "2023-13-45", "not a date"),
        ("sshs_model_hash", "zz", "not a hash"),
        ("sshs_legacy_hash", "e3b0c44", "not a hash"),
        ("modelspec.hash_sha256", "0x12", "not a hash"),
        ("ss_new_sd_model_hash", "<script>", "not a hash"),
        ("ss_steps", "-5", "not a count"),
        ("ss_steps", "1e400", "not a count"),
        ("ss_epoch", "ten", "not a count"),
        ("ss_num_train_images", "9" * 40, "not a count"),
        ("ss_network_dim", "two", "not a number"),
        ("ss_learning_rate", "fast", "not a number"),
        ("ss_unet_lr", "nan", "not a number"),
        ("ss_resolution", "large", "not a size"),
        ("modelspec.resolution", "512x", "not a size"),
        ("format", "tf", "not of torch (pt)"),
        ("ss_base_model_version", "sdxl_base_v1-0", "tensors are for (SD1 or SD2)"),
        ("ss_base_model_version", "flux1", "tensors are for (SD1 or SD2)"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "tensors are for (SD1 or SD2)"),
        ("modelspec.architecture", "stable-diffusion-v2-512/lora", "names several bases"),
        ("modelspec.architecture", "stable-diffusion-v1/textual-inversion", "of the kind embedding"),
        ("modelspec.architecture", "stable-diffusion-3-medium/lora", "tensors are for (SD1 or SD2)"),
        ("ss_base_model_version", "SD 2.1", "names several bases"),
        ("ss_base_model_version", "SDXL 1.0", "tensors are for (SD1 or SD2)"),
        ("ss_v2", "True", "names several bases"),
        ("ss_training_comment", "red \x1b[31m text", "invisible or control characters in its metadata (ss_training_"),
        ("ss_training_comment", "a\u202eb", "invisible or control characters"),
        ("ss_training_comment", "a\u200bb", "invisible or control characters"),
        ("a\u2066key", "of any name", "invisible or control characters"),
        ("ss_sd_model_name", "../../etc/passwd", "a path in place of a name in its metadata (ss_sd_model_name)"),
        ("modelspec.title", "C:\\windows\\x", "a path in place of a name"),
    ],
)
def test_metadata_that_cannot_be_true_are_named_once(tmp_path, key, value, problem):
    [message] = messages(write_lora(tmp_path / "lora.safetensors", KOHYA | {key: value}))
    assert message.startswith("lora.safetensors ")
    assert problem in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("ss_base_model_version", version)
            for version in ("sd_1.5", "sd1", "sd15", "SD 1.5", "SD-1", "stable-diffusion-v1-5", "Stable Diffusion 1.5")
        ),
        ("ss_base_model_version", "my own mix"),
        ("modelspec.architecture", "stable-diffusion-1.5/lora"),
        ("modelspec.architecture", "unknown"),
    ],
)
def test_another_spelling_and_an_unknown_base_contradict_nothing(tmp_path, key, value):
    assert messages(write_lora(tmp_path / "lora.safetensors", KOHYA | {key: value})) == []


@pytest.mark.parametrize(
    ("version", "family"),
    [
        ("sd_v1", "SD1"),
        ("sd_1.5", "SD1"),
        ("sd_v2_v", "SD2"),
        ("sd_2.1", "SD2"),
        ("stable-diffusion-2-1", "SD2"),
        ("sdxl_base_v1-0", "SDXL"),
        ("SDXL 1.0", "SDXL"),
        ("stable-diffusion-xl-base-1.0", "SDXL"),
        ("flux1", ""),
        ("sd3", ""),
        ("my own mix", ""),
    ],
)
def test_the_family_is_known_by_all_usual_spellings(version, family):
    assert family_from_metadata({"ss_base_model_version": version}) == family


@pytest.mark.parametrize(
    ("kind", "title", "warns"),
    [
        ("embedding", "<cat-toy>", False),
        ("embedding", "<cat-toy> and <script>", True),
        ("embedding", "<lora:x:1>", True),
        ("lora", "<cat-toy>", True),
    ],
)
def test_the_token_of_an_embedding_is_no_markup(kind, title, warns):
    problems = list(find_metadata_problems({"modelspec.title": title}, kind))
    assert ["< or >" in problem for problem in problems] == [True] * warns


@pytest.mark.parametrize(
    ("layer", "width", "version", "warns"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 768, "sd_v1", False),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1024, "sd_v1", True),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 2048, "sdxl_base_v1-0", False),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_5_attn1_to_k", 32, "sd_v2", True),
        ("lora_te2_text_model_encoder_layers_5_self_attn_q_proj", 32, "sd_v1", True),
        ("lora_unet_mid_block_attentions_0_proj_in", 32, "sdxl_base_v1-0", False),
    ],
)
def test_the_tensors_tell_the_family_by_their_widths_and_layers(tmp_path, layer, width, version, warns):
    metadata = {"ss_base_model_version": version}
    found = messages(write_lora(tmp_path / "lora.safetensors", metadata, layer, width))
    assert ["names another base" in message for message in found] == [True] * warns


@pytest.mark.parametrize(
    ("text", "is_hidden"),
    [
        ("zwei\nZeilen\tund ein weicher\u00adTrenner", False),
        ("\u05e9\u05dc\u05d5\u05dd", False),  # Hebrew: letters, which run from right to left by themselves
        ("\U0001f469\u200d\U0001f3a8", False),  # a joined emoji
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", False),  # Persian needs the non-joiner
        ("a\u200db", True),
        ("\ufeffstart", True),
        ("\x00", True),
        ("\x9b31m", True),
    ],
)
def test_invisible_characters_are_told_from_letters(text, is_hidden):
    assert has_hidden_text(text) == is_hidden


def test_settings_that_velatura_quotes_as_json_are_read():
    assert list(find_metadata_problems({"sd_checkpoint": '"cc6cb27103"', "sd_checkpoint_name": "null"})) == []
    [problem] = find_metadata_problems({"sd_checkpoint": '"none at all"'})
    assert "not a hash (sd_checkpoint" in problem


@pytest.mark.parametrize(
    ("name", "is_mixed"),
    [
        ("anime", False),
        ("\u0430\u043d\u0438\u043c\u0435", False),  # anime in Russian
        ("anime \u0430\u043d\u0438\u043c\u0435 v2", False),  # two words, of a script each
        ("\u685c\u306e\u7d75anime", False),  # Japanese letters look like no Latin ones
        ("caf\u00e9", False),
        ("\u0430nime", True),  # a Cyrillic a
        ("an\u03bfmaly", True),  # a Greek omicron
        ("v1-5-prun\u0435d", True),
        ("\uff41nime", True),  # a full-width a
    ],
)
def test_a_word_that_mixes_look_alike_scripts_is_told_from_words_of_one(name, is_mixed):
    assert mixes_scripts(name) == is_mixed
