"""Strengths over the steps; the expected ones are reckoned by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.strengths import (
    UNET_BLOCKS,
    StrengthPoint,
    StrengthSchedule,
    TextUnetStrengths,
    warn_of_ignored_arguments,
)
from velatura.prompts.tags import split_tags


def parse(text):
    return StrengthSchedule.parse(text.split(":"))


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("0.6", [0.6] * 4),
        (" -1.5 ", [-1.5] * 4),
        ("1e-1", [0.1] * 4),
        ("0@0, 0.8@0.5", [0, 0.4, 0.8, 0.8]),
        ("0.2@0.25,1@0.75", [0.2, 0.2, 0.6, 1]),
        ("0.7@0.3", [0.7] * 4),
        ("0@0, 1@0.5, 0@1", [0, 0.5, 1, 0.5]),
        ("0.6:start=0.5", [0, 0, 0.6, 0.6]),
        ("0.6:end=0.5", [0.6, 0.6, 0, 0]),
        ("start=0.25:0.6:end=0.75", [0, 0.6, 0.6, 0]),
        ("start=0.5", [0, 0, 1, 1]),
        ("0@0, 0.8@0.5: start = 0.25 :end=0.75", [0, 0.4, 0.8, 0]),
        ("0.6:start=0:end=1", [0.6] * 4),
        ("0.6:on=negative:blocks=mid", [0.6] * 4),
    ],
)
def test_four_steps_have_these_strengths(text, strengths):
    assert parse(text).per_step(4) == pytest.approx(strengths)


def test_without_arguments_the_strength_is_one_everywhere():
    assert StrengthSchedule.parse([]) == StrengthSchedule()
    assert StrengthSchedule().per_step(3) == [1, 1, 1]


@given(st.integers(1, 150), st.integers(0, 100), st.integers(1, 100))
def test_an_overlay_is_off_outside_its_window(steps, first, length):
    start, end = first / 100, min(1.0, (first + length) / 100)
    if start >= end:
        return
    strengths = parse(f"1:start={start}:end={end}").per_step(steps)
    assert strengths == [float(start <= step / steps < end) for step in range(steps)]


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1))
def test_between_two_points_the_strength_is_between_theirs(low, high, fraction):
    reached = StrengthSchedule((StrengthPoint(0, low), StrengthPoint(1, high))).at(fraction)
    assert min(low, high) - 1e-9 <= reached <= max(low, high) + 1e-9


def test_the_last_strength_is_held_to_the_very_end():
    assert parse("0@0, 0.8@0.5").at(1) == 0.8
    assert parse("0@0, 0.8@1").at(1) == 0.8


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        *(("0.6", 0.6), ("0.6:on=prompt:blocks=in", 0.6), ("0.6@0, 0.6@0.5", 0.6), ("0.6:start=0:end=1", 0.6)),
        *(("0:start=0.5", 0), ("0@0, 0.8@0.5", None), ("0.6:start=0.1", None), ("0.6:end=0.9", None)),
    ],
)
def test_a_constant_strength_is_one_number(text, constant):
    assert parse(text).constant == constant


@pytest.mark.parametrize(
    ("text", "on"), [("0.6", "both"), ("on=prompt", "prompt"), ("0.6: on = negative ", "negative"), ("on=both", "both")]
)
def test_an_overlay_may_act_for_one_prompt_only(text, on):
    assert parse(text).on == on


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("0.6", UNET_BLOCKS),
        ("blocks=mid", ("mid",)),
        ("blocks=out + in", ("in", "out")),
        ("blocks=in+mid+out", UNET_BLOCKS),
    ],
)
def test_an_overlay_may_act_in_some_blocks_only(text, blocks):
    assert parse(text).blocks == blocks


@pytest.mark.parametrize(
    ("marked", "reason"),
    [
        ("^strong", "'strong' is not a strength; write a number such as 0.6"),
        ("^", "'' is not a strength"),
        ("^nan", "'nan' is not a strength"),
        ("^1e999", "'1e999' is not a strength"),
        ("^0,5", "'0,5' is not a strength"),
        ("^a=b=c", "'a=b=c' is not a strength"),
        ("0@0, ^0.8", "'0.8' is not strength@fraction; write it as 0.8@0.5"),
        ("0@0,^", "'' is not strength@fraction"),
        ("^0@0@1", "'0@0@1' is not strength@fraction"),
        ("0@0, ^high@0.5", "'high' is not a strength"),
        ("0@0, 0.8@^late", "'late' is not a fraction of the steps; write a number from 0 to 1"),
        ("0@0, 0.8@^50", "'50' is not a fraction of the steps"),
        ("0@0, 0.8@^-0.5", "'-0.5' is not a fraction of the steps"),
        ("0@0, 0.8@^nan", "'nan' is not a fraction of the steps"),
        ("0@0.5, 0.8@^0.5", "0.5 is not after 0.5; order strengths by their fractions"),
        ("0@0.5, 0.8@^0.25", "0.25 is not after 0.5"),
        ("0.6:start=^soon", "'soon' is not a fraction of the steps"),
        ("0.6:start=^", "'' is not a fraction of the steps"),
        ("0.6:start=0.5:end=^0.5", "the end 0.5 does not come after the start 0.5; choose an end after the start"),
        ("0.6:start=^1", "the end 1 does not come after the start 1"),
        ("0.6:end=^0", "the end 0 does not come after the start 0"),
        ("0.6:on=^negativ", "on= cannot be 'negativ'; choose one of both, prompt, negative"),
        ("0.6:blocks=in+^middle", "'middle' does not name blocks; join some of in, mid, out with +"),
        ("0.6:blocks=^in,mid", "'in,mid' does not name blocks"),
        ("0.6:^strat=0.2", "a tag does not have an argument 'strat'; did you mean start="),
        ("0.6:^te=0.2", "a tag does not have an argument 'te'; choose one of start, end, on, blocks"),
        ("0.6:^=0.2", "a tag does not have an argument ''; choose one of"),
        ("start=0.2: ^start=0.3", "start= is in the tag twice; leave one out"),
    ],
)
def test_a_mistake_is_one_line_that_points_at_it(marked, reason):
    with pytest.raises(BadPrompt) as raised:
        parse(marked.replace("^", ""))
    assert reason in str(raised.value)
    assert str(raised.value).endswith(f'; at the ^ in "{marked}"')
    assert "\n" not in str(raised.value)


def test_a_second_strength_is_ignored_as_in_the_webui_and_warned_of():
    assert parse("0.5:x") == parse("0.5")
    with pytest.warns(VelaturaWarning, match=r"a tag has one strength: in '0.5:x' it is 0.5, and 'x' is ignored"):
        warn_of_ignored_arguments(["0.5", "x"])
    with pytest.warns(
        VelaturaWarning, match=r"a tag has 3 arguments without a name: in '1:1:4:x' it is 1:1:4, and 'x'"
    ):
        warn_of_ignored_arguments(["1", "1", "4", "x"], 3)
    warn_of_ignored_arguments(["0.5", "start=0.2"])


@given(st.text("0.59@, :=+startendonblocks", max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        strengths = parse(text)
    except BadPrompt:
        return
    assert all(abs(strength) < float("inf") for strength in strengths.per_step(7))


LORA_CASES = [
    case
    for case in json.loads((Path(__file__).parents[1] / "data" / "a1111" / "tags.json").read_text("utf-8"))["cases"]
    if case["lora_loads"]
    and case["lora_loads"][-1][0]
    and "a=b" not in case["prompt"]  # a name with = is no name there
]


@pytest.mark.parametrize("case", LORA_CASES, ids=lambda case: case["prompt"])
def test_two_strengths_are_what_the_webui_loads_a_lora_with(case):
    tags = [tag for kind in ("lyco", "lora") for tag in split_tags(case["prompt"])[1] if tag.kind == kind]
    ours = {(tag.name, *text_unet_rank(tag.arguments[1:])) for tag in tags}
    assert ours == set(zip(*case["lora_loads"][-1], strict=True))


def text_unet_rank(arguments):
    strengths = TextUnetStrengths.parse(arguments)
    return strengths.text, strengths.unet.constant, strengths.rank


def test_the_unet_follows_a_schedule_where_the_text_encoder_has_its_own_strength():
    strengths = TextUnetStrengths.parse(["te=0.5", "unet=0@0, 1@0.5", "blocks=mid"])
    assert (strengths.text, strengths.unet.at(0.25), strengths.unet.blocks, strengths.rank) == (
        0.5,
        0.5,
        ("mid",),
        None,
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["0@0, 1@0.5"], "write its strength as te=0.8"),
        (["1", "1", "1.5"], "'1.5' is not a rank"),
        (["umet=1"], "did you mean unet="),
    ],
)
def test_two_strengths_point_at_mistakes(arguments, reason):
    with pytest.raises(BadPrompt, match=reason):
        TextUnetStrengths.parse(arguments)
