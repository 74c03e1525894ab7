"""Bases from several files: a UNet of one, text encoders of another, an autoencoder of a third."""

import json
import shutil
from hashlib import sha256
from itertools import permutations

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import velatura
from tests.formats.checkpoints.states import same, weights
from tests.formats.checkpoints.test_sdxl import random_sdxl
from velatura.errors import BadFile, UnsupportedBase, VelaturaError, VelaturaWarning, WrongBase
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX, unet_to_ldm, vae_to_ldm
from velatura.formats.checkpoints.ldm_text import clip_to_ldm, open_clip_to_ldm
from velatura.tensors import write_safetensors, write_torch


@pytest.fixture(scope="module")
def places(tiny, tmp_path_factory):
    """The tiny base whole, as a checkpoint and as a folder, and other weights for each of its parts."""
    root = tmp_path_factory.mktemp("parts")
    velatura.save(tiny, root / "whole.safetensors")
    velatura.save(tiny, root / "folder")
    return root


def other(state):
    """Other weights of the same shapes."""
    return {key: tensor * 0.5 if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def settings(unet):
    return json.dumps({key: value for key, value in sorted(unet.config.items()) if not key.startswith("_")})


def bare(state, prefix=""):
    return {prefix + key.removeprefix(UNET_PREFIX): tensor for key, tensor in state.items()}


def unet_file(form, state, places, root):
    """Write a UNet alone in one of the forms that programs share."""
    ldm = unet_to_ldm(state)
    tensors = {
        "ldm": ldm,
        "bare": bare(ldm),
        "markers": {**bare(ldm), "ztsnr": torch.empty(0)},
        "comfyui": bare(ldm, "diffusion_model."),
        "diffusers": state,
        "prefixed": {f"unet.{key}": tensor for key, tensor in state.items()},
    }
    path = root / f"{form}.safetensors"
    if form == "ckpt":
        path = root / "anime.ckpt"
        write_torch(path, {"state_dict": bare(ldm)})
    elif form == "folder":
        path = root / "anime" / "unet"
        shutil.copytree(places / "folder" / "unet", path)
        write_safetensors(path / "diffusion_pytorch_model.safetensors", state, {"format": "pt"})
    elif form == "folder without config":
        path = root / "lone"
        write_safetensors(path / "diffusion_pytorch_model.safetensors", state)
    elif form == "folder of a base":
        path = root / "other"
        shutil.copytree(places / "folder", path)
        write_safetensors(path / "unet" / "diffusion_pytorch_model.safetensors", state, {"format": "pt"})
    else:
        write_safetensors(path, tensors[form])
    return path


UNET_FORMS = ["ldm", "bare", "markers", "comfyui", "diffusers", "prefixed", "ckpt", "folder", "folder without config"]


@pytest.mark.parametrize("main", ["whole.safetensors", "folder"])
@pytest.mark.parametrize("form", [*UNET_FORMS, "folder of a base"])
def test_a_unet_of_any_form_takes_the_place_of_the_bases_own(tiny, places, tmp_path, form, main):
    state = other(tiny.unet.state_dict())
    path = unet_file(form, state, places, tmp_path)
    base = velatura.open_base(places / main, unet=path, dtype="float32", device="cpu")
    assert same(base.unet.state_dict(), state)
    assert settings(base.unet) == settings(tiny.unet)
    assert same(base.vae.state_dict(), tiny.vae.state_dict())
    assert same(base.text.encoders[0].model.state_dict(), tiny.text.encoders[0].model.state_dict())
    assert base.family == tiny.family
    assert base.schedule.zero_snr is (form == "markers")
    expected_name = {"folder": "anime", "ckpt": "anime", "folder of a base": "other", "folder without config": "lone"}
    assert base.name == expected_name.get(form, form)


@pytest.mark.parametrize("form", UNET_FORMS)
def test_a_unet_alone_is_refused_with_the_flags_to_give(tiny, places, tmp_path, form):
    path = unet_file(form, tiny.unet.state_dict(), places, tmp_path)
    with pytest.raises(UnsupportedBase, match=r"text= \(--text\).*vae= \(--vae\).*\(--base\).*unet= \(--unet\)"):
        velatura.open_base(path)


@pytest.mark.parametrize("form", UNET_FORMS)
def test_a_unet_alone_opens_with_text_encoders_and_an_autoencoder(tiny, places, tmp_path, form):
    path = unet_file(form, tiny.unet.state_dict(), places, tmp_path)
    base = velatura.open_base(path, text=places / "folder", vae=places / "whole.safetensors", device="cpu")
    assert same(weights(base), weights(tiny))
    with pytest.raises(VelaturaError, match=r"holds no autoencoder.*\(--vae\)"):
        velatura.open_base(path, text=places / "folder")
    with pytest.raises(VelaturaError, match=r"\(--text\)"):
        velatura.open_base(path, vae=places / "folder")


def clip_with_pictures(state):
    """A whole CLIP whose text encoder has these weights, and an image encoder beside it."""
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 3}
    text = {**sizes, "vocab_size": 857, "bos_token_id": 855, "eos_token_id": 856}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={"hidden_size": 24, "num_hidden_layers": 1}))
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    return {**tensors, **clip_to_ldm(state, "")}


