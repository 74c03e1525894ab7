"""Embeddings that prompts name are found, as in the webui, without a tag."""

from __future__ import annotations

import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from velatura.errors import UnknownName, VelaturaWarning
from velatura.sampling.recipe.recipe import Recipe

SMALL = {"seed": 1, "steps": 2, "width": 64, "height": 64}


@pytest.fixture
def style(embedding):
    return embedding(name="my style", vectors=3)


@pytest.fixture
def embedding_folder(style, tmp_path):
    """A folder with one embedding in it, as the webui has it."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    velatura.save(style, folder / "my style.safetensors")
    return folder


@pytest.fixture
def generate(tiny):
    def generate(prompt="a boat in My  Style, at night", **fields):
        return velatura.generate(tiny, prompt, **{**SMALL, **fields})

    return generate


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def same(one, other):
    return one.image.tobytes() == other.image.tobytes()


def test_a_name_in_the_prompt_is_found_in_the_library(tiny, style, embedding_folder, generate):
    with velatura.attach(tiny, style):
        expected = generate()
    found = generate(library=velatura.Library(embedding_folder.parent))
    assert same(found, expected)
    assert not same(found, generate())
    assert not tiny.text.token_registry.has_spelling(tiny.text.token_ids("my style"))  # only while it is painted


def test_a_name_is_found_in_the_negative_prompt_too(style, generate):
    plain, found = (generate("a boat", negative="my style", overlays=each) for each in ({}, {"my style": style}))
    assert not same(plain, found)


def test_what_is_given_by_hand_comes_before_the_library(tiny, embedding, embedding_folder, generate):
    other = embedding(name="x", seed=9)
    with velatura.attach(tiny, other.with_name("my style")):
        expected = generate()
        assert same(generate(library=velatura.Library(embedding_folder)), expected)
    assert same(generate(library=velatura.Library(embedding_folder), overlays={"my style": other}), expected)


def test_the_hash_of_its_file_is_recorded_as_the_webui_does(embedding_folder, generate):
    picture = generate(library=velatura.Library(embedding_folder))
    digest = sha256((embedding_folder / "my style.safetensors").read_bytes()).hexdigest()
    assert f'TI hashes: "my style: {digest[:12]}"' in picture.recipe.infotext()
    read = Recipe.from_infotext(picture.recipe.infotext())
    assert read.overlay_hashes == picture.recipe.overlay_hashes
    assert same(generate(read, library=velatura.Library(embedding_folder)), picture)


def test_a_renamed_file_is_found_by_its_hash(tiny, embedding, embedding_folder, generate):
    picture = generate(library=velatura.Library(embedding_folder))
    (embedding_folder / "my style.safetensors").rename(embedding_folder / "renamed.safetensors")
    with pytest.warns(VelaturaWarning, match="my style is .*renamed.safetensors, found by its hash"):
        assert same(generate(picture.recipe, library=velatura.Library(embedding_folder)), picture)
    velatura.save(embedding(name="my style", seed=8), embedding_folder / "my style.safetensors")
    with pytest.warns(VelaturaWarning, match="renamed.safetensors, found by its hash"):
        assert same(generate(picture.recipe, library=velatura.Library(embedding_folder)), picture)


def test_an_embedding_that_is_gone_is_no_silent_loss(embedding_folder, generate):
    recipe = generate(library=velatura.Library(embedding_folder)).recipe
    with pytest.raises(UnknownName, match=r"made with the embedding 'my style' .*cannot be found"):
        generate(recipe)
    with pytest.warns(VelaturaWarning, match="its name is read as plain words"):
        assert same(generate(recipe, lenient=True), generate())
    assert generate(recipe.replace(prompt="a boat"))  # nobody names it any more


def test_an_embedding_for_another_family_is_warned_of_and_read_as_words(embedding_folder, generate):
    wide = velatura.Embedding.from_vectors(torch.ones(2, 768), card=velatura.Card(kind="embedding", name="my style"))
    velatura.save(wide, embedding_folder / "my style.safetensors")
    with pytest.warns(VelaturaWarning, match="2 vectors of 768, which tiny cannot read"):
        assert same(generate(library=velatura.Library(embedding_folder)), generate())


def test_a_broken_file_is_warned_of_where_its_name_is_said(embedding_folder, generate):
    (embedding_folder / "broken.pt").write_bytes(b"not a file of tensors at all")
    assert generate(library=velatura.Library(embedding_folder))
    with pytest.warns(VelaturaWarning, match=r"broken\.pt.*read as plain words"):
        assert generate("a broken boat", library=velatura.Library(embedding_folder))


@pytest.mark.parametrize(
    "content",
    [
        {"string_to_param": {"*": torch.ones(1, 96), "+": torch.ones(1, 96)}},  # two terms
        {"clip_l": torch.ones(1, 768), "t5xxl": torch.ones(1, 4096)},
        {"one": torch.ones(1, 96), "two": torch.ones(1, 96)},
        torch.ones(3, 5, 7),
    ],
)
def test_a_file_of_unknown_make_is_warned_of_where_its_name_is_said(embedding_folder, generate, content):
    torch.save(content, embedding_folder / "strange.pt")
    assert generate(library=velatura.Library(embedding_folder))
    with pytest.warns(VelaturaWarning, match=r"strange\.pt.*read as plain words"):
        assert generate("a strange boat", library=velatura.Library(embedding_folder))


def test_pictures_of_a_batch_are_what_they_are_alone(tiny, style):
    recipes = [Recipe(prompt=text, **SMALL) for text in ("a boat in my style", "a boat")]
    together = velatura.generate_many(tiny, recipes, overlays={"my style": style})
    alone = [velatura.generate(tiny, each, overlays={"my style": style}) for each in recipes]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert not same(*together)


def test_a_tag_tells_its_strength(tiny, style, generate):
    overlays = {"my style": style}
    with velatura.attach(tiny, style, 0.5):
        half = generate("a boat in my style")
    assert same(generate("a boat in my style<embedding:my style:0.5>", overlays=overlays), half)
    assert same(generate("a boat in my style<embedding:my style:0>", overlays=overlays), generate("a boat in my style"))
    late = generate("a boat in my style<embedding:my style:1:start=0.5>", overlays=overlays)
    assert not same(late, generate("a boat in my style"))
    assert not same(late, generate("a boat in my style", overlays=overlays))


def test_strengths_of_tags_may_differ_within_a_batch(tiny, style):
    recipes = [Recipe(prompt=f"a boat in my style<embedding:my style:{each}>", **SMALL) for each in (0.3, 1.2)]
    together = velatura.generate_many(tiny, recipes, overlays={"my style": style})
    alone = [velatura.generate(tiny, each, overlays={"my style": style}) for each in recipes]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert not same(*together)


def test_a_text_that_many_pictures_say_is_read_with_what_lies_over_each(tiny, style, generate):
    """What the first picture's tag made of the words is not what the second picture hears."""
    recipes = [Recipe(prompt=f"a boat in my style{tag}", **SMALL) for tag in ("<embedding:my style:0>", "")]
    off, on = velatura.generate_many(tiny, recipes, overlays={"my style": style})
    assert same(off, generate("a boat in my style"))
    assert same(on, generate("a boat in my style", overlays={"my style": style}))


