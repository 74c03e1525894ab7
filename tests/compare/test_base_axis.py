import gc
import weakref

import numpy as np
import pytest
import torch

import velatura
from velatura.errors import BadFile, BadRecipe, UnknownName, UnsupportedBase
from velatura.prompts.styles import Style
from velatura.sampling.recipe.infotext import read_infotext

QUICK = velatura.Recipe(prompt="a house", steps=1, seed=7)


def change(base):
    """Halve what the UNet of a base predicts, so that its pictures are others."""
    with torch.no_grad():
        base.unet.conv_out.weight.mul_(0.5)
    return base


@pytest.fixture
def half(tmp_path):
    """The path of a base whose pictures are not those of the tiny base."""
    path = tmp_path / "half.safetensors"
    velatura.save(change(velatura.tiny()), path)
    return path


def test_each_row_is_made_on_its_base_and_records_it(half):
    seen = []
    rows = velatura.grid(
        None, QUICK, x=("seed", [7, 8]), y=("base", ["tiny", half]), on_step=lambda *step: seen.append(step)
    ).rows
    assert [[picture.recipe.base for picture in row] for row in rows] == [["tiny"] * 2, ["half"] * 2]
    assert len({picture.recipe.base_hash for row in rows for picture in row}) == 2
    alone = velatura.generate(velatura.open_base(half), QUICK.replace(seed=8))
    assert np.abs(np.asarray(alone.image).astype(int) - np.asarray(rows[1][1].image)).max() <= 1
    assert np.abs(np.asarray(rows[0][1].image).astype(int) - np.asarray(rows[1][1].image)).max() > 1
    assert seen == [(1, 2), (2, 2)]  # the pictures of a row are one batch


def test_bases_by_name_stand_on_any_axis_and_in_the_infotext(half):
    library = velatura.Library(half.parent)
    made = velatura.grid(
        None, QUICK.replace(base="other"), x=("checkpoint", ["half", "tiny"]), y=("steps", [1, 2]), library=library
    )
    assert [[picture.recipe.base for picture in row] for row in made.rows] == [["half", "tiny"]] * 2
    assert [[picture.recipe.steps for picture in row] for row in made.rows] == [[1, 1], [2, 2]]
    assert made.recipe.base is None
    _, _, fields = read_infotext(made.infotext())
    assert (fields["X Type"], fields["X Values"]) == ("base", "half, tiny")


def test_one_base_is_open_at_a_time():
    opened = []

    def open_base(name):
        gc.collect()
        assert not [base for base in opened if base() is not None], name
        base = velatura.tiny()
        opened.append(weakref.ref(base.unet))
        return base

    velatura.grid(None, QUICK, x=("base", ["tiny", "tiny", "tiny"]), open_base=open_base)
    assert len(opened) == 3


def test_open_bases_may_be_the_values(tiny):
    made = velatura.grid(None, QUICK, x=("base", [tiny, change(velatura.tiny())]))
    assert made.x == ("base", ["tiny", "tiny"])
    plain, changed = (np.asarray(picture.image).astype(int) for picture in made.rows[0])
    assert np.abs(plain - changed).max() > 1


@pytest.mark.parametrize(
    ("error", "values", "reason"),
    [
        (BadFile, ["tiny", "nowhere.ckpt"], "'nowhere.ckpt' does not exist"),
        (UnsupportedBase, ["tiny", 5], "a value of the axis 'base' is of type int"),
        (BadRecipe, [], "has no values"),
    ],
)
def test_a_wrong_base_is_refused_before_the_first_picture(error, values, reason):
    with pytest.raises(error, match=reason):
        velatura.grid(None, QUICK, x=("base", values), open_base=pytest.fail)


def test_a_name_that_the_library_lacks_and_a_base_too_many_are_refused(tiny, half):
    library = velatura.Library(half.parent)
    with pytest.raises(UnknownName, match="did you mean 'half'"):
        velatura.grid(None, QUICK, x=("base", ["hall"]), library=library)
    with pytest.raises(BadRecipe, match="leave out the base"):
        velatura.grid(tiny, QUICK, x=("base", ["tiny"]))
    with pytest.raises(BadRecipe, match="two axes"):
        velatura.grid(None, QUICK, x=("base", ["tiny"]), y=("checkpoint", ["tiny"]))


def test_a_word_in_braces_goes_before_an_axis_of_that_name(tiny):
    made = velatura.grid(tiny, "a {checkpoint} in {style}", x=("checkpoint", ["knight"]), y=("style", ["ink"]))
    assert made.rows[0][0].recipe.prompt == "a knight in ink"


def test_an_axis_of_styles_adds_them_to_both_prompts(tiny):
    styles = {"ink": Style("ink", "ink drawing of {prompt}", "colour"), "fog": Style("fog", "in fog")}
    recipe = QUICK.replace(prompt="a {what}", negative="blur")
    made = velatura.grid(
        tiny, recipe, x=("style", ["None", "ink", "fog"]), y=("what", ["house", "boat"]), styles=styles
    )
    prompts = [[(picture.recipe.prompt, picture.recipe.negative) for picture in row] for row in made.rows]
    assert prompts == [
        [(f"a {what}", "blur"), (f"ink drawing of a {what}", "blur, colour"), (f"a {what}, in fog", "blur")]
        for what in ("house", "boat")
    ]
    with pytest.raises(UnknownName, match="ink"):
        velatura.grid(tiny, recipe, x=("style", ["inc"]), y=("what", ["house"]), styles=styles)
