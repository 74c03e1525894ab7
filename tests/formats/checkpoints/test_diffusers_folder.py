import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

import velatura
from tests.formats.checkpoints.states import same
from velatura.errors import BadFile, UnknownName, UnsupportedBase, VelaturaWarning
from velatura.formats.checkpoints import vae_file
from velatura.tensors import Contents, open_tensors, write_safetensors
from velatura.tiny import DATA_FOLDER

TINY = DATA_FOLDER / "tiny"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(TINY, tmp_path / "copy")


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_the_unet_computes_what_diffusers_own_loading_does(tiny):
    theirs = UNet2DConditionModel.from_pretrained(TINY / "unet", torch_dtype=torch.float32)
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 96)
    with torch.no_grad():
        ours = tiny.predict(latents, torch.tensor([3, 900]), context)
        torch.testing.assert_close(ours, theirs(latents, torch.tensor([3, 900]), context).sample, rtol=1e-4, atol=1e-4)


def test_the_text_encoder_computes_what_transformers_own_loading_does(tiny):
    theirs = CLIPTextModel.from_pretrained(TINY / "text_encoder", dtype=torch.float32)
    ids = torch.randint(0, 500, (2, 77))
    with torch.no_grad():
        torch.testing.assert_close(tiny.text.encoders[0].encode_ids(ids).hidden, theirs(ids).last_hidden_state)


def test_tensors_are_those_of_the_file(tiny):
    file = open_tensors(TINY / "unet" / "diffusion_pytorch_model.safetensors").tensors
    loaded = tiny.unet.state_dict()
    assert loaded.keys() == file.keys()
    assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in file.items())


def test_the_hash_is_that_of_the_unets_file(tiny):
    assert tiny.hash == hash_of(TINY / "unet" / "diffusion_pytorch_model.safetensors")


def test_precision_can_be_chosen():
    base = velatura.open_base(TINY, dtype="bfloat16", device="cpu")
    assert base.dtype == torch.bfloat16
    latents = torch.randn(1, 4, 16, 16)
    assert base.predict(latents, torch.tensor(5), base.text.encode(["a tree"])).dtype == torch.float32
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        velatura.open_base(TINY, dtype="floot16")
    with pytest.raises(UnknownName, match="device"):
        velatura.open_base(TINY, device="gpu")


def test_a_folder_cut_short_names_what_is_wrong(copy):
    weights = weights_of(copy)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match="cut short"):
        velatura.open_base(copy)
    weights.unlink()
    with pytest.raises(BadFile, match=r"holds neither diffusion_pytorch_model\.safetensors nor .* but no weights"):
        velatura.open_base(copy)


def weights_of(copy):
    return copy / "unet" / "diffusion_pytorch_model.safetensors"


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_weights_are_those_that_diffusers_chooses(copy):
    weights = weights_of(copy)
    # diffusers' names of weights before averaging, and of half ones, which come first in the alphabet
    weights.with_suffix(".non_ema.safetensors").write_bytes(b"not read")
    weights.with_suffix(".fp16.safetensors").write_bytes(b"not read")
    assert velatura.open_base(copy).hash == hash_of(weights)
    weights.replace(weights.with_suffix(".fp16.safetensors"))
    assert velatura.open_base(copy).hash == hash_of(weights.with_suffix(".fp16.safetensors"))


def test_weights_of_another_name_are_not_used(copy):
    weights_of(copy).rename(weights_of(copy).with_suffix(".non_ema.safetensors"))
    with pytest.raises(BadFile, match=r"but diffusion_pytorch_model\.non_ema\.safetensors"):
        velatura.open_base(copy)


def sharded(copy, ending="safetensors"):
    """The UNet's weights in two files and an index, as diffusers writes large ones."""
    whole = weights_of(copy)
    tensors = dict(open_tensors(whole).tensors)
    whole.unlink()
    names = [f"diffusion_pytorch_model-{place:05}-of-00002.{ending}" for place in (1, 2)]
    places = {key: names[index % 2] for index, key in enumerate(sorted(tensors))}
    for name in names:
        mine = {key: tensors[key] for key in tensors if places[key] == name}
        path = copy / "unet" / name
        torch.save(mine, path) if ending == "bin" else write_safetensors(path, mine)
    index = copy / "unet" / f"diffusion_pytorch_model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_weights_in_shards_are_joined(copy, tiny, ending):
    sharded(copy, ending)
    assert same(velatura.open_base(copy).unet.state_dict(), tiny.unet.state_dict())