def text_file(form, state, places, root):
    path = root / f"{form}.safetensors"
    projection = {"text_projection.weight": torch.eye(96)}
    tensors = {
        "clip_l": {
            **clip_to_ldm(state, ""),
            **projection,
            "text_model.embeddings.position_ids": torch.arange(77)[None],
        },
        "without level": state,
        "ldm": clip_to_ldm(state),
        "sd3": clip_to_ldm(state, "text_encoders.clip_l.transformer."),
        "open_clip": {**open_clip_to_ldm(state, ""), "logit_scale": torch.tensor(4.6)},
        "whole clip": clip_with_pictures(state),
    }
    if form == "folder":
        path = root / "t" / "text_encoder"
        shutil.copytree(places / "folder" / "text_encoder", path)
        write_safetensors(path / "model.safetensors", clip_to_ldm(state, ""), {"format": "pt"})
        return path
    write_safetensors(path, tensors[form])
    return path


@pytest.mark.parametrize("main", ["whole.safetensors", "folder"])
@pytest.mark.parametrize("form", ["clip_l", "without level", "ldm", "sd3", "open_clip", "whole clip", "folder"])
def test_text_encoders_of_any_form_take_the_place_of_the_bases_own(tiny, places, tmp_path, form, main):
    state = other(tiny.text.encoders[0].model.state_dict())
    path = text_file(form, state, places, tmp_path)
    base = velatura.open_base(places / main, text=path, dtype="float32", device="cpu")
    assert same(base.text.encoders[0].model.state_dict(), state)
    assert same(base.unet.state_dict(), tiny.unet.state_dict())
    assert base.text.encoders[0].model.config.num_attention_heads == 4
    assert base.name == main.removesuffix(".safetensors")
    with pytest.raises(BadFile, match=r"is a text encoder of a base alone: .*text= \(--text\)"):
        velatura.open_base(path)


def test_the_parts_that_were_used_are_recorded_and_missed(tiny, places, tmp_path):
    unet, text, vae = (tmp_path / f"{part}.safetensors" for part in ("anime", "clip", "soft"))
    write_safetensors(unet, bare(unet_to_ldm(tiny.unet.state_dict())))
    write_safetensors(text, clip_to_ldm(other(tiny.text.encoders[0].model.state_dict()), ""))
    write_safetensors(vae, vae_to_ldm(tiny.vae.state_dict()))
    base = velatura.open_base(places / "folder", unet=unet, text=text, vae=vae, device="cpu")
    recipe = velatura.generate(base, "a", steps=1, seed=1).recipe
    short = {path: sha256(path.read_bytes()).hexdigest()[:10] for path in (unet, text, vae)}
    assert (recipe.base, recipe.base_hash) == ("anime", short[unet])
    assert (recipe.text, recipe.text_hash) == ("clip.safetensors", short[text])
    assert (recipe.vae, recipe.vae_hash) == ("soft.safetensors", short[vae])
    again = velatura.Recipe.from_infotext(recipe.infotext())
    assert (again.text, again.text_hash) == (recipe.text, recipe.text_hash)
    velatura.generate(base, again)
    plain = velatura.open_base(places / "folder", unet=unet, vae=vae, device="cpu")
    with pytest.warns(VelaturaWarning, match=r"made with the text encoder clip\.safetensors"):
        velatura.generate(plain, again)


@pytest.fixture(scope="module")
def xl(tiny, tmp_path_factory):
    """A small SDXL whole, and each of its parts in a file of its own, as ComfyUI keeps them."""
    root = tmp_path_factory.mktemp("xl")
    base = random_sdxl(tiny)
    velatura.save(base, root / "xl")
    velatura.save(base, root / "xl.safetensors")
    write_safetensors(root / "unet.safetensors", bare(unet_to_ldm(base.unet.state_dict())))
    small, large = (encoder.model.state_dict() for encoder in base.text.encoders)
    write_safetensors(root / "clip_l.safetensors", clip_to_ldm(small, ""))
    projection = {"text_projection.weight": large["text_projection.weight"]}
    large_text = {key: tensor for key, tensor in large.items() if key not in projection}
    write_safetensors(root / "clip_g.safetensors", {**clip_to_ldm(large_text, ""), **projection})
    write_safetensors(root / "open_clip_g.safetensors", open_clip_to_ldm(large, ""))
    write_safetensors(root / "headless_g.safetensors", clip_to_ldm(large_text, ""))
    write_safetensors(root / "vae.safetensors", vae_to_ldm(base.vae.state_dict()))
    return base, root


