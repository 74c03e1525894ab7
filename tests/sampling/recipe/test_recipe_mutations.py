"""One change to a valid text: the same recipe, a refusal, or another warning; never another picture in silence."""

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampling.recipe.test_programs import DRAW_THINGS, EASY, FOOOCUS, INVOKE, SWARM
from velatura.errors import VelaturaError, VelaturaWarning
from velatura.sampling.recipe.exif import decode_user_comment
from velatura.sampling.recipe.recipe import Recipe

NOVELAI = {
    "prompt": "a house",
    "uc": "blurry",
    "steps": 25,
    "sampler": "k_euler",
    "scale": 6.5,
    "seed": 7,
    "width": 64,
    "height": 64,
}
# For each program, its settings, and how they lie in the text
PROGRAMS = {
    "SwarmUI": (SWARM, lambda settings: {"sui_image_params": settings}),
    "Fooocus": (FOOOCUS, dict),
    "InvokeAI": (INVOKE, dict),
    "NovelAI": (NOVELAI, dict),
    "Easy Diffusion": (EASY, dict),
    "Draw Things": (DRAW_THINGS, dict),
}
NEEDED = {
    "SwarmUI": "prompt seed steps cfgscale sampler",
    "Fooocus": "prompt seed steps guidance_scale sampler",
    "InvokeAI": "positive_prompt seed steps cfg_scale scheduler",
    "NovelAI": "seed steps scale sampler",
    "Easy Diffusion": "prompt seed num_inference_steps guidance_scale sampler_name",
    "Draw Things": "c seed steps scale sampler",
}