def test_prompt_editing_may_name_it(style, generate):
    words = "a boat in [my style:paint:1]"
    assert not same(generate(words, overlays={"my style": style}), generate(words))


def test_embeddings_in_the_file_of_a_lora_come_with_it(lora, style, generate):
    carrier = lora()
    carrier.bundled_embeddings = {"my style": {"emb_params": style.vectors[0].detach()}}
    overlays = {"carrier": carrier}
    tagged = "a boat in my style<lora:carrier:0>"
    assert same(generate(tagged, overlays=overlays), generate("a boat in my style", overlays={"my style": style}))
    assert same(generate("a boat in my style", overlays=overlays), generate("a boat in my style"))


def test_a_picture_among_embeddings_is_called_as_is_said_in_it(style, embedding_folder, generate):
    (embedding_folder / "my style.safetensors").unlink()
    velatura.save(style, embedding_folder / "shared.png")
    Image.new("RGB", (8, 8)).save(embedding_folder / "plain.png")  # as previews that lie around are
    library = velatura.Library(embedding_folder.parent)
    assert [each.name for each in library.entries()] == ["shared"]
    assert same(generate(library=library), generate(overlays={"my style": style}))


def test_many_names_are_looked_for_by_their_tokens(tiny, style, embedding_folder, generate):
    for name in ("boa", "style", "night"):  # "boa" is part of a longer word
        shutil.copy(embedding_folder / "my style.safetensors", embedding_folder / f"{name}.safetensors")
    picture = generate(library=velatura.Library(embedding_folder))
    assert [each.name for each in picture.recipe.overlay_hashes] == ["my style", "night"]
