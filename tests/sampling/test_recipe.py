from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.infotext import NEGATIVE
from velatura.sampling.recipe import OverlayHash, Recipe

CARRIERS = Path(__file__).parents[1] / "data" / "a1111" / "carriers"
WRITABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: NEGATIVE not in text)


@given(
    st.builds(
        Recipe,
        prompt=WRITABLE,
        negative=WRITABLE,
        steps=st.integers(1, 150),
        guidance=st.floats(-30, 30),
        seed=st.integers(0, 2**63 - 1),
        width=st.integers(16, 2048),
        height=st.integers(16, 2048),
        base=st.text("ab, :", min_size=1, max_size=9).map(str.strip).filter(bool),
        combine=st.sampled_from(["sequence", "sum", "average"]),
        overlay_hashes=st.lists(
            st.builds(
                OverlayHash.of,
                st.just("hypernet"),
                st.text("inca, :é").filter(lambda name: name.strip(",: ")),
                st.text("0123456789abcdef", min_size=10, max_size=10),
            )
        ).map(tuple),
        version=st.just("velatura 0.1.0"),
    )
)
def test_a_recipe_comes_back_from_its_text(recipe):
    assert Recipe.from_infotext(recipe.infotext()) == recipe


def test_the_text_is_the_webuis():
    recipe = Recipe(prompt="a cat", negative="ugly", seed=7, width=64, height=96, base="tiny", base_hash="0123456789")
    assert recipe.infotext() == (
        "a cat\nNegative prompt: ugly\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 7, Size: 64x96, Model hash: 0123456789, Model: tiny, RNG: CPU"
    )


def test_the_text_tells_of_overlays_as_the_webui_does_of_its_own():
    neon, ink = (OverlayHash.of("hypernet", name, digit * 10) for name, digit in (("neon", "1"), ("ink, dry", "2")))
    recipe = Recipe(prompt="a cat", seed=7, combine="sum", overlay_hashes=(neon, ink), version="velatura 0.1.0")
    assert recipe.infotext().endswith(
        'RNG: CPU, Hypernet combine: sum, Hypernet hashes: "neon: 1111111111, ink dry: 2222222222", '
        "Version: velatura 0.1.0"
    )


def test_hashes_that_are_none_are_left_out():
    text = 'a\nSteps: 20, Sampler: Euler a, Seed: 1, RNG: CPU, Hypernet hashes: "neon 111, ink: 222"'
    assert Recipe.from_infotext(text).overlay_hashes == (OverlayHash.of("hypernet", "ink", "222"),)


def test_a_picture_of_the_webui_gives_its_recipe():
    with pytest.warns(VelaturaWarning, match="RNG: GPU"):  # its default, noise that only that GPU can draw
        recipe = Recipe.from_image(CARRIERS / "t0.png")
    assert recipe == Recipe(prompt="a cat", negative="ugly", seed=1, width=8, height=8)


def test_what_changes_the_picture_and_is_not_read_is_warned_of():
    text = "a\nSteps: 20, Sampler: Euler, Seed: 1, Clip skip: 2, RNG: CPU, Model hash: 0123456789, Version: v1.8.0"
    with pytest.warns(VelaturaWarning, match=r"not read yet: Clip skip: 2; the picture will not"):
        Recipe.from_infotext(text)


@pytest.mark.parametrize(
    ("written", "sampler"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M, Schedule type: Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras"),
        ("Euler a, Schedule type: Automatic", "Euler a"),
    ],
)
def test_a_sampler_written_in_two_fields_is_one(written, sampler):
    text = f"a\nSteps: 20, Sampler: {written}, Seed: 1, RNG: CPU"
    assert Recipe.from_infotext(text).sampler == sampler


def test_a_seed_of_minus_one_is_drawn_later():
    assert Recipe(seed=-1) == Recipe(seed=None) == Recipe()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, "steps is 0.*greater than or equal to 1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": 2**63}, "seed is .*less than"),
        ({"width": "wide"}, "width is 'wide'"),
        ({"combine": "both"}, "combine is 'both': it should be 'sequence', 'sum' or 'average'"),
        ({"strength": 1}, "a recipe has no strength; it has prompt"),
        ({"prompt": "a\nNegative prompt: b"}, "as the negative prompt"),
    ],
)
def test_a_field_out_of_bounds_is_a_bad_recipe(fields, words):
    with pytest.raises(BadRecipe, match=words):
        Recipe(**fields)
    with pytest.raises(BadRecipe, match=words):
        Recipe().but(**fields)


def test_a_picture_without_a_recipe_is_a_bad_recipe():
    with pytest.raises(BadRecipe, match="carries no recipe"):
        Recipe.from_image(CARRIERS / "none.png")