@pytest.mark.parametrize(
    "texts", [*permutations(["clip_l", "clip_g"]), ("open_clip_g", "clip_l"), ("clip_g",), ("clip_l",)]
)
@pytest.mark.parametrize("main", ["xl", "xl.safetensors"])
def test_an_sdxl_takes_its_two_text_encoders_in_any_order(xl, texts, main):
    base, root = xl
    paths = [root / f"{name}.safetensors" for name in texts]
    opened = velatura.open_base(root / main, unet=root / "unet.safetensors", text=paths, dtype="float32", device="cpu")
    assert same(weights(opened), weights(base))
    assert settings(opened.unet) == settings(base.unet)
    with torch.no_grad():
        expected, found = (made.text.conditioning(["a red fox"]) for made in (base, opened))
    assert torch.equal(found.context, expected.context)
    assert torch.equal(found.pooled, expected.pooled)


def test_a_missing_text_encoder_of_an_sdxl_is_named(xl):
    _, root = xl
    unet, vae = root / "unet.safetensors", root / "xl.safetensors"
    for texts in (
        ["clip_l"],
        ["clip_g"],
        ["clip_l", "clip_l"],
        ["clip_g", "open_clip_g"],
        ["clip_l", "clip_g", "clip_g"],
    ):
        with pytest.raises(WrongBase, match=r"contexts of 40 features from 2 text encoders, and the text of clip_"):
            velatura.open_base(unet, text=[root / f"{name}.safetensors" for name in texts], vae=vae)
    with pytest.raises(BadFile, match=r"headless_g\.safetensors has no text_projection"):
        velatura.open_base(root / "xl", text=root / "headless_g.safetensors")


FOREIGN = {
    "unet": ["unet.safetensors", "xl.safetensors", "xl", "xl/unet"],
    "text": [
        "clip_l.safetensors",
        "clip_g.safetensors",
        "xl.safetensors",
        "xl",
        "xl/text_encoder",
        "xl/text_encoder_2",
    ],
    "vae": ["vae.safetensors", "xl.safetensors", "xl", "xl/vae"],
}


@pytest.mark.parametrize(("part", "file"), [(part, file) for part, files in FOREIGN.items() for file in files])
@pytest.mark.parametrize("main", ["whole.safetensors", "folder"])
def test_a_part_of_another_family_is_refused_and_both_sides_are_named(places, xl, part, file, main):
    _, root = xl
    with pytest.raises(WrongBase) as error:
        velatura.open_base(places / main, **{part: root / file})
    message = str(error.value)
    assert "the tiny base" in message or "contexts of 96" in message
    assert file.partition("/")[2] in message or file in message
    assert "\n" not in message


def test_a_silent_unet_in_a_base_that_predicts_v_is_warned_of(tiny, places, tmp_path):
    scheduler = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    shutil.copytree(places / "folder", tmp_path / "v")
    text = scheduler.read_text()
    assert '"epsilon"' in text
    scheduler.write_text(text.replace('"epsilon"', '"v_prediction"'))
    silent, marked = tmp_path / "silent.safetensors", tmp_path / "marked.safetensors"
    write_safetensors(silent, tiny.unet.state_dict())
    write_safetensors(marked, {**tiny.unet.state_dict(), "v_pred": torch.empty(0)})
    with pytest.warns(VelaturaWarning, match=r"silent\.safetensors does not say what it predicts.*v predicts v"):
        assert velatura.open_base(tmp_path / "v", unet=silent).family.prediction == "epsilon"
    assert velatura.open_base(tmp_path / "v", unet=silent, prediction="v").family.prediction == "v_prediction"
    assert velatura.open_base(places / "folder", unet=marked).family.prediction == "v_prediction"
    assert velatura.open_base(places / "folder", unet=tmp_path / "v" / "unet").family.prediction == "v_prediction"
    assert velatura.open_base(tmp_path / "v", text=places / "folder").family.prediction == "v_prediction"


def test_parts_that_are_no_parts_are_refused(tiny, places, tmp_path):
    lora, scaled, controlnet = (tmp_path / f"{name}.safetensors" for name in ("lora", "scaled", "controlnet"))
    velatura.save(velatura.Lora.for_base(tiny, rank=1), lora)
    ldm = bare(unet_to_ldm(tiny.unet.state_dict()))
    write_safetensors(scaled, {**ldm, "input_blocks.0.0.scale_weight": torch.ones(1)})
    write_safetensors(controlnet, {key: tensor for key, tensor in ldm.items() if not key.startswith(("out", "output"))})
    main = places / "folder"
    for part in ("unet", "text", "vae"):
        with pytest.raises(BadFile, match=r"lora\.safetensors holds no"):
            velatura.open_base(main, **{part: lora})
        with pytest.raises(BadFile, match="nowhere does not exist"):
            velatura.open_base(main, **{part: tmp_path / "nowhere"})
    with pytest.raises(UnsupportedBase, match="scaled fp8"):
        velatura.open_base(main, unet=scaled)
    with pytest.raises(UnsupportedBase, match="not a whole UNet"):
        velatura.open_base(main, unet=controlnet)


def test_what_belongs_to_no_part_is_named_once(tiny, places, tmp_path):
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, {**unet_to_ldm(tiny.unet.state_dict()), "extra.weight": torch.ones(1)})
    with pytest.warns(VelaturaWarning, match=r"odd\.safetensors holds 1 tensor that belongs to no part.*extra\.weight"):
        velatura.open_base(places / "folder", unet=path)
