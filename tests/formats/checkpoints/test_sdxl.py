"""SDXL on disk: a tiny random one with both text encoders, as one checkpoint and as a folder."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import velatura
from tests.formats.checkpoints.states import changed, same, weights
from velatura.base.base import Base
from velatura.base.families import Family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.checkpoints import single_file
from velatura.formats.checkpoints.tensor_sources import Destination
from velatura.tensors import Contents, open_state_dict, open_tensors

FAMILY = Family("unknown", 40, (16, 32), 2, 0.13025, 32, "epsilon")
POOLED = 20


def random_sdxl(tiny) -> Base:
    """A base of an SDXL's plan and the least widths, whose every tensor is different."""
    torch.manual_seed(0)
    words = {"vocab_size": 857, "bos_token_id": 855, "eos_token_id": 856, "pad_token_id": 856, "intermediate_size": 8}
    small = CLIPTextConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, **words)
    large = CLIPTextConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=3, hidden_act="gelu", projection_dim=POOLED, **words
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(1, 2, 4),
        norm_num_groups=4,
        cross_attention_dim=40,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        scaling_factor=0.13025,
        sample_size=32,
    )
    models = CLIPTextModel(small), CLIPTextModelWithProjection(large)
    encoders = [
        ClipTextEncoder(tiny.text.tokenizer, model, default_clip_skip=2, has_final_norm=False, takes_clip_skip=False)
        for model in models
    ]
    text = TextEncoder(encoders)
    return Base("xl", FAMILY, unet=unet, vae=vae, text=text, schedule=NoiseSchedule()).to()


@pytest.fixture(scope="module")
def sdxl(tiny):
    return random_sdxl(tiny)


@pytest.fixture(scope="module")
def file(sdxl, tmp_path_factory):
    path = tmp_path_factory.mktemp("sdxl") / "xl.safetensors"
    velatura.save(sdxl, path)
    return path


@pytest.fixture(scope="module")
def folder(sdxl, tmp_path_factory):
    path = tmp_path_factory.mktemp("sdxl") / "xl"
    velatura.save(sdxl, path)
    return path


@torch.no_grad()
def prediction(base):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return base.predict(latents, torch.tensor(500), base.text.conditioning(["a red fox"]))


@pytest.mark.parametrize("form", ["file", "folder"])
def test_it_comes_back_bit_for_bit(sdxl, form, request):
    base = velatura.open_base(request.getfixturevalue(form), dtype="float32", device="cpu")
    assert same(weights(base), weights(sdxl))
    assert base.family == sdxl.family
    assert [(each.default_clip_skip, each.has_final_norm, each.takes_clip_skip) for each in base.text.encoders] == [
        (2, False, False)
    ] * 2
    assert torch.equal(prediction(base), prediction(sdxl))


def test_its_names_are_those_of_sdxls_files(file):
    keys = open_tensors(file).tensors.keys()
    assert {
        "model.diffusion_model.label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.2.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
        "first_stage_model.decoder.mid.attn_1.q.weight",
    } <= keys


@pytest.mark.parametrize("form", ["file", "folder"])
def test_diffusers_opens_it(sdxl, form, folder, request):
    path = request.getfixturevalue(form)
    pipeline = (
        StableDiffusionXLPipeline.from_single_file(str(path), config=str(folder), local_files_only=True)
        if form == "file"
        else StableDiffusionXLPipeline.from_pretrained(folder)
    )
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2
    ours = sdxl.unet, sdxl.vae, *(encoder.model for encoder in sdxl.text.encoders)
    assert all(same(mine.state_dict(), theirs.state_dict()) for mine, theirs in zip(ours, parts, strict=True))
    words = pipeline.encode_prompt("a red fox", do_classifier_free_guidance=False)
    expected = sdxl.text.conditioning(["a red fox"])
    torch.testing.assert_close(words[0], expected.context)
    torch.testing.assert_close(words[2], expected.pooled)


def test_half_precision_is_written_when_asked_for(sdxl, tmp_path):
    velatura.save(sdxl, tmp_path / "half.safetensors", dtype="float16")
    tensors = open_tensors(tmp_path / "half.safetensors").tensors
    assert {tensors[key].dtype for key in tensors} == {torch.float16}
    base = velatura.open_base(tmp_path / "half.safetensors", dtype="float32", device="cpu")
    assert same(weights(base), {key: tensor.half().float() for key, tensor in weights(sdxl).items()})


def test_a_torch_checkpoint_is_read_in_the_precision_asked_for(sdxl, file, tmp_path):
    state = {key: tensor.half() for key, tensor in open_tensors(file).tensors.items()}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "xl.ckpt")
    contents = open_state_dict(tmp_path / "xl.ckpt")
    hinted = Contents(contents.path, contents.tensors, open_tensors(file).metadata)
    base = single_file.read(hinted, Destination(torch.bfloat16))
    assert {tensor.dtype for tensor in weights(base).values()} == {torch.bfloat16}
    expected = {key: tensor.half().bfloat16() for key, tensor in weights(sdxl).items()}
    assert same(weights(base), expected)


def test_velocity_and_zero_snr_are_marked_by_empty_tensors(sdxl, file, tmp_path):
    base = single_file.read(changed(file, v_pred=torch.empty(0), ztsnr=torch.empty(0)))
    assert base.family.prediction == "v_prediction"
    assert base.schedule.zero_snr
    velatura.save(base, tmp_path / "v.safetensors")
    assert {"v_pred", "ztsnr"} <= open_tensors(tmp_path / "v.safetensors").tensors.keys()
    again = velatura.open_base(tmp_path / "v.safetensors")
    assert (again.family.prediction, again.schedule.zero_snr) == ("v_prediction", True)
    velatura.save(base, tmp_path / "v")
    again = velatura.open_base(tmp_path / "v")
    assert (again.family.prediction, again.schedule.zero_snr) == ("v_prediction", True)
    assert torch.equal(again.schedule.alphas_cumprod, base.schedule.alphas_cumprod)


def test_a_refiner_is_refused_by_name(file):
    contents = open_tensors(file)
    keys = {key.replace("embedders.1", "embedders.0"): key for key in contents.tensors if "embedders.0" not in key}
    refiner = Contents(file, {key: contents.tensors[own] for key, own in keys.items()}, contents.metadata)
    with pytest.raises(UnsupportedBase, match="refiner of an SDXL"):
        single_file.read(refiner)


def test_two_families_at_once_are_refused(file):
    with pytest.raises(BadFile, match="of an SD1 and an SDXL at once"):
        single_file.read(
            changed(file, **{"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.ones(1)})
        )


def test_a_unet_that_does_not_fit_the_pooled_embedding_is_refused(file):
    wide = torch.zeros(32, POOLED + 3)
    with pytest.raises(BadFile, match="23 features"):
        single_file.read(changed(file, **{"model.diffusion_model.label_emb.0.0.weight": wide}))


def test_a_folder_that_holds_something_is_not_written_to(sdxl, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(velatura.VelaturaError, match="already exists and is not empty"):
        velatura.save(sdxl, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]