@pytest.mark.parametrize("place", ["../../secret", "/etc/hostname", 3, None, "other.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(copy, place):
    index = sharded(copy)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": place}}))
    with pytest.raises(BadFile, match="not a shard in the same folder"):
        velatura.open_base(copy)


def test_an_index_that_is_wrong_is_refused(copy):
    index = sharded(copy)
    found = json.loads(index.read_text())
    found["weight_map"]["nowhere"] = found["weight_map"]["conv_in.weight"]
    index.write_text(json.dumps(found))
    with pytest.raises(BadFile, match=r"'nowhere' is in .* but it is not"):
        velatura.open_base(copy)
    index.write_text("[" * 20000)
    with pytest.raises(BadFile, match=r"index\.json"):
        velatura.open_base(copy)


def test_torch_weights_are_read(copy, tiny):
    for part in ("unet", "vae"):
        path = copy / part / "diffusion_pytorch_model.safetensors"
        torch.save(dict(open_tensors(path).tensors), path.with_suffix(".bin"))
        path.unlink()
    path = copy / "text_encoder" / "model.safetensors"
    old = {f"text_model.{key}": tensor for key, tensor in open_tensors(path).tensors.items()}
    torch.save(old | {"text_model.embeddings.position_ids": torch.arange(77)}, path.with_name("pytorch_model.bin"))
    path.unlink()
    base = velatura.open_base(copy)
    assert same(base.unet.state_dict(), tiny.unet.state_dict())
    assert same(base.vae.state_dict(), tiny.vae.state_dict())
    assert same(base.text.model.state_dict(), tiny.text.model.state_dict())


def test_an_autoencoders_attention_may_have_its_old_names():
    keys = ["encoder.down_blocks.0.resnets.0.norm1.weight", "encoder.mid_block.attentions.0.proj_attn.weight"]
    found = vae_file.sources(Contents(Path("old.safetensors"), {key: torch.ones(2, 2) for key in keys}))
    assert list(found) == [keys[0], "encoder.mid_block.attentions.0.to_out.0.weight"]


def test_a_missing_tokenizer_of_other_tokens_is_named(copy):
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UnsupportedBase, match="857 tokens"):
        velatura.open_base(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 5}, "is a model for depth: its UNet reads 5 channels, and velatura opens UNets of 4"),
        ({"in_channels": 6}, "is a model for another purpose"),
        ({"class_embed_type": "projection"}, "reads more than the prompt's context"),
        ({"addition_embed_type": "image"}, "reads more than the prompt's context"),
        ({"resnet_time_scale_shift": "scale_shift"}, "has the setting resnet_time_scale_shift"),
        ({"reverse_transformer_layers_per_block": 10**6}, "has the setting reverse_transformer"),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(copy, changes, message):
    change(copy / "unet" / "config.json", **changes)
    with pytest.raises(UnsupportedBase, match=message):
        velatura.open_base(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "linear"}, "schedule 'linear', not 'scaled_linear'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"prediction_type": "sample"}, "predicts 'sample'"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "is an EDM model"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "is an EDM model"),
    ],
)
def test_unsupported_noise_schedules_are_refused(copy, changes, message):
    change(copy / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(UnsupportedBase, match=message):
        velatura.open_base(copy)


def test_a_folder_whose_latents_have_a_mean_is_refused(copy):
    change(copy / "vae" / "config.json", latents_mean=[-1.6, 1.8, 2.1, -0.6])  # as in Playground 2.5
    with pytest.raises(UnsupportedBase, match="is an EDM model"):
        velatura.open_base(copy)


def test_a_schedule_may_end_at_zero_snr(copy):
    change(copy / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    theirs = DDIMScheduler.from_pretrained(copy / "scheduler").alphas_cumprod
    ours = velatura.open_base(copy).schedule.alphas_cumprod
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-3, atol=1e-6)
    assert 0 < ours[-1] < 1e-7


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("model_index.json", {"_class_name": ["os", "system"]}, r"names .*os.*system.* in place of a pipeline"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "not a StableDiffusionPipeline"),
        ("model_index.json", {"unet": ["my_unet", "MyUNet"]}, "asks for code of its own for 'unet'"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map"),
        ("unet/config.json", {"block_out_channels": [10**9], "cross_attention_dim": 10**9}, "belongs to another model"),
        ("unet/config.json", {"layers_per_block": 10**6}, "belongs to another model"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "belongs to another model"),
        ("unet/config.json", {"norm_eps": float("nan")}, "norm_eps of its unet is nan"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "scaling_factor of its vae is nan"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "noise schedule of 1000000000000 steps"),
        ("scheduler/scheduler_config.json", {"beta_end": float("nan")}, "noise schedule"),
    ],
)
def test_settings_that_ask_for_code_or_are_out_of_range_are_refused(copy, name, more, message):
    change(copy / name, **more)
    with pytest.raises((BadFile, UnsupportedBase), match=message):
        velatura.open_base(copy)


