"""A plan says all of a run, refuses what cannot be meant, and survives being written down."""

import re
from importlib.resources import files

import pytest

from velatura.errors import BadPlan, UnknownName, VelaturaWarning
from velatura.training.plan import Plan


def test_a_plan_survives_being_written_down():
    plan = Plan(steps=20, learning_rate="1e-3:10, 1e-4", batch_size=3, seed=7, min_snr=5)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_rate_may_be_a_number():
    assert list(Plan(learning_rate=0.003, steps=2).rates()) == [0.003, 0.003]


def test_a_changed_plan_is_checked_again():
    assert Plan().replace(steps=5).rates().end == 5
    with pytest.raises(BadPlan, match="steps is 0"):
        Plan().replace(steps=0)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"steps": 0}, r"steps is 0: .*greater than or equal to 1 \(optimizer steps\)"),
        ({"steps": "many"}, "steps is 'many': .*valid integer"),
        ({"batch_size": -1}, r"batch_size is -1: .*\(pictures per batch\)"),
        ({"precision": "int8"}, "precision is 'int8': .*'float32' or 'bfloat16'"),
        ({"step": 5}, r"a plan has no step: did you mean steps\b"),
        ({"lr": 1e-3}, "a plan has no lr: velatura calls it learning_rate"),
        ({"max_train_steps": 5}, "a plan has no max_train_steps: velatura calls it steps"),
        ({"learning_rate": "fast"}, 'the rate "fast" cannot be read'),
        ({"learning_rate": ""}, "has no value for step 1"),
        ({"learning_rate": "nan"}, "not a positive number"),
        ({"learning_rate": "-0.1:3, 0.1"}, "not a positive number"),
        ({"learning_rate": "inf"}, "not a positive number"),
        ({"learning_rate": "0"}, "nothing would be learned"),
        ({"learning_rate": "5e-5:2000, nan"}, "not a positive number"),
        ({"learning_rate": "5e-5:100:200"}, "a part with two colons: write one step count"),
        ({"learning_rate": "5e-5:100; 5e-6:200"}, "a part with two colons"),
        ({"learning_rate": "5e-5:50, 5e-6:20, 5e-7"}, 'step counts that do not rise, at "5e-6:20"'),
        ({"learning_rate": "5e-5:2000, 5e-6:500"}, "step counts that do not rise"),
        ({"learning_rate": "5e-5:20, 5e-6:20"}, "step counts that do not rise"),
        ({"learning_rate": "5e-5:60%, 5e-6:50%, 5e-7"}, 'step counts that do not rise, at "5e-6:50%"'),
        ({"learning_rate": "5e-5:20, 5e-6:-2"}, "the step count -2: write 1 to"),
        ({"learning_rate": "5e-5:1" + "0" * 40}, "the step count 1000"),
        ({"learning_rate": "5e-5:2000, soon"}, "could not convert string to float: 'soon'"),
        ({"learning_rate": ", ".join(f"5e-5:{step}" for step in range(1, 1002))}, "has 1,001 parts: write 1,000"),
        ({"learning_rate": "5"}, "goes up to 5, and above 1 every training diverges"),
        ({"learning_rate": "5e-5:2000, 1.5"}, "goes up to 1.5"),
        ({"text_rate": "5"}, "goes up to 5"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"gradient_norm": 0}, "gradient_norm is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields, complaint):
    with pytest.raises(BadPlan, match=complaint):
        Plan(**fields)


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(BadPlan, match=r"steps is 0.*; .*batch_size is 0"):
        Plan(steps=0, batch_size=0)


@pytest.mark.parametrize("rate", ["5e-5:100", "5e-5, 5e-6:100", "0.9"])
def test_a_rate_that_is_hardly_meant_is_warned_of(rate):
    with pytest.warns(VelaturaWarning, match=f'the rate "{rate}"'):
        Plan(steps=2000, learning_rate=rate)


def test_prodigy_may_multiply_the_rate_that_it_finds_by_more():
    assert Plan(optimizer="prodigy", learning_rate="2").step_rates()[0] == 2


def test_a_kind_without_a_preset_is_an_unknown_name():
    with pytest.raises(UnknownName, match="did you mean 'hypernet'"):
        Plan.preset("hypernets", "tiny")


@pytest.mark.parametrize("family", ["tiny", "SD1", "a family of tomorrow"])
def test_there_is_a_preset_for_every_family(family):
    assert Plan.preset("hypernet", family).steps > 0


def test_a_familys_preset_overrules_the_general_one():
    assert Plan.preset("hypernet", "tiny") != Plan.preset("hypernet", "SD1")


