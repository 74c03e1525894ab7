"""What a picture tells of the overlays that its prompts call, all kinds in one prompt."""

import pytest

import velatura
from velatura.overlays import KINDS
from velatura.sampling.recipe.recipe import Recipe

QUICK = Recipe(prompt="a red house", steps=2, seed=7)
TAGS = ("<lora:ink:0.8>", "<hypernet:inca:0.6>", "<aesthetic:mood:0.5>", "<difference:full:0.5>")


@pytest.fixture
def overlays(hyper, lora, embedding, aesthetic, difference):
    made = {"ink": lora(), "inca": hyper(), "dusk": embedding(name="dusk"), "mood": aesthetic(), "full": difference()}
    assert {each.kind for each in made.values()} == set(KINDS), "a new kind belongs into this prompt"
    return made


def changes(effect):
    """How much is said to be changed, at each place that an overlay touches."""
    return [*(each.k for each in effect.widths), *(each.change for each in effect.outputs)]


def test_every_kind_tells_in_order_what_it_did(tiny, overlays):
    picture = velatura.generate(tiny, QUICK, prompt=f"a house at dusk {' '.join(TAGS)}", overlays=overlays)
    words, *called = picture.effects
    assert [words.overlay, *(each.overlay for each in called)] == ["dusk", *TAGS]
    assert words.words[0].named
    assert all(change > 0 for each in called for change in changes(each))
    assert all(changes(each) for each in called)


def test_tags_tell_what_overlays_attached_by_hand_tell(tiny, lora):
    made = lora()
    [called] = velatura.generate(tiny, QUICK, prompt="a red house<lora:ink:0.8>", overlays={"ink": made}).effects
    with velatura.attach(tiny, made, 0.8) as attachment:
        assert velatura.generate(tiny, QUICK).effects == ()  # of what was attached by hand, the attachment tells
    assert called.outputs == attachment.effect.outputs


def test_a_batch_names_what_its_prompts_call_differently_by_name_alone(tiny, lora):
    recipes = [QUICK.replace(prompt=f"a house <lora:ink:{strength}>") for strength in (0.2, 0.8)]
    made = velatura.generate_many(tiny, recipes, overlays={"ink": lora()})
    assert [each.overlay for picture in made for each in picture.effects] == ["<lora:ink>"] * 2


def test_a_second_pass_adds_what_only_it_calls(tiny, lora):
    called = {"ink": lora(), "wash": lora(seed=2)}
    again = {"hires_scale": 1.5, "hires_prompt": "a house <lora:wash:1>", "hires_steps": 2}
    picture = velatura.generate(tiny, QUICK, prompt="a house <lora:ink:1>", overlays=called, **again)
    assert [each.overlay for each in picture.effects] == ["<lora:ink:1>", "<lora:wash:1>"]
