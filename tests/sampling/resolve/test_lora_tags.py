"""LoRAs called by prompts, as the webui's users write their tags."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import velatura
from velatura.errors import BadPrompt, BadStrength, UnknownName, VelaturaWarning
from velatura.overlays.lora.block_weights import expand_block_weights
from velatura.overlays.strength import Strength
from velatura.prompts.block_weights import BLOCK_COUNTS, BLOCK_WEIGHT_PRESETS
from velatura.prompts.strengths import TextUnetStrengths
from velatura.sampling.recipe.infotext import read_infotext
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve.file_hashes import overlay_file_hashes

DATA = Path(__file__).parents[2] / "data"
HASHES = json.loads((DATA / "a1111" / "hash" / "index.json").read_text())["safetensors"]
QUICK = Recipe(prompt="a red house", steps=2, seed=7)


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


def tagged(tag, prompt="a red house"):
    return QUICK.replace(prompt=f"{prompt} {tag}")


def body(path):
    """The hash of what lies behind a safetensors header, by hand."""
    whole = path.read_bytes()
    return sha256(whole[8 + int.from_bytes(whole[:8], "little") :]).hexdigest()[:12]


@pytest.mark.parametrize(
    ("tag", "strength"),
    [
        ("<lora:ink>", 1.0),
        ("<lora:ink:0.5>", 0.5),
        ("<lyco:Ink:0.5>", 0.5),
        ("<lora:ink:0.5:0.8>", Strength(0.5, 0.8)),
        ("<lora:ink:te=0.2:unet=0.9>", Strength(0.2, 0.9)),
        ("<lora:ink:te=0:unet=0.7>", Strength(0.0, 0.7)),
    ],
)
def test_a_tag_lays_a_lora_on_at_both_strengths(tiny, lora, tag, strength):
    ink = lora()
    picture = velatura.generate(tiny, tagged(tag), overlays={"ink": ink})
    with velatura.attach(tiny, ink, strength):
        assert same(picture, velatura.generate(tiny, QUICK))
    assert not same(picture, velatura.generate(tiny, QUICK))


def test_a_tag_may_ask_for_some_ranks_and_blocks_only(tiny, lora):
    ink = lora(rank=4)
    factors = ",".join(["1", "0"] * 13)
    picture = velatura.generate(tiny, tagged(f"<lora:ink:1:lbw={factors}:dyn=2>"), overlays={"ink": ink})
    part = ink.with_ranks(2).with_block_weights(expand_block_weights([1.0, 0.0] * 13))
    with velatura.attach(tiny, part):
        assert same(picture, velatura.generate(tiny, QUICK))
    whole = velatura.generate(tiny, tagged("<lora:ink>"), overlays={"ink": ink})
    assert not same(picture, whole)
    assert same(whole, velatura.generate(tiny, tagged("<lora:ink:lbw=ALL>"), overlays={"ink": ink}))


@pytest.mark.parametrize("name", BLOCK_WEIGHT_PRESETS)
def test_named_factors_are_for_the_seventeen_blocks_of_their_names(name):
    read = TextUnetStrengths.parse([f"lbw={name}"]).block_weights
    parts = expand_block_weights(read)
    enabled = {part for part, each in parts.items() if each and part != "BASE"}
    assert set(read) <= {0.0, 1.0}
    sides = {"IN": "IN", "OUT": "OUT", "MID": "MID"}
    expected = next((side for side in sides if name.startswith(side)), None)
    if expected == "IN":
        assert all(part.startswith("IN") for part in enabled)
    elif expected == "OUT":
        assert all(part.startswith("OUT") for part in enabled)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["lbw=1,0,1"], "has 3 numbers; write 12 or 17 or 20 or 26 numbers, or one of NONE"),
        (["lbw=" + "1," * 11 + "x"], "'x' is not a block weight"),
        (["lbw=" + "1," * 11 + "inf"], "'inf' is not a block weight"),
        (["lbw=OUTAL"], "lbw= has 1 number;|is not a block weight"),
    ],
)
def test_factors_that_cannot_be_point_at_the_mistake(arguments, reason):
    with pytest.raises(BadPrompt, match=reason):
        TextUnetStrengths.parse(arguments)


@pytest.mark.parametrize("count", BLOCK_COUNTS)
def test_all_counts_that_a_tag_takes_are_for_blocks(count):
    assert len(expand_block_weights([0.5] * count)) == count
    with pytest.raises(BadStrength):
        expand_block_weights([0.5] * (count + 1))


def test_the_unets_strength_follows_the_steps_and_the_texts_does_not(tiny, lora):
    ink = lora()
    picture = velatura.generate(tiny, tagged("<lora:ink:te=0.5:unet=0@0, 1@0.5>", "a"), overlays={"ink": ink}, steps=4)
    with velatura.attach(tiny, ink, Strength(0.5, 0.0)) as attachment:

        def set_next(done, _total):
            attachment.strength = Strength(0.5, [0.0, 0.5, 1.0, 1.0, 1.0][done])

        by_hand = velatura.generate(tiny, QUICK, prompt="a", steps=4, on_step=set_next)
    assert same(picture, by_hand)


@pytest.mark.parametrize("side", ["prompt", "negative"])
def test_a_lora_may_act_for_one_prompt_only(tiny, lora, side):
    ink = lora()
    picture = velatura.generate(tiny, tagged(f"<lora:ink:0.8:on={side}>"), overlays={"ink": ink}, guidance=3)
    assert not same(picture, velatura.generate(tiny, tagged("<lora:ink:0.8>"), overlays={"ink": ink}, guidance=3))
    assert not same(picture, velatura.generate(tiny, QUICK, guidance=3))


def test_pictures_of_a_batch_have_strengths_of_their_own(tiny, lora):
    overlays = {"ink": lora()}
    recipes = [tagged("<lora:ink:0.3:0.9>"), tagged("<lora:ink:0.9:0.2>", "a boat"), tagged("<lora:ink:0>")]
    together = velatura.generate_many(tiny, recipes, overlays=overlays)
    for recipe, picture in zip(recipes, together, strict=True):
        alone = velatura.generate(tiny, recipe, overlays=overlays)
        assert np.abs(pixels(picture) - pixels(alone)).max() <= 1


def test_a_lora_and_a_hypernetwork_act_together(tiny, lora, hyper):
    overlays = {"ink": lora(), "neon": hyper()}
    both = velatura.generate(tiny, tagged("<lora:ink:0.5><hypernet:neon:0.5>"), overlays=overlays)
    with velatura.attach(tiny, overlays["ink"], 0.5), velatura.attach(tiny, overlays["neon"], 0.5):
        assert same(both, velatura.generate(tiny, QUICK))


def test_a_recipe_records_a_loras_hash_as_the_webui_does(tiny, lora, tmp_path):
    path = tmp_path / "models" / "Lora" / "ink.safetensors"
    velatura.save(lora(name="deep ink"), path)
    library = velatura.Library(tmp_path)
    picture = velatura.generate(tiny, tagged("<lora:ink:0.5:0.8>"), library=library)
    assert [(each.kind, each.name, each.hash) for each in picture.recipe.overlay_hashes] == [
        ("lora", "ink", body(path))
    ]
    assert read_infotext(picture.recipe.infotext()).fields["Lora hashes"] == f"ink: {body(path)}"
    again = Recipe.from_image(picture.save(tmp_path / "house.png"))
    assert same(velatura.generate(tiny, again, library=library), picture)

    path.rename(path.with_name("other.safetensors"))
    velatura.save(lora(seed=5), path)
    with pytest.warns(VelaturaWarning, match=r"ink:0\.5:0\.8> is .*other\.safetensors, found by its hash"):
        assert same(velatura.generate(tiny, again, library=velatura.Library(tmp_path)), picture)


def test_a_lora_is_found_by_the_name_that_its_trainer_gave_it(tiny, lora, tmp_path):
    velatura.save(lora(name="deep ink"), tmp_path / "ink-000010.safetensors")
    library = velatura.Library(tmp_path)
    found = velatura.generate(tiny, tagged("<lora:deep ink:0.5>"), library=library)
    assert same(found, velatura.generate(tiny, tagged("<lora:ink-000010:0.5>"), library=library))
    assert found.recipe.overlay_hashes[0].name == "deep ink"


def test_a_lora_that_is_not_there_names_what_is_near(tiny, lora):
    with pytest.raises(UnknownName, match="did you mean 'ink'"):
        velatura.generate(tiny, tagged("<lora:inc:1>"), overlays={"ink": lora()})


def test_a_tag_of_another_kind_is_put_right(tiny, lora):
    with pytest.raises(BadPrompt, match="ink is not a hypernet but a lora; write <lora:ink:1>"):
        velatura.generate(tiny, tagged("<hypernet:ink:1>"), overlays={"ink": lora()})


@pytest.mark.parametrize("case", HASHES, ids=lambda case: case["file"])
def test_hashes_are_those_that_the_webui_records(case):
    assert overlay_file_hashes("lora", DATA / "a1111" / "hash" / case["file"])[0] == case["lora_shorthash"]


def test_what_lycoris_takes_for_a_hash_is_known_and_not_written():
    path = DATA / "nature" / "lyco_ia3.safetensors"  # the webui shows 0x97256338 of it
    assert overlay_file_hashes("lora", path) == (body(path), "0x972563380e")


def test_a_lora_of_the_unet_alone_may_change_over_the_steps_as_it_is(tiny, lora):
    ink = lora(text=False)
    picture = velatura.generate(tiny, tagged("<lora:ink:0@0, 1@0.5>"), overlays={"ink": ink})
    assert same(picture, velatura.generate(tiny, tagged("<lora:ink:unet=0@0, 1@0.5>"), overlays={"ink": ink}))
    with pytest.raises(BadPrompt, match="write its strength as te="):
        velatura.generate(tiny, tagged("<lora:ink:0@0, 1@0.5>"), overlays={"ink": lora()})


def test_what_has_no_ranks_has_none_to_choose_among(tiny, difference):
    with pytest.raises(BadPrompt, match="far has no ranks to choose from; remove dyn"):
        velatura.generate(tiny, tagged("<difference:far:1:dyn=4>"), overlays={"far": difference()})


def test_a_difference_has_two_strengths_as_well(tiny, difference):
    far = difference()
    picture = velatura.generate(tiny, tagged("<difference:far:0.2:0.7>"), overlays={"far": far})
    with velatura.attach(tiny, far, Strength(0.2, 0.7)):
        assert same(picture, velatura.generate(tiny, QUICK))


def test_a_recorded_name_that_holds_a_tag_is_left_out():
    line = "Steps: 2, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
    text = f'cat\n{line}, Lora hashes: "x:1><lora:evil:9: abcd, ink: 0123"'
    with pytest.warns(VelaturaWarning, match="Lora hashes has an entry .* whose name no overlay can have"):
        recipe = Recipe.from_infotext(text)
    assert [(each.name, each.hash) for each in recipe.overlay_hashes] == [("ink", "0123")]


def test_block_weights_count_for_a_difference_too(tiny):
    """The factors are of BASE, IN, MID and OUT: without OUT, the change of an up block does not act."""
    ink = velatura.Difference.for_base(tiny, name="ink")
    layer = next(name for name in ink.layers if name.startswith("lora_unet_up_blocks") and name.endswith("conv1"))
    with torch.no_grad():
        ink.layers[layer].get_parameter("diff").fill_(0.05)
    whole = velatura.generate(tiny, tagged("<difference:ink:1>"), overlays={"ink": ink})
    part = velatura.generate(tiny, tagged("<difference:ink:1:lbw=OUTALL>"), overlays={"ink": ink})
    assert same(part, whole)
    with pytest.raises(BadPrompt, match="ink has no ranks to choose from; remove dyn"):
        velatura.generate(tiny, tagged("<difference:ink:1:dyn=2>"), overlays={"ink": ink})
