from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadRecipe, VelaturaWarning
from velatura.overlays import KINDS
from velatura.sampling.recipe.fields import OVERLAY_KINDS, OverlayHash
from velatura.sampling.recipe.infotext import NEGATIVE_PREFIX
from velatura.sampling.recipe.infotext_fields import HASH_FIELDS, INFOTEXT_FIELDS
from velatura.sampling.recipe.recipe import Recipe

CARRIERS = Path(__file__).parents[2] / "data" / "a1111" / "carriers"
LINE = "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
WRITABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
    lambda text: NEGATIVE_PREFIX not in text
)


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
        scheduler=st.sampled_from([None, "Karras", "Automatic"]),
        eta=st.none() | st.floats(0, 1),
        variation_seed=st.none() | st.integers(0, 2**63 - 1),
        seed_size=st.none() | st.tuples(st.integers(8, 2048), st.integers(8, 2048)),
        denoising=st.none() | st.floats(0, 1),
        masked_content=st.sampled_from(["fill", "original", "latent noise", "latent nothing"]),
        mask_padding=st.none() | st.integers(0, 64),
        hires_scale=st.none() | st.floats(1, 4),
        hires_prompt=WRITABLE,
        tiling=st.booleans(),
        keep_layout=WRITABLE,
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
    text = 'a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Hypernet hashes: "neon 111, ink: 222"'
    assert Recipe.from_infotext(text).overlay_hashes == (OverlayHash.of("hypernet", "ink", "222"),)


def test_the_kinds_of_recorded_files_are_those_of_overlays():
    assert set(OVERLAY_KINDS) == set(HASH_FIELDS) == set(KINDS)


def test_a_recorded_file_of_an_unknown_kind_is_left_out_with_a_word():
    entries = [{"kind": kind, "name": "ink", "hash": "222"} for kind in ("controlnet", "lora")]
    with pytest.warns(VelaturaWarning, match=r"does not have \('controlnet'; it has hypernet, lora, .*\): left out"):
        recipe = Recipe.model_validate({"overlay_hashes": entries})
    assert recipe.overlay_hashes == (OverlayHash.of("lora", "ink", "222"),)
    with pytest.raises(BadRecipe, match="overlay_hashes"):
        Recipe.model_validate({"overlay_hashes": [{"kind": 7, "name": "ink", "hash": "222"}]})


def test_a_picture_of_the_webui_gives_its_recipe():
    recipe = Recipe.from_image(CARRIERS / "t0.png")
    assert recipe == Recipe(prompt="a cat", negative="ugly", seed=1, width=8, height=8, noise="GPU")


def test_what_changes_the_picture_and_is_not_read_is_warned_of():
    text = f"{LINE}, Refiner: sd_xl, RNG: CPU, Model hash: 0123456789, Version: v1.8.0"
    with pytest.warns(VelaturaWarning, match=r"not supported: Refiner: sd_xl; the picture will be different"):
        Recipe.from_infotext(text)


def test_every_field_of_the_text_has_its_own_field_in_the_recipe():
    written = [row.field for row in INFOTEXT_FIELDS if row.field not in {"size", "area", "face_restoration"}]
    written_otherwise = {"prompt", "negative", "width", "height", "overlay_hashes", "version"}
    written_otherwise |= {"template", "negative_template", "resources", "restore_faces", "face_restorer"}
    assert sorted(written) == sorted(set(Recipe.model_fields) - written_otherwise)
    assert len({row.key for row in INFOTEXT_FIELDS}) == len(INFOTEXT_FIELDS)


def test_what_the_webui_writes_of_a_second_pass_is_read():
    text = (
        "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96, RNG: NV, Denoising strength: 0.6, "
        'Clip skip: 2, Hires prompt: "b, c", '
        "Hires resize: 1024x0, Hires steps: 10, Hires upscaler: Latent (nearest), Eta: 0.5"
    )
    recipe = Recipe.from_infotext(text)
    expected = Recipe(
        prompt="a",
        sampler="Euler",
        seed=1,
        width=64,
        height=96,
        noise="NV",
        denoising=0.6,
        clip_skip=2,
        eta=0.5,
        hires_prompt="b, c",
        hires_size=(1024, 0),
        hires_steps=10,
        hires_upscaler="Latent (nearest)",
    )
    assert recipe == expected


