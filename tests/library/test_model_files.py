"""What lies in a library's folders, of any kind and in any program's layout, and how it is found."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.formats.checkpoints.ldm_keys import vae_to_ldm
from velatura.library import file_entry
from velatura.tensors import write_safetensors, write_torch

DATA = Path(__file__).parents[1] / "data"
MIB = 2**20
UNET = "model.diffusion_model."


def put(source: str, target: Path) -> Path:
    """A file of the fixtures where a program would keep it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / source, target)
    return target


def checkpoint(target: Path, width: int = 768, size: int = 8) -> Path:
    """What of a checkpoint tells its family."""
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{UNET}input_blocks.0.0.weight": torch.zeros(size, 4, 3, 3),
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(size, width),
    }
    if target.suffix == ".ckpt":
        write_torch(target, {"state_dict": tensors})
    else:
        write_safetensors(target, tensors)
    return target


def diffusers_folder(target: Path, width: int = 768) -> Path:
    (target / "unet").mkdir(parents=True)
    (target / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (target / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width, "in_channels": 4}))
    put("nature/kohya_lora_d4a1.safetensors", target / "unet" / "diffusion_pytorch_model.safetensors")
    return target


def a1111(root: Path) -> Path:
    """A folder as A1111 lays it out."""
    checkpoint(root / "models" / "Stable-diffusion" / "sd15.safetensors")
    put("hypernet/m00_linear.pt", root / "models" / "hypernetworks" / "anime" / "inca.pt")
    put("hypernet/m00_linear.pt", root / "models" / "hypernetworks" / "None.pt")
    put("nature/kohya_lora_d4a1.safetensors", root / "models" / "Lora" / "ink.safetensors")
    put("nature/learned_embeds.bin", root / "embeddings" / "bad-hands.bin")
    put("nature/learned_embeds.bin", root / "outputs" / "stray.bin")
    return root


def comfy(root: Path) -> Path:
    """A folder as ComfyUI lays it out."""
    checkpoint(root / "models" / "checkpoints" / "sd15.ckpt")
    put("hypernet/m00_linear.pt", root / "models" / "hypernetworks" / "inca.pt")
    put("nature/kohya_lora_d4a1.safetensors", root / "models" / "loras" / "ink.safetensors")
    put("nature/learned_embeds.bin", root / "models" / "embeddings" / "bad-hands.bin")
    return root


def flat(root: Path) -> Path:
    """A folder in which all lies side by side."""
    checkpoint(root / "sd15.safetensors")
    put("hypernet/m00_linear.pt", root / "inca.pt")
    put("nature/kohya_lora_d4a1.safetensors", root / "ink.safetensors")
    put("nature/learned_embeds.bin", root / "bad-hands.bin")
    return root


@pytest.mark.parametrize("layout", [a1111, comfy, flat])
def test_every_layout_is_understood(tmp_path, layout):
    library = velatura.Library(layout(tmp_path))
    kinds = {entry.name: entry.kind for entry in library.entries()}
    assert kinds == {"sd15": "checkpoint", "inca": "hypernet", "ink": "lora", "bad-hands": "embedding"}
    assert library.names() == ["bad-hands", "inca", "ink"]


@pytest.mark.parametrize("below", ["models", "models/hypernetworks"])
def test_a_part_of_a_layout_may_be_given(tmp_path, below):
    assert "inca" in velatura.Library(a1111(tmp_path) / below).names()


def test_aesthetics_are_found_where_the_webuis_extension_keeps_them(tmp_path):
    (tmp_path / "models" / "Lora").mkdir(parents=True)
    kept = tmp_path / "extensions" / "stable-diffusion-webui-aesthetic-gradients" / "aesthetic_embeddings"
    kept.mkdir(parents=True)
    velatura.save(velatura.Aesthetic.from_vector(torch.ones(64), name="dusk"), kept / "dusk.pt")
    assert [(entry.name, entry.kind) for entry in velatura.Library(tmp_path).entries()] == [("dusk", "aesthetic")]


