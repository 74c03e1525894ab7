import hashlib
import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from tests.formats.checkpoints.states import all_tensors, changed, same, weights
from velatura.base.base import Base
from velatura.base.families import FAMILIES
from velatura.base.model_settings import determine_family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnsupportedBase, VelaturaWarning
from velatura.formats import vocabulary
from velatura.formats.checkpoints import config_hints, ldm_config, single_file, write_single_file
from velatura.tensors import open_tensors
from velatura.tiny import DATA_FOLDER


def test_the_tiny_base_comes_back_bit_for_bit(tiny, file):
    contents = open_tensors(file)
    assert single_file.sniff(contents)
    base = single_file.read(contents)
    assert same(weights(base), weights(tiny))
    assert base.family == tiny.family
    assert base.name == "one"


@torch.no_grad()
def test_a_base_from_a_checkpoint_predicts_the_same(tiny, file):
    base = single_file.read(open_tensors(file)).to()
    latents, timestep = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    ours, theirs = (each.predict(latents, timestep, each.text.encode(["a red fox"])) for each in (base, tiny))
    assert torch.equal(ours, theirs)


def test_the_hash_of_a_base_is_its_files(file):
    assert single_file.read(open_tensors(file)).hash == hashlib.sha256(file.read_bytes()).hexdigest()[:10]


def test_the_metadata_has_model_specs_fields(tiny, tmp_path):
    path = tmp_path / "header.safetensors"
    write_single_file.write(tiny, path, {"velatura.bake": "{}"})
    found = open_tensors(path).metadata
    assert found["modelspec.architecture"] == "velatura-tiny"
    assert found["modelspec.prediction_type"] == "epsilon"
    assert found["velatura.bake"] == "{}"


def test_diffusers_opens_it_as_a_whole_pipeline(tiny, file):
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file), config=str(DATA_FOLDER / "tiny"), local_files_only=True
    )
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text0": pipeline.text_encoder}
    assert same(all_tensors(parts), weights(tiny))


def test_an_sd2_has_a_text_encoder_of_24_layers_under_openclips_names(tiny, tmp_path):
    torch.manual_seed(0)
    settings = {"vocab_size": 857, "hidden_size": 96, "intermediate_size": 8, "num_attention_heads": 4}
    encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=23, hidden_act="gelu", **settings))
    family = replace(tiny.family, name="SD2", prediction="v_prediction")
    text = TextEncoder([ClipTextEncoder(tiny.text.tokenizer, encoder)])
    base = Base("two", family, unet=tiny.unet, vae=tiny.vae, text=text, schedule=NoiseSchedule())
    write_single_file.write(base, tmp_path / "two.safetensors")
    contents = open_tensors(tmp_path / "two.safetensors")
    assert contents.tensors["cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight"].shape == (288, 96)
    found = single_file.read(contents)
    assert same(found.text.model.state_dict(), encoder.state_dict())
    assert found.family.prediction == "v_prediction"
    assert torch.equal(found.text.encode(["a red fox"]), text.encode(["a red fox"]))


def family_shaped(tiny, family: str) -> Base:
    """A base with a family's widths and levels but little else: what tells SD1 and SD2 apart is all there."""
    linear, heads, cross = {"SD1": (False, 8, 768), "SD2": (True, [5, 10, 20, 20], 1024)}[family]
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=FAMILIES[family].default_pixels // 8,
            attention_head_dim=heads,
            cross_attention_dim=cross,
            use_linear_projection=linear,
        )
    vae = AutoencoderKL(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        sample_size=FAMILIES[family].default_pixels,
    )
    text = CLIPTextConfig(
        hidden_size=cross,
        intermediate_size=8,
        vocab_size=len(tiny.text.tokenizer),
        num_hidden_layers=2,
        **(
            {"num_attention_heads": 12, "projection_dim": 768}
            if family == "SD1"
            else {"num_attention_heads": 16, "hidden_act": "gelu"}
        ),
    )
    encoder = TextEncoder([ClipTextEncoder(tiny.text.tokenizer, CLIPTextModel(text))])
    return Base(family, FAMILIES[family], unet=unet, vae=vae, text=encoder, schedule=NoiseSchedule())


@pytest.mark.parametrize("family", ["SD1", "SD2"])
def test_a_familys_settings_need_no_metadata(tiny, family):
    base = family_shaped(tiny, family)
    hints = config_hints.CONFIG_HINTS[family]
    found = config_hints.config_hints(base.unet, base.vae, [base.text.model])
    assert found["text"].pop("num_hidden_layers") == base.text.model.config.num_hidden_layers
    assert hints == found
    unet = ldm_config.unet_config(base.unet.state_dict()) | hints["unet"]
    vae = ldm_config.vae_config(base.vae.state_dict()) | hints["vae"]
    assert determine_family(unet, vae, base.family.prediction) == base.family