def test_a_seed_of_minus_one_is_drawn_later():
    assert Recipe(seed=-1) == Recipe(seed=None) == Recipe()
    for seed in (np.int64(-1), np.int32(-1), np.float32(-1), -1.0, "-1", " -1 ", ""):
        assert Recipe(seed=seed, variation_seed=seed) == Recipe()
    assert Recipe(seed=np.int64(7)) == Recipe(seed=7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, "steps is 0.*greater than or equal to 1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": 2**63}, "seed is .*less than"),
        ({"width": "wide"}, "width is 'wide'"),
        ({"combine": "both"}, "combine is 'both': it should be 'sequence', 'sum' or 'average'"),
        ({"colour": 1}, "a recipe has no colour: did you mean "),
        ({"xyz": 1}, "a recipe has no xyz: it has "),
        ({"hires_scal": 2}, "a recipe has no hires_scal: did you mean hires_scale"),
        ({"prompt": "a\nNegative prompt: b"}, "as the negative prompt"),
    ],
)
def test_a_field_out_of_bounds_is_a_bad_recipe(fields, words):
    with pytest.raises(BadRecipe, match=words):
        Recipe(**fields)
    with pytest.raises(BadRecipe, match=words):
        Recipe().replace(**fields)


def test_a_picture_without_a_recipe_is_a_bad_recipe():
    with pytest.raises(BadRecipe, match="contains no recipe"):
        Recipe.from_image(CARRIERS / "none.png")


@pytest.mark.parametrize("field", ["keep_layout", "hires_prompt", "hires_negative", "base"])
def test_quotes_around_all_of_a_text_come_back(field):
    recipe = Recipe(prompt="a", seed=1, width=64, height=64, **{field: '"hi"'})
    assert Recipe.from_infotext(recipe.infotext()) == recipe


def test_what_is_no_letter_is_a_bad_recipe():
    """An argument in no UTF-8 reaches Python as halves of letters, which no picture can carry."""
    with pytest.raises(BadRecipe, match="which is not a character: write it in UTF-8"):
        Recipe(prompt="a \udcff house")


@pytest.mark.parametrize("seed", [[], {}, [7]])
def test_a_seed_of_another_kind_is_a_bad_recipe(seed):
    with pytest.raises(BadRecipe, match="seed is"):
        Recipe(seed=seed)


def test_a_size_of_nothing_is_none():
    assert Recipe(hires_size="0x0").hires_size is None
    assert Recipe(seed_size="512x0").seed_size is None
    assert Recipe(hires_size="512x0").hires_size == (512, 0)


@pytest.mark.parametrize(
    ("area_fields", "padding"),
    [
        ("Inpaint area: Only masked, Masked area padding: 16", 16),
        ("Inpaint area: Only masked", 32),
        ("Inpaint area: Whole picture, Masked area padding: 16", None),
    ],
)
def test_the_masked_part_is_read_as_in_the_webui(area_fields, padding):
    assert Recipe.from_infotext(f"{LINE}, Mask blur: 8, {area_fields}").mask_padding == padding


def test_the_masked_part_is_told_as_in_the_webui():
    """The golden lines of the webui have these three fields in this order, also where they are its defaults."""
    recipe = Recipe(prompt="a", seed=1, width=64, height=64, mask_padding=32, mask_hash="0123456789")
    assert "Mask blur: 4, Inpaint area: Only masked, Masked area padding: 32" in recipe.infotext()
    assert Recipe.from_infotext(recipe.infotext()) == recipe


def test_the_upscaler_of_a_second_pass_is_always_told():
    assert "Hires upscale: 2, Hires upscaler: Latent" in Recipe(prompt="a", hires_scale=2).infotext()
    assert "Hires" not in Recipe(prompt="a").infotext()


def test_an_inverted_mask_is_warned_of():
    with pytest.warns(VelaturaWarning, match="Mask mode: Inpaint not masked"):
        Recipe.from_infotext(f"{LINE}, Mask mode: Inpaint not masked")
    Recipe.from_infotext(f"{LINE}, Mask mode: Inpaint masked")


@pytest.mark.parametrize(
    ("version", "prompt", "old"),
    [("v1.5.2", "[b:c:10.0]", True), ("v1.6.0", "[b:c:10.0]", False), ("v1.5.2", "b", False), ("1.5", "[b]", False)],
)
def test_words_change_as_in_the_version_that_a_picture_was_made_with(version, prompt, old):
    """The webui marks such pictures "Old prompt editing timelines" as it reads them (golden, parse)."""
    recipe = Recipe.from_infotext(prompt + LINE[1:] + f", Version: {version}")
    assert recipe.old_editing is old
    assert Recipe.from_infotext(recipe.replace(version=None).infotext()).old_editing is old