def test_deeply_nested_settings_are_refused(copy):
    (copy / "unet" / "config.json").write_text('{"a":' * 20000 + "1" + "}" * 20000)
    with pytest.raises(BadFile, match=r"config\.json cannot be read"):
        velatura.open_base(copy)


def test_the_autoencoder_of_a_file_replaces_the_folders(copy, tiny, tmp_path):
    other = {key: tensor + 1 for key, tensor in tiny.vae.state_dict().items()}
    write_safetensors(tmp_path / "other.safetensors", other)
    base = velatura.open_base(copy, vae=tmp_path / "other.safetensors")
    assert same(base.vae.state_dict(), other)


@pytest.mark.parametrize("key", ["beta_start", "beta_schedule", "num_train_timesteps"])
def test_a_scheduler_cut_short_is_refused(copy, key):
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({name: each for name, each in json.loads(path.read_text()).items() if name != key}))
    with pytest.raises(BadFile, match=f"without '{key}'"):
        velatura.open_base(copy)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_config_is_refused(copy, content):
    (copy / "unet" / "config.json").write_text(content)
    with pytest.raises(BadFile, match=r"config\.json|without 'block_out_channels'"):
        velatura.open_base(copy)


def test_a_config_of_another_model_is_refused(copy):
    change(copy / "unet" / "config.json", cross_attention_dim=48)
    with pytest.raises(BadFile, match="belongs to another model"):
        velatura.open_base(copy)


def test_the_folder_of_a_refiner_is_refused_by_name(copy):
    (copy / "text_encoder").rename(copy / "text_encoder_2")
    with pytest.raises(UnsupportedBase, match="refiner of an SDXL"):
        velatura.open_base(copy)


def test_the_autoencoder_of_another_folder_replaces_the_folders(copy, tiny, tmp_path):
    other = {key: tensor + 1 for key, tensor in tiny.vae.state_dict().items()}
    write_safetensors(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", other)
    assert same(velatura.open_base(copy, vae=tmp_path / "vae").vae.state_dict(), other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hat": 1}, r"copy/tokenizer has settings that velatura does not know \(hat\)"),
        ({"auto_map": {"AutoTokenizer": ["x.y", None]}}, r"does not know \(auto_map\)"),
        ({"tokenizer_class": "BertTokenizer"}, "says that tokenizer_class is 'BertTokenizer': it is ignored"),
        ({"do_lower_case": False}, "says that do_lower_case is 'False': it is ignored"),
        ({"model_max_length": 10}, "says that model_max_length is '10': it is ignored"),
    ],
)
def test_settings_of_a_tokenizer_that_are_not_followed_are_named(copy, tiny, changes, message):
    change(copy / "tokenizer" / "tokenizer_config.json", **changes)
    with pytest.warns(VelaturaWarning, match=message):
        base = velatura.open_base(copy, device="cpu")
    assert base.text.token_ids("a Red house") == tiny.text.token_ids("a Red house")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # tokens that are not in vocab.json get a number behind its last one, for which there is no vector
        ({"bos_token": "<bos>"}, r"tokenizer has 858 tokens, and its text encoder has vectors for 857"),
        ({"additional_special_tokens": ["<a>"]}, r"tokenizer has 858 tokens"),
        ({"model_max_length": "x"}, r"model_max_length is 'x', not a number"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_text_encoder_is_refused(copy, changes, message):
    change(copy / "tokenizer" / "tokenizer_config.json", **changes)
    with pytest.raises(BadFile, match=message):
        velatura.open_base(copy, device="cpu")


# as transformers writes it where no length is known, and as SD1's published folder has it
@pytest.mark.parametrize("changes", [{"model_max_length": 10**30}, {"do_lower_case": True, "errors": "replace"}])
def test_usual_settings_of_a_tokenizer_are_no_trouble(copy, changes):
    change(copy / "tokenizer" / "tokenizer_config.json", **changes)
    velatura.open_base(copy, device="cpu")