def test_a_schedule_of_its_own_is_refused(tiny, tmp_path):
    parts = {"unet": tiny.unet, "vae": tiny.vae, "text": tiny.text}
    other = Base("other", tiny.family, **parts, schedule=NoiseSchedule(beta_start=0.001))
    with pytest.raises(UnsupportedBase, match="noise schedule"):
        write_single_file.write(other, tmp_path / "other.safetensors")


def test_a_missing_tensor_is_refused(file):
    with pytest.raises(BadFile, match=r"time_embedding\.linear_1\.weight"):
        single_file.read(changed(file, **{"model.diffusion_model.time_embed.0.weight": None}))


def test_a_misshapen_tensor_is_refused(file):
    with pytest.raises(BadFile, match=r"time_embedding\.linear_1\.bias"):
        single_file.read(changed(file, **{"model.diffusion_model.time_embed.0.bias": torch.zeros(3)}))


def test_an_sdxl_is_refused_by_name(file):
    with pytest.raises(BadFile, match="of an SD1 and an SDXL at once"):
        single_file.read(changed(file, **{"conditioner.embedders.1.model.ln_final.bias": torch.zeros(1)}))


@pytest.mark.parametrize(
    "settings",
    [
        "[]",
        "{",
        json.dumps({"unet": {}, "vae": {}}),
        json.dumps({"unet": {"norm_num_groups": -1}, "vae": {}, "text": {}}),
        json.dumps({"unet": {}, "vae": {}, "text": {"num_attention_heads": "x"}}),
    ],
)
def test_damaged_settings_are_refused(file, settings):
    with pytest.raises(BadFile):
        single_file.read(changed(file, metadata={"velatura.base": settings}))


@pytest.mark.parametrize("more", [{"layers_per_block": 10**6}, {"reverse_transformer_layers_per_block": 10**6}])
def test_no_setting_makes_a_model_larger_than_its_file(file, tiny, more):
    settings = json.loads(open_tensors(file).metadata["velatura.base"])
    settings["unet"] |= more
    metadata = {**open_tensors(file).metadata, "velatura.base": json.dumps(settings)}
    with pytest.warns(VelaturaWarning, match=rf"metadata that velatura does not know \(unet\.{next(iter(more))[:20]}"):
        base = single_file.read(changed(file, metadata=metadata))
    assert base.unet.state_dict().keys() == tiny.unet.state_dict().keys()


@pytest.mark.parametrize(("size", "message"), [(10**9, "sample_size of its unet is 1000000000"), (8000, "pixels")])
def test_a_picture_size_out_of_range_is_refused(file, size, message):
    settings = {"unet": {"sample_size": size}, "vae": {}, "text": {}}
    with pytest.raises(BadFile, match=message):
        single_file.read(changed(file, metadata={"velatura.base": json.dumps(settings)}))


def test_a_setting_that_a_checkpoint_cannot_store_is_refused(tiny, tmp_path):
    unet = UNet2DConditionModel.from_config(tiny.unet.config, resnet_time_scale_shift="scale_shift")
    other = Base("other", tiny.family, unet=unet, vae=tiny.vae, text=tiny.text, schedule=NoiseSchedule())
    with pytest.raises(UnsupportedBase, match="resnet_time_scale_shift"):
        write_single_file.write(other, tmp_path / "other.safetensors")


def test_another_prediction_is_refused(file):
    with pytest.raises(UnsupportedBase, match="'flow'"):
        single_file.read(changed(file, metadata={"modelspec.prediction_type": "flow"}))


def without_vocabulary(file):
    return changed(file, metadata={"velatura.base": open_tensors(file).metadata["velatura.base"]})


def test_a_missing_vocabulary_is_refused_with_advice(file):
    with pytest.raises(UnsupportedBase, match="tokenizer/"):
        single_file.read(without_vocabulary(file))


def test_a_tokenizer_beside_the_file_is_used(tiny, file, tmp_path):
    tiny.text.tokenizer.save_pretrained(tmp_path / "tokenizer")
    base = single_file.read(replace(without_vocabulary(file), path=tmp_path / "one.safetensors"))
    assert base.text.token_ids("a red fox at dusk") == tiny.text.token_ids("a red fox at dusk")


@pytest.mark.parametrize(
    "more", [{"vocab": {}}, {"vocab": 1}, {"merges": [["a", "zz"]]}, {"pad_token": "nowhere"}, {"merges": 3}]
)
def test_a_vocabulary_that_does_not_fit_is_refused(file, more):
    metadata = open_tensors(file).metadata
    words = json.dumps(json.loads(metadata[vocabulary.TOKENIZER_KEY]) | more)
    with pytest.raises(BadFile):
        single_file.read(changed(file, metadata={**metadata, vocabulary.TOKENIZER_KEY: words}))


def test_an_overlay_is_not_recognised_as_a_checkpoint(tiny, tmp_path):
    velatura.save(velatura.Hypernetwork.for_base(tiny), tmp_path / "hyper.safetensors")
    assert not single_file.sniff(open_tensors(tmp_path / "hyper.safetensors"))