def outcome(text):
    """Return the recipe of a text with all warnings, or None if it is refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            recipe = Recipe.from_text(text)
        except VelaturaError:
            return None
    assert all(warning.category is VelaturaWarning for warning in caught)
    return recipe, sorted(str(warning.message) for warning in caught)


def is_noticed(text, changed):
    """Return True if a changed text is refused, gives the same recipe, or warns of something else."""
    before, after = outcome(text), outcome(changed)
    assert before is not None
    return after is None or after[0] == before[0] or after[1] != before[1]


def text_of(program, settings):
    return json.dumps(PROGRAMS[program][1](settings))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_order_of_settings_does_not_count(program):
    settings = PROGRAMS[program][0]
    backwards = dict(reversed(settings.items()))
    before, after = outcome(text_of(program, settings)), outcome(text_of(program, backwards))
    assert before is not None
    assert after is not None
    assert after[0] == before[0]


@pytest.mark.parametrize(
    ("program", "key"), [(program, key) for program in PROGRAMS for key in NEEDED[program].split()]
)
def test_a_setting_that_is_left_out_is_noticed(program, key):
    settings = PROGRAMS[program][0]
    changed = {name: value for name, value in settings.items() if name != key}
    assert is_noticed(text_of(program, settings), text_of(program, changed))


NAMED = {"model", "vae", "use_lora_model"}  # settings that may be a name, too
EVERY_KEY = [(program, key) for program, (settings, _) in PROGRAMS.items() for key in settings]


@pytest.mark.parametrize(("program", "key"), EVERY_KEY)
def test_a_setting_with_another_name_is_noticed(program, key):
    settings = PROGRAMS[program][0]
    changed = {f"other_{name}" if name == key else name: value for name, value in settings.items()}
    assert is_noticed(text_of(program, settings), text_of(program, changed))


@pytest.mark.parametrize(("program", "key"), EVERY_KEY)
@pytest.mark.parametrize(
    "change", [lambda value: [[value]], lambda value: {"a": value}, lambda _: 1e400, lambda _: "x" * 9]
)
def test_a_setting_of_another_type_is_noticed(program, key, change):
    """Except for a text in place of a text, and for settings that change nothing."""
    settings = PROGRAMS[program][0]
    changed = {**settings, key: change(settings[key])}
    if isinstance(changed[key], str) and (isinstance(settings[key], str) or key in NAMED):
        return
    assert is_noticed(text_of(program, settings), text_of(program, changed))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("value", [1, "x", [1], {"a": 1}, True])
def test_an_unknown_setting_is_named(program, value):
    settings = PROGRAMS[program][0]
    before, after = (outcome(text_of(program, values)) for values in (settings, {**settings, "new_thing": value}))
    assert before is not None
    assert after is not None
    assert any("new_thing" in message for message in after[1])
    assert after[0] == before[0]


@settings(max_examples=40)
@given(st.sampled_from(list(PROGRAMS)), st.floats(0.01, 0.99))
def test_json_that_is_cut_short_is_refused(program, share):
    text = text_of(program, PROGRAMS[program][0])
    assert outcome(text[: max(3, int(len(text) * share))]) is None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.sampled_from(EVERY_KEY), JUNK)
def test_no_value_is_too_much_for_a_reader(program_and_key, value):
    program, key = program_and_key
    outcome(text_of(program, {**PROGRAMS[program][0], key: value}))


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from([key for _, key in EVERY_KEY]), JUNK, max_size=6))
def test_no_object_is_too_much_for_the_readers(values):
    outcome(json.dumps(values))


LINE = "Steps: 25, Sampler: Euler a, CFG scale: 6.5, Seed: 7, Size: 64x96"
INFOTEXT = f"a house\nNegative prompt: blurry\n{LINE}, Clip skip: 2, RNG: CPU, Version: v1.8.0"
FIELDS = dict(field.split(": ") for field in INFOTEXT.splitlines()[-1].split(", "))


def infotext(fields):
    return "a house\nNegative prompt: blurry\n" + ", ".join(f"{key}: {value}" for key, value in fields.items())


def test_infotext_without_a_needed_field_is_noticed():
    for key in LINE.replace(":", ",").split(", ")[::2]:
        assert is_noticed(INFOTEXT, infotext({name: value for name, value in FIELDS.items() if name != key}))


@settings(max_examples=40)
@given(st.permutations(list(FIELDS)))
def test_the_order_of_fields_does_not_count(keys):
    assert outcome(infotext({key: FIELDS[key] for key in keys})) == outcome(INFOTEXT)


@pytest.mark.parametrize("key", [key for key in FIELDS if key != "Version"])
@pytest.mark.parametrize("value", ["", "x", "-3", "1e999", "[1]", '{"a": 1}', "1, 2"])
def test_a_field_with_a_wrong_value_is_noticed(key, value):
    """A name of a sampler may be any word: sampling refuses it."""
    changed = outcome(infotext({**FIELDS, key: value}))
    before = outcome(INFOTEXT)
    sampler = changed is not None and changed[0].sampler
    assert changed is None or changed[1] != before[1] or sampler != before[0].sampler or changed[0].guidance == -3


@pytest.mark.parametrize("key", [key for key in FIELDS if key != "Version"])
def test_a_field_with_another_name_is_noticed(key):
    changed = {f"Other {name}" if name == key else name: value for name, value in FIELDS.items()}
    assert is_noticed(INFOTEXT, infotext(changed))


@pytest.mark.parametrize("length", range(INFOTEXT.index(" blurry"), INFOTEXT.index("x96"), 3))
def test_infotext_that_is_cut_short_is_noticed(length):
    assert is_noticed(INFOTEXT, INFOTEXT[:length])


@settings(max_examples=40)
@given(st.text(max_size=200) | st.text("Steps: ,12\n\"{}[]'Negative prompt", max_size=200))
def test_no_text_is_too_much(text):
    outcome(text)


@settings(max_examples=40)
@given(st.binary(max_size=60), st.sampled_from([b"", b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)]))
def test_no_comment_is_too_much(data, prefix):
    decode_user_comment(prefix + data).encode()


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=80), st.sampled_from(["<", ">"]))
def test_every_prompt_with_settings_is_read_in_both_byte_orders(prompt, byte_order):
    text = f"{prompt.strip() or 'a'}\n{LINE}"
    for encoding in ("utf-16-be", "utf-16-le"):
        assert decode_user_comment(b"UNICODE\0" + text.encode(encoding), byte_order) == text.strip()
