"""LoRAs written for other programs, overlay by diffusers and peft themselves."""

import hashlib
import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file

import velatura
from velatura.base.families import FAMILIES
from velatura.errors import BadFile, BadOverlay, UnknownName, VelaturaWarning
from velatura.formats.loras.header import build_header
from velatura.formats.loras.names import ldm_layer
from velatura.overlays.deltas import DELTAS
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Card
from velatura.tensors import open_tensors

DATA = Path(__file__).parents[2] / "data"
FILES = sorted(
    path.name for folder in ("nature", "trainers/unet") for path in (DATA / folder).glob("[kl]*co*.safetensors")
)


def open_fixture(name):
    path = DATA / "nature" / name
    return velatura.open_overlay(path if path.exists() else DATA / "trainers" / "unet" / name)


def same(first, second):
    first_state, second_state = first.state_dict(), second.state_dict()
    return first_state.keys() == second_state.keys() and all(
        torch.equal(first_state[key], second_state[key]) for key in first_state
    )


@pytest.fixture
def trained(tiny):
    """Make LoRAs for the tiny base that do something."""

    def make(**options):
        lora = Lora.for_base(tiny, **{"rank": 4, "alpha": 2.0, "seed": 0, **options})
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in lora.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return lora

    return make


@torch.no_grad()
def outputs(unet, text):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 7, 96, generator=generator)
    ids = torch.arange(2 * 77).view(2, 77) % 500
    return unet(x, 500, context).sample, text(ids).last_hidden_state


def attached_outputs(base, lora):
    with velatura.attach(base, lora):
        return outputs(base.unet, base.text.model)


def close(outputs, expected):
    return all(torch.allclose(tensor, other, atol=1e-4) for tensor, other in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_read_and_written_stays_the_same(tmp_path, name):
    lora = open_fixture(name)
    velatura.save(lora, tmp_path / name)
    again = velatura.open_overlay(tmp_path / name)
    assert same(again, lora)
    assert again.card == lora.card
    stored = {key: value for key, value in lora.metadata.items() if key.startswith("ss_") and value}
    assert stored.items() <= again.metadata.items()


@pytest.mark.parametrize("algorithm", DELTAS)
@pytest.mark.filterwarnings("ignore:.*only velatura reads from such a file:velatura.VelaturaWarning")
def test_every_algorithm_is_stored(tiny, tmp_path, algorithm):
    torch.manual_seed(0)
    kind = DELTAS[algorithm]
    layer = torch.nn.LayerNorm(8) if algorithm == "norm" else torch.nn.Linear(8, 8)
    lora = Lora(Card(kind="lora", name="ink"), {"lora_unet_conv_in": kind.for_layer(layer, rank=4, alpha=2.0)})
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    velatura.save(lora, tmp_path / "ink.safetensors")
    assert same(velatura.open_overlay(tmp_path / "ink.safetensors"), lora)


def test_the_header_has_the_fields_that_other_programs_read(trained, tmp_path):
    lora = trained(name="ink")
    lora.card = lora.card.replace(steps=120, trigger_words=("my-style",), note="first try", family="SD1")
    velatura.save(lora, tmp_path / "x.safetensors")
    metadata = open_tensors(tmp_path / "x.safetensors").metadata
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "ink",
        "ss_steps": "120",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "ink",
        "modelspec.trigger_phrase": "my-style",
    }
    assert expected.items() <= metadata.items()


def test_both_hashes_follow_kohyas_rules(trained, tmp_path):
    velatura.save(trained(rank=64, targets="linear"), tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    metadata = json.loads(whole[8 : 8 + length])["__metadata__"]
    assert metadata["sshs_model_hash"] == hashlib.sha256(whole[8 + length :]).hexdigest()
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] = {key: value for key, value in header["__metadata__"].items() if key.startswith("ss_")}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    bare = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    assert len(bare) > 0x110000
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8]