@pytest.mark.parametrize("family", ["tiny", "SD1", "SD2", "SDXL"])
def test_there_is_a_preset_for_a_subject_too(family):
    assert Plan.preset("hypernet", family, "subject") != Plan.preset("hypernet", family)
    with pytest.raises(UnknownName, match=r"no purpose of a hypernet is called 'subjects'.*did you mean 'subject'"):
        Plan.preset("hypernet", family, "subjects")


PRESETS = sorted(path.stem for path in (files("velatura.training") / "presets").iterdir())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("family", ["tiny", "SD1", "SD2", "SDXL"])
def test_every_kind_has_presets_for_every_family(name, family):
    kind, _, purpose = name.partition("-")
    plan = Plan.preset(kind, family, purpose)
    assert len(plan.step_rates()) == plan.steps
    assert {len(rates) for rates in plan.part_rates().values()} <= {plan.steps}
    assert purpose in {"style", "subject"}


def test_a_difference_learns_by_the_presets_of_dreambooth():
    assert Plan.preset("difference", "SD1", "subject") == Plan.preset("dreambooth", "SD1", "subject")


def test_parts_have_rates_of_their_own_shaped_as_the_others_are():
    plan = Plan(steps=4, learning_rate="1e-3", text_rate="2e-4:2, 1e-4:3", word_rate=1e-2, schedule="linear")
    assert plan.step_rates() == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert plan.part_rates()["text"] == pytest.approx([2e-4, 1.5e-4, 0.5e-4, 0])
    assert plan.part_rates()["words"] == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    assert Plan().part_rates() == {}
    with pytest.raises(BadPlan, match='the rate "0" is 0, so nothing would be learned'):
        Plan(text_rate=0)


@pytest.mark.parametrize(
    ("idle", "needed"),
    [
        ({"cycles": 3}, {"schedule": "restarts"}),
        ({"huber_threshold": 0.5}, {"loss": "huber"}),
        ({"huber_schedule": "constant"}, {"loss": "smooth_l1"}),
        ({"keep_tags": 1}, {"tag_dropout": 0.1}),
        ({"validation_folder": "others", "validation_pictures": 0}, {"validation_pictures": 2}),
        ({"preview_prompt": "a house"}, {"preview_every": 5}),
        ({"preview_seeds": 2}, {"preview_every": 5}),
    ],
)
def test_what_would_do_nothing_is_refused_until_it_would(idle, needed):
    with pytest.raises(BadPlan, match=r"has no effect without .*: set both, or neither"):
        Plan(**idle)
    Plan(**(idle | needed))


# Beside each plan of 50 steps: what its warning says
BEYOND_THE_END = [
    (
        {"learning_rate": "1e-3:100, 1e-4:500"},
        '"1e-4:500" in the rate "1e-3:100, 1e-4:500" is never reached in 50 steps',
    ),
    ({"learning_rate": "1e-3:50, 1e-4:80, 1e-5"}, '"1e-4:80, 1e-5" in the rate .* is never reached'),
    ({"learning_rate": "1e-3:100%, 1e-4"}, '"1e-4" in the rate .* is never reached'),
    ({"text_rate": "1e-3:60, 1e-4"}, '"1e-4" in the rate "1e-3:60, 1e-4" is never reached'),
    ({"word_rate": "1e-3:60, 1e-4"}, '"1e-4" in the rate "1e-3:60, 1e-4" is never reached'),
    ({"preview_every": 51}, "preview_every = 51 is more than the 50 steps of the run"),
    (
        {"snapshot_every": 500},
        "snapshot_every = 500 is more than the 50 steps .* no snapshot is written",
    ),
    ({"snapshot_every": 10, "keep_every": 100}, "keep_every = 100 is more than the 50 steps"),
]


@pytest.mark.parametrize(("fields", "warning"), BEYOND_THE_END)
def test_what_lies_beyond_the_last_step_is_warned_of(fields, warning):
    [message] = Plan(steps=50, **fields).range_warnings()
    assert re.search(warning, message)
    assert len(Plan().replace(steps=50, **fields).replace(seed=3).range_warnings()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": "1e-3:49, 1e-4"},
        {"learning_rate": "1e-3:10%, 1e-4:500"},
        {"preview_every": 50, "snapshot_every": 0},
        {"snapshot_every": 50, "keep_every": 50},
    ],
)
def test_what_happens_at_the_last_step_is_not_warned_of(fields):
    assert Plan(steps=50, **fields).range_warnings() == []


def test_values_that_a_preset_chose_are_not_warned_of():
    assert Plan(steps=5).range_warnings() == []
    preset = Plan.preset("hypernet", "tiny")
    assert preset.replace(steps=5, seed=1).range_warnings() == []
    assert len(preset.replace(steps=5, snapshot_every=preset.snapshot_every).range_warnings()) == 1
    assert preset.replace(seed=0) == preset
