import zipfile

import pytest
import torch

import velatura
from velatura.errors import BadFile, BadOverlay, UnknownName
from velatura.formats.inspect.inspect import inspect_file
from velatura.tensors import open_tensors, write_safetensors, write_torch


def same(one, other):
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_an_overlay_comes_back_as_it_was_saved(hyper, tmp_path, ending):
    overlay = hyper(layers=(1, 2, 2, 1), activation="prelu", layer_norm=True, dropout=0.1, name="ink")
    overlay.card = overlay.card.replace(steps=1200, note="first try")
    velatura.save(overlay, tmp_path / f"ink{ending}")
    again = velatura.open_overlay(tmp_path / f"ink{ending}")
    assert same(again, overlay)
    assert not again.training
    assert again.card == overlay.card.replace(family="tiny")
    assert str(again.card) == (
        "hypernet 64,96,128,192 · 1,2,2,1 prelu · layer norm · dropout 0,0.1,0.1,0 · tiny · 1,200 steps"
    )


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_an_overlay_is_always_saved_as_equal_bytes(hyper, tmp_path, ending):
    overlay = hyper()
    saved = set()
    for _ in range(10):  # two entries of metadata come in either order
        velatura.save(overlay, tmp_path / f"ink{ending}")
        saved.add((tmp_path / f"ink{ending}").read_bytes())
    assert len(saved) == 1


def test_a_pt_file_has_no_time_of_writing(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "ink.pt")
    with zipfile.ZipFile(tmp_path / "ink.pt") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_half_precision_is_kept_in_our_own_files(hyper, tmp_path):
    velatura.save(hyper().bfloat16(), tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in velatura.open_overlay(tmp_path / "half.safetensors").parameters()} == {
        torch.bfloat16
    }


def test_the_content_decides_and_not_the_name(hyper, tmp_path):
    velatura.save(hyper(name="ink"), tmp_path / "ink.pt")
    (tmp_path / "ink.pt").rename(tmp_path / "ink.safetensors")
    assert velatura.open_overlay(tmp_path / "ink.safetensors").card.name == "ink"


def test_a_dialect_overrules_the_ending(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "ink.bin", dialect="a1111")
    assert 96 in open_tensors(tmp_path / "ink.bin").payload


@pytest.mark.parametrize(("name", "dialect"), [("ink.pth", None), ("ink", None), ("ink.pt", "a111")])
def test_an_unknown_dialect_is_refused_before_writing(hyper, tmp_path, name, dialect):
    with pytest.raises(UnknownName):
        velatura.save(hyper(), tmp_path / name, dialect=dialect)
    assert not list(tmp_path.iterdir())


def test_a_damaged_card_is_one_line(hyper, tmp_path):
    for card in ("{", '{"kind": "hypernet", "hats": 3}', '{"kind": "spell"}', '{"kind": "hypernet"}'):
        write_safetensors(tmp_path / "bad.safetensors", hyper().state_dict(), {"velatura.card": card})
        with pytest.raises(BadFile, match=r"^bad.safetensors has a"):
            velatura.open_overlay(tmp_path / "bad.safetensors")