def test_a_lora_is_written_in_the_precision_asked_for(trained, tmp_path):
    lora = trained()
    velatura.save(lora, tmp_path / "x.safetensors", dtype="float16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "x.safetensors").values()} == {torch.float16}
    assert {parameter.dtype for parameter in lora.parameters()} == {torch.float32}


def test_values_beyond_a_precision_are_refused(trained, tmp_path):
    lora = trained()
    with torch.no_grad():
        next(lora.parameters()).fill_(1e6)
    with pytest.raises(BadFile, match=r"beyond torch\.float16"):
        velatura.save(lora, tmp_path / "x.safetensors", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_the_unet_layers_of_an_sdxl_have_ldms_names_in_kohyas_files(tmp_path):
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    delta = DELTAS["lora"].for_layer(torch.nn.Linear(2048, 640), rank=2, alpha=2.0)
    lora = Lora(Card(kind="lora", family="SDXL"), {layer: delta})
    velatura.save(lora, tmp_path / "x.safetensors")
    keys = load_file(tmp_path / "x.safetensors").keys()
    assert (
        {key.partition(".")[0] for key in keys}
        == {ldm_layer(layer)}
        == {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"}
    )
    assert same(velatura.open_overlay(tmp_path / "x.safetensors"), lora)


def test_embeddings_in_a_lora_are_written(trained, tmp_path):
    lora = trained()
    pair = {"clip_l": torch.ones(1, 8), "clip_g": torch.zeros(1, 9)}
    lora.bundled_embeddings = {"my.style": {"*": torch.ones(2, 96)}, "other": pair}
    velatura.save(lora, tmp_path / "x.safetensors")
    again = velatura.open_overlay(tmp_path / "x.safetensors").bundled_embeddings
    assert again.keys() == lora.bundled_embeddings.keys()
    for name, vectors in lora.bundled_embeddings.items():
        assert all(torch.equal(again[name][encoder], tensor) for encoder, tensor in vectors.items())


PIPELINE_OPTIONS = [
    {"text": True},
    {"algorithm": "dora", "targets": "conv"},
    pytest.param({"rank_stabilised": True}, marks=pytest.mark.slow),
    pytest.param({"targets": "conv", "text": True}, marks=pytest.mark.slow),
    pytest.param({"algorithm": "dora", "text": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", PIPELINE_OPTIONS, ids=str)
def test_diffusers_computes_the_same_from_its_file(tiny, trained, tmp_path, options):
    lora = trained(**options)
    velatura.save(lora, tmp_path / "pytorch_lora_weights.safetensors", dialect="diffusers")
    again = velatura.open_overlay(tmp_path / "pytorch_lora_weights.safetensors")
    expected = attached_outputs(tiny, lora)
    assert close(attached_outputs(tiny, again), expected)
    pipe = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=deepcopy(tiny.text.model),
        tokenizer=None,
        unet=deepcopy(tiny.unet),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    assert close(outputs(pipe.unet, pipe.text_encoder), expected)
    assert not close(expected, outputs(tiny.unet, tiny.text.model))


FOLDER_OPTIONS = [
    {"text": True},
    {"algorithm": "dora"},
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({"targets": "conv"}, marks=pytest.mark.slow),
    pytest.param({"algorithm": "loha", "text": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", FOLDER_OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_peft_computes_the_same_from_its_folder(tiny, trained, tmp_path, options):
    lora = trained(**options)
    velatura.save(lora, tmp_path / "adapter", dialect="peft")
    expected = attached_outputs(tiny, lora)
    assert close(attached_outputs(tiny, velatura.open_overlay(tmp_path / "adapter")), expected)
    text, unet = deepcopy(tiny.text.model), deepcopy(tiny.unet)
    parts = {"unet": unet, "text_encoder": text} if options.get("text") else {"": unet}
    for part, model in parts.items():
        peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter" / part))
    assert close(outputs(unet, text), expected)


@torch.no_grad()
def xl_outputs(unet, *text_encoders):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, 40, generator=generator)
    added = {"text_embeds": torch.randn(1, 20, generator=generator), "time_ids": torch.ones(1, 6)}
    ids = torch.arange(77)[None]
    hidden = (text_encoder(ids, output_hidden_states=True).hidden_states[-2] for text_encoder in text_encoders)
    return unet(x, 500, context, added_cond_kwargs=added).sample, *hidden


def test_diffusers_computes_the_same_from_a_file_for_two_text_encoders(xl, tmp_path):
    lora = Lora.for_base(xl, rank=2, text=True, seed=0)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    velatura.save(lora, tmp_path / "x.safetensors", dialect="diffusers")
    text_encoders = [deepcopy(text_encoder.model) for text_encoder in xl.text.encoders]
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=text_encoders[0],
        text_encoder_2=text_encoders[1],
        tokenizer=None,
        tokenizer_2=None,
        unet=deepcopy(xl.unet),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        add_watermarker=False,
    )
    plain = xl_outputs(pipe.unet, *text_encoders)
    pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    diffusers_outputs = xl_outputs(pipe.unet, *text_encoders)
    for overlay in (lora, velatura.open_overlay(tmp_path / "x.safetensors")):
        with velatura.attach(xl, overlay):
            outputs_here = xl_outputs(xl.unet, *(text_encoder.model for text_encoder in xl.text.encoders))
        assert close(outputs_here, diffusers_outputs)
    assert not any(
        torch.allclose(tensor, other, atol=1e-3) for tensor, other in zip(plain, diffusers_outputs, strict=True)
    )


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_embeddings_that_a_dialect_leaves_out_are_warned_of(trained, tmp_path, dialect):
    lora = trained()
    lora.bundled_embeddings = {"neon": {"*": torch.ones(1, 96)}}
    with pytest.warns(VelaturaWarning, match=r"cannot store the embeddings of a LoRA \(neon\)"):
        velatura.save(lora, tmp_path / "x", dialect=dialect)


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_algorithms_that_a_dialect_cannot_store_are_refused(trained, tmp_path, dialect):
    with pytest.raises(BadOverlay, match="cannot store lokr"):
        velatura.save(trained(algorithm="lokr"), tmp_path / "x", dialect=dialect)
    assert not list(tmp_path.iterdir())


def test_magnitudes_of_columns_are_kohyas_only(tmp_path):
    tensors = {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(6, 1), "dora_scale": torch.ones(1, 4)}
    lora = Lora.from_tensors({f"lora_unet_conv_in.{suffix}": tensor for suffix, tensor in tensors.items()})
    with pytest.raises(BadOverlay, match="has those of columns"):
        velatura.save(lora, tmp_path / "x.safetensors", dialect="diffusers")


def test_a_lora_has_no_dialect_of_hypernetworks(trained, tmp_path):
    with pytest.raises(UnknownName, match="no dialect is called 'a1111'"):
        velatura.save(trained(), tmp_path / "x.pt", dialect="a1111")
    with pytest.raises(UnknownName, match="no file ending for a lora"):
        velatura.save(trained(), tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("family", "prediction", "version", "spec"),
    [
        ("SDXL", "epsilon", "sdxl_base_v1-0", "epsilon"),
        ("SDXL", "v_prediction", "sdxl_base_v1-0_v", "v"),
        ("SD1", "v_prediction", "sd_v1_v", "v"),
        ("SD2", "v_prediction", "sd_v2_v", "v"),
        ("SD2", "epsilon", "sd_v2", "epsilon"),
    ],
)
def test_the_header_names_the_prediction_of_the_base(lora, family, prediction, version, spec):
    """sd-scripts writes sd_v1, sd_v2 or sdxl_base_v1-0, and _v behind it for a base that predicts velocity."""
    overlay = lora()
    unusual = replace(FAMILIES[family], prediction=prediction).unusual_prediction
    overlay.card = overlay.card.replace(family=family, prediction=unusual)
    header = build_header(overlay, "ink")
    assert (header["ss_base_model_version"], header["modelspec.prediction_type"]) == (version, spec)


def test_a_lora_remembers_what_an_unusual_base_predicts(tiny, tmp_path):
    parts = {"unet": tiny.unet, "vae": tiny.vae, "text": tiny.text, "schedule": tiny.schedule}
    base = velatura.Base("v", replace(tiny.family, prediction="v_prediction"), **parts)
    velatura.save(velatura.Lora.for_base(base, rank=2), tmp_path / "ink.safetensors", dialect="velatura")
    overlay = velatura.open_overlay(tmp_path / "ink.safetensors")
    velatura.save(overlay, tmp_path / "again.safetensors")
    for path in (tmp_path / "ink.safetensors", tmp_path / "again.safetensors"):
        assert open_tensors(path).metadata["modelspec.prediction_type"] == "v"