def test_what_lies_loose_beside_a_layout_is_found(tmp_path):
    put("hypernet/m00_linear.pt", a1111(tmp_path) / "loose.pt")
    assert "loose" in velatura.Library(tmp_path).names()


def test_entries_are_of_the_kind_the_family_and_the_words_asked_for(tmp_path):
    library = velatura.Library(flat(tmp_path))
    checkpoint(tmp_path / "big.safetensors", 2048)
    assert [entry.name for entry in library.entries(kind="checkpoint")] == ["big", "sd15"]
    assert [entry.name for entry in library.entries(family="sdxl")] == ["big"]
    assert [entry.name for entry in library.entries(search="IN")] == ["inca", "ink"]
    with pytest.raises(UnknownName, match="no kind of file is called 'lorra': did you mean 'lora'"):
        library.entries(kind="lorra")


def test_a_folder_of_diffusers_is_one_base_and_its_parts_are_none(tmp_path):
    diffusers_folder(tmp_path / "sd15-folder")
    [entry] = velatura.Library(tmp_path).entries()
    assert (entry.name, entry.kind, entry.family) == ("sd15-folder", "checkpoint", "SD1")
    [entry] = velatura.Library(tmp_path / "sd15-folder").entries()
    assert entry.kind == "checkpoint"


def test_what_nobody_knows_is_listed_as_unknown_and_is_no_overlay(tmp_path):
    write_safetensors(
        tmp_path / "odd.safetensors", {"control_model.input_hint_block.0.weight": torch.zeros(1, 1, 1, 1)}
    )
    library = velatura.Library(tmp_path)
    [entry] = library.entries(kind="unknown")
    assert (entry.info.card.outline, entry.error) == ("a ControlNet", "")
    assert library.names() == []
    with pytest.raises(BadFile, match=r"odd\.safetensors is not an overlay"):
        library.overlay("odd")


def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path):
    (tmp_path / "hurt.pt").write_bytes(b"cut short")
    (tmp_path / "models" / "VAE").mkdir(parents=True)
    (tmp_path / "models" / "VAE" / "worse.pt").write_bytes(b"cut short")
    library = velatura.Library(tmp_path)
    assert {entry.name: "neither a safetensors nor a torch file" in entry.error for entry in library.entries()} == {
        "hurt": True,
        "worse": True,
    }
    assert library.names() == ["hurt"]  # the other one lies where only VAEs do


def test_a_name_may_be_of_several_kinds(tmp_path):
    put("hypernet/m00_linear.pt", tmp_path / "one" / "ink.pt")
    put("nature/kohya_lora_d4a1.safetensors", tmp_path / "two" / "ink.safetensors")
    checkpoint(tmp_path / "three" / "ink.safetensors")
    library = velatura.Library(tmp_path)
    assert library.path("ink", "hypernet").suffix == ".pt"
    assert library.path("ink", "lora").parent.name == "two"
    assert library.entry("ink", "checkpoint").path.parent.name == "three"
    with pytest.warns(VelaturaWarning, match="are both called 'ink'"):
        assert library.path("ink").parent.name == "two"  # a LoRA in safetensors comes first


def test_the_tag_of_a_kind_finds_that_kind_and_else_what_has_the_name(tmp_path):
    put("hypernet/m00_linear.pt", tmp_path / "one" / "ink.pt")
    put("nature/kohya_lora_d4a1.safetensors", tmp_path / "two" / "ink.safetensors")
    library = velatura.Library(tmp_path)
    assert library.overlay("ink", "hypernet").kind == "hypernet"
    put("hypernet/m00_linear.pt", tmp_path / "inca.pt")
    assert library.path("inca", "lora").name == "inca.pt"  # so that the prompt can be put right