def test_missing_and_extra_tensors_are_named(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "ink.safetensors")
    contents = open_tensors(tmp_path / "ink.safetensors")
    tensors, metadata = contents.tensors, contents.metadata
    few = {key: tensor for key, tensor in tensors.items() if key != "96_0.linear.0.bias"}
    write_safetensors(tmp_path / "few.safetensors", few, metadata)
    with pytest.raises(BadFile, match=r"lacks 96_0.linear.0.bias"):
        velatura.open_overlay(tmp_path / "few.safetensors")
    write_safetensors(tmp_path / "more.safetensors", {**tensors, "hat": torch.ones(1)}, metadata)
    with pytest.raises(BadFile, match="holds 'hat'"):
        velatura.open_overlay(tmp_path / "more.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_torch(tmp_path / "state.pt", {"optimizer_state_dict": {"step": torch.ones(2, 3, 4)}})
    with pytest.raises(BadFile, match=r"state\.pt is not an overlay but an optimizer's state: "):
        velatura.open_overlay(tmp_path / "state.pt")
    with pytest.raises(BadFile, match="No such file"):
        velatura.open_overlay(tmp_path / "nowhere.pt")


UNET_KEY, VAE_KEY = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"
TEXT_KEY = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
# Keys of a checkpoint's parts, what a file with these is, and the remark about it in lists
CHECKPOINT_PARTS = [
    ((UNET_KEY, VAE_KEY, TEXT_KEY), r"a whole checkpoint: open it as a base \(--base\)", ""),
    ((UNET_KEY, VAE_KEY), r"a checkpoint without text encoder: open it as a base", "without text encoder"),
    ((UNET_KEY, TEXT_KEY), r"a checkpoint without VAE: open it as a base", "without VAE"),
    ((UNET_KEY,), r"a UNet alone: give it with --unet", "UNet alone"),
]


@pytest.mark.parametrize(("keys", "description", "outline"), CHECKPOINT_PARTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_checkpoint_is_called_by_its_parts_when_opened_and_listed(tmp_path, keys, description, outline, suffix):
    path = tmp_path / f"sd15{suffix}"
    tensors = {key: torch.ones(4, 4, 3, 3) for key in keys}
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        write_safetensors(path, tensors)
    with pytest.raises(BadFile, match=rf"sd15\{suffix} is not an overlay but {description}"):
        velatura.open_overlay(path)
    assert inspect_file(path).card.outline == outline


def test_an_ending_of_another_kind_is_refused(tiny, tmp_path):
    with pytest.raises(UnknownName, match=r"no file ending for a lora is called '\.pt': choose one of '\.safe"):
        velatura.save(velatura.Lora.for_base(tiny, rank=1), tmp_path / "ink.pt")


def test_a_folder_that_is_not_a_base_is_refused(tmp_path):
    with pytest.raises(BadFile, match="not a diffusers folder"):
        velatura.open_base(tmp_path)
    with pytest.raises(BadFile, match="does not exist"):
        velatura.open_base(tmp_path / "nowhere")


def test_a_composition_finds_its_members_beside_it(tiny, hyper, tmp_path):
    for seed, name in enumerate(("one", "other")):
        velatura.save(hyper(seed=seed), tmp_path / f"{name}.safetensors")
    (tmp_path / "mixed.hns").write_text('[("one", 0.5), {"other": 0.7}]')
    mixed, context = velatura.open_overlay(tmp_path / "mixed.hns"), torch.randn(1, 7, 96)
    one, other = (velatura.open_overlay(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    expected = other.transform(one.transform(context, 0.5)[0], 0.7)[0]
    torch.testing.assert_close(mixed.transform(context)[0], expected)
    library = velatura.Library(tmp_path)
    assert library.names() == ["mixed", "one", "other"]
    torch.testing.assert_close(library.overlay("mixed").transform(context)[0], expected)
    with velatura.attach(tiny, mixed):
        pass
    with pytest.raises(BadOverlay, match=r"keep its \.hns"):
        velatura.save(mixed, tmp_path / "mixed.safetensors")


def test_a_composition_that_names_a_missing_file_or_itself_is_refused(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "one.safetensors")
    (tmp_path / "mixed.hns").write_text('"on"')
    with pytest.raises(UnknownName, match="did you mean 'one'"):
        velatura.open_overlay(tmp_path / "mixed.hns")
    (tmp_path / "mixed.hns").write_text('"mixed"')
    with pytest.raises(BadFile, match="rename it"):
        velatura.Library(tmp_path).overlay("mixed")


def test_a_base_goes_into_one_checkpoint_and_back(tiny, tmp_path):
    velatura.save(tiny, tmp_path / "whole.safetensors")
    again = velatura.open_base(tmp_path / "whole.safetensors", dtype="float32")
    ours, theirs = tiny.unet.state_dict(), again.unet.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    velatura.save(velatura.Hypernetwork.for_base(tiny), tmp_path / "net.safetensors")
    with pytest.raises(BadFile, match="not a Stable Diffusion checkpoint"):
        velatura.open_base(tmp_path / "net.safetensors")


# What files of other programs hold by their keys, as those programs write them, and what is to be done with them
OTHER_FILES = {
    "text_model.encoder.layers.0.mlp.fc1.weight": r"a text encoder alone: give it with --text",
    "input_blocks.0.0.weight": r"a UNet alone: give it with --unet",
    "control_model.input_blocks.0.0.weight": r"a ControlNet: velatura does not open it",
    "double_blocks.0.img_attn.qkv.weight": r"a Flux: velatura does not open it",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": r"a Flux: velatura does not open it",
}


@pytest.mark.parametrize("key", OTHER_FILES)
def test_a_file_that_is_something_else_is_refused_by_its_name(tmp_path, key):
    write_safetensors(tmp_path / "x.safetensors", {key: torch.ones(3, 3), f"{key}_2": torch.ones(3)})
    with pytest.raises(BadFile, match=rf"x\.safetensors is not an overlay but {OTHER_FILES[key]}"):
        velatura.open_overlay(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "payload", [[torch.ones(2, 2, 2)], {"a.weight": torch.ones(2, 2), "b": 1}, {"lora_unet_x.alpha": torch.tensor(1.0)}]
)
def test_a_file_without_an_overlay_is_shown_and_opened_alike(tmp_path, payload):
    torch.save(payload, tmp_path / "x.pt")
    with pytest.raises(BadFile) as caught:
        velatura.open_overlay(tmp_path / "x.pt")
    assert inspect_file(tmp_path / "x.pt").problem == str(caught.value)
