"""`velatura.train` takes every field of the plan as a typed argument, and knows other programs' words for them."""

import inspect
import types
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest

import velatura
from velatura.errors import BadPlan
from velatura.training.plan import Plan
from velatura.training.plan_fields import PlanFields

PARAMETERS = inspect.signature(velatura.train).parameters
# Arguments of train that are not fields of the plan
OTHERS = {"base", "overlay", "folder", "plan", "out", "class_prompt", "class_pictures", "over_others"} | {
    "on_step",
    "on_stage",
}


def choices(annotation):
    """Return the types and literals that an annotation allows; rates may be given as numbers, which the plan reads."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    if get_origin(annotation) in {Union, types.UnionType}:
        return set().union(*map(choices, get_args(annotation)))
    return {annotation}


def test_train_spells_out_or_types_every_field_of_the_plan_once():
    spelled_out = {name for name, it in PARAMETERS.items() if it.kind is not it.VAR_KEYWORD} - OTHERS
    typed = set(PlanFields.__annotations__)
    assert not spelled_out & typed
    assert spelled_out | typed == set(Plan.model_fields)
    assert all(PARAMETERS[name].default is None for name in spelled_out)


@pytest.mark.parametrize("name", Plan.model_fields)
def test_arguments_have_the_types_of_the_fields(name):
    field = choices(Plan.model_fields[name].annotation)
    if name in PlanFields.__annotations__:
        argument = choices(get_type_hints(PlanFields)[name])
    else:
        argument = choices(get_type_hints(velatura.train)[name]) - {type(None)}  # which leaves the plan as it is
        field -= {type(None)}
    if name.endswith("rate"):
        field |= {float}
    assert argument == field


def test_arguments_change_the_plan(tiny, hyper, photos, tmp_path):
    plan = velatura.Plan(steps=5, batch_size=2, pixels=16, validation_pictures=2, precision="float32")
    run = velatura.train(tiny, hyper(), photos, plan, out=tmp_path / "run", steps=1, ema=0.9, learning_rate=1e-3)
    written = Plan.model_validate_json((run.folder / "plan.json").read_text())
    assert written == plan.replace(steps=1, ema=0.9, learning_rate="0.001")
    assert len(run.losses) == 1


@pytest.mark.parametrize(("word", "field"), [("lr", "learning_rate"), ("epochs", "steps"), ("resolution", "pixels")])
def test_words_of_other_programs_are_answered_with_velaturas(tiny, photos, tmp_path, word, field):
    overlay = velatura.Hypernetwork.for_base(tiny)
    with pytest.raises(BadPlan, match=f"a plan has no {word}: velatura calls it {field}"):
        velatura.train(tiny, overlay, photos, out=tmp_path / "run", **{word: 1})
    assert not (tmp_path / "run").exists()


def test_a_class_prompt_fills_the_folder_of_class_pictures_first(tiny, difference, photos, tmp_path):
    plan = velatura.Plan(steps=1, pixels=16, validation_pictures=0, precision="float32")
    velatura.train(tiny, difference(), photos, plan, out=tmp_path / "run", class_prompt="a ball", class_pictures=1)
    assert [path.name for path in (photos / "reg").glob("*.png")] == ["class-0001.png"]