def test_two_kinds_side_by_side_are_warned_of(tmp_path):
    put("hypernet/m00_linear.pt", tmp_path / "ink.pt")
    put("nature/kohya_lora_d4a1.safetensors", tmp_path / "ink.safetensors")
    with pytest.warns(VelaturaWarning, match="are both called 'ink'"):
        velatura.Library(tmp_path).path("ink")


@pytest.mark.parametrize("name", ["inca", "INCA", "inca.pt", "anime/inca", "anime/inca.pt", "Anime/Inca"])
def test_a_file_may_be_called_by_its_path(tmp_path, name):
    put("hypernet/m00_linear.pt", tmp_path / "anime" / "inca.pt")
    assert velatura.Library(tmp_path).path(name) == tmp_path / "anime" / "inca.pt"


def test_letters_with_accents_are_the_same_in_every_system(tmp_path):
    put("hypernet/m00_linear.pt", tmp_path / "cafe\u0301.pt")  # as macOS writes it
    assert velatura.Library(tmp_path).names() == ["cafe\u0301"]
    assert velatura.Library(tmp_path).path("caf\u00e9")


def test_a_file_may_be_called_by_the_name_in_it_but_its_own_comes_first(tmp_path):
    down, up = torch.zeros(2, 8), torch.zeros(8, 2)
    key = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    write_safetensors(tmp_path / "x1.safetensors", tensors, {"ss_output_name": "Ink"})
    library = velatura.Library(tmp_path)
    assert library.path("ink") == tmp_path / "x1.safetensors"
    with pytest.raises(UnknownName, match="did you mean 'Ink'"):
        library.path("inc")
    put("nature/lyco_oft.safetensors", tmp_path / "ink.safetensors")
    assert library.path("ink") == tmp_path / "ink.safetensors"


def hashes_of(path: Path) -> dict[str, str]:
    """A file's hashes, by the system's own words for them."""
    from hashlib import sha256

    data = path.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    return {
        "AutoV1": sha256(data[MIB : MIB + 2**16]).hexdigest()[:8],
        "AutoV2": sha256(data).hexdigest()[:10],
        "AutoV3": sha256(body).hexdigest()[:12],
        "sha256": sha256(data).hexdigest(),
        "body": sha256(body).hexdigest(),
    }


@pytest.mark.parametrize("which", ["AutoV1", "AutoV2", "AutoV3", "sha256", "body"])
def test_a_file_may_be_called_by_any_hash(tmp_path, which):
    path = checkpoint(tmp_path / "sd15.safetensors", size=600)
    checkpoint(tmp_path / "other.safetensors", 1024)
    digits = hashes_of(path)[which]
    library = velatura.Library(tmp_path)
    assert library.entry(digits.upper()).path == path
    assert library.entry(f"renamed since [{digits}]").path == path
    with pytest.warns(VelaturaWarning, match="no file has the hash 0000000000 of 'other'"):
        assert library.entry(f"other [{'0' * 10}]").path.stem == "other"


def test_what_a_file_says_its_hash_is_finds_it_too(tmp_path):
    path = put("nature/kohya_lora_d4a1.safetensors", tmp_path / "ink.safetensors")
    (tmp_path / "ink.civitai.info").write_text('{"files": [{"hashes": {"AutoV2": "ABCDEF0123", "CRC32": "01234567"}}]}')
    library = velatura.Library(tmp_path)
    assert library.path("abcdef0123") == path
    with pytest.raises(UnknownName, match="no overlay is called '01234567'"):
        library.path("01234567")


def test_a_base_is_found_by_name_and_only_one_is_kept(tiny, tmp_path):
    velatura.save(tiny, tmp_path / "models" / "checkpoints" / "small.safetensors")
    put("hypernet/m00_linear.pt", tmp_path / "models" / "hypernetworks" / "small.pt")
    library = velatura.Library(tmp_path)
    base = library.base("Small", device="cpu")
    assert (base.name, base.family.name) == ("small", "tiny")
    assert base.hash == hashes_of(tmp_path / "models" / "checkpoints" / "small.safetensors")["AutoV2"]
    assert library.base(base.hash, device="cpu") is base
    assert library.base("small", device="cpu") is base
    assert library.base("small", device="cpu", dtype="bfloat16") is not base
    with pytest.raises(UnknownName, match=r"no base is called 'smoll' in .*did you mean 'small'"):
        library.base("smoll")


def test_a_vae_is_chosen_as_a1111_does(tiny, tmp_path):
    def vae(name: str, value: float) -> None:
        """An autoencoder of the tiny base's, told by one bias."""
        tensors = vae_to_ldm(tiny.vae.state_dict())
        bias = "first_stage_model.decoder.conv_out.bias"
        write_safetensors(tmp_path / "models" / "VAE" / name, {**tensors, bias: torch.full_like(tensors[bias], value)})

    def taken(**options: object) -> float:
        return velatura.Library(tmp_path).base("small", device="cpu", **options).vae.decoder.conv_out.bias[0].item()

    place = tmp_path / "models" / "Stable-diffusion"
    velatura.save(tiny, place / "small.safetensors")
    own = taken()
    assert own == tiny.vae.decoder.conv_out.bias[0].item()
    vae("other.safetensors", 1)
    vae("small.vae.safetensors", 2)
    vae("third.safetensors", 3)
    assert taken() == 2
    (place / "small.json").write_text('{"vae": "third.safetensors"}')
    assert taken() == 3
    assert taken(vae="other") == 1
    assert taken(vae=tmp_path / "models" / "VAE" / "other.safetensors") == 1
    (place / "small.json").write_text('{"vae": "gone.safetensors"}')
    with pytest.warns(VelaturaWarning, match=r"the notes of small name the VAE 'gone\.safetensors', which is missing"):
        assert taken() == 2


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_name_that_is_no_text_is_no_trouble(tmp_path):
    shutil.copyfile(DATA / "hypernet/m00_linear.pt", os.fsencode(tmp_path) + b"/\xff.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            [entry] = velatura.Library(tmp_path).entries()
    assert entry.kind == "hypernet"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_pipes_are_not_waited_for(tmp_path):
    put("nature/kohya_lora_d4a1.safetensors", tmp_path / "ink.safetensors")
    os.mkfifo(tmp_path / "ink.json")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    os.mkfifo(tmp_path / "folder" / "unet" / "config.json")
    found = {entry.name: entry for entry in velatura.Library(tmp_path).entries()}
    assert found.keys() == {"ink", "folder"}
    assert found["ink"].notes.unread == ("ink.json: it is not what its name says",)
    assert "unet/config.json is neither a file nor a directory" in found["folder"].error


def test_a_folder_that_cannot_be_searched_is_warned_of(tmp_path, monkeypatch):
    put("nature/kohya_lora_d4a1.safetensors", tmp_path / "ink.safetensors")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: str):
        if str(path).endswith("closed"):  # who runs the tests may be allowed everything
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.warns(VelaturaWarning, match=r"closed cannot be searched \(Permission denied\)"):
        assert velatura.Library(tmp_path).names() == ["ink"]


@pytest.mark.filterwarnings("ignore:ink has no effect")  # it is untrained
@pytest.mark.parametrize("text", [False, True])
def test_a_folder_in_pefts_layout_is_one_lora(tmp_path, tiny, text):
    lora = velatura.Lora.for_base(tiny, rank=2, text=text, seed=1, name="ink")
    velatura.save(lora, tmp_path / "loras" / "ink", dialect="peft")  # of one part, or a folder for each
    library = velatura.Library(tmp_path, cache=tmp_path / "cache")
    [entry] = library.entries()
    assert (entry.name, entry.kind, entry.info.dialect) == ("ink", "lora", "peft")
    assert entry.info.card.outline == f"LoRA, rank 2, {len(lora.layers)} layers"
    assert library.overlay("ink", "lora").layers.keys() == lora.layers.keys()
    assert file_entry(tmp_path / "loras" / "ink", tmp_path / "cache").info == entry.info
