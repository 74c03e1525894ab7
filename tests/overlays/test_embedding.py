"""A name in a prompt stands for vectors while an embedding lies over a base."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import nn

import velatura
from velatura.base.encoding_context import encoding_row
from velatura.errors import BadOverlay, BadStrength, UnsupportedBase, WrongBase

SAID = "a boat in my style, at night"


@pytest.fixture
def named(embedding):
    """Make embeddings that are called "my style" unless told otherwise."""
    return lambda name="my style", **options: embedding(name=name, **options)


def hidden(base, text=SAID):
    with torch.no_grad():
        return base.text.encode([text])


def placed(base, ids, vectors):
    """Encode framed ids with vectors put into the result of the token table, by a way that is not ours."""
    tower = base.text.encoders[0].model
    framed = torch.tensor([base.text.encoders[0].pad_to_77([max(token, 0) for token in ids])])
    found = tower.get_input_embeddings()(framed).clone()
    for place, token in enumerate(ids, 1):
        if token < 0:
            found[0, place] = vectors[-token - 1]
    inner = tower.embeddings
    mask = torch.full((77, 77), -torch.inf).triu(1)[None, None]
    states = found + inner.position_embedding(torch.arange(77))
    for layer in tower.encoder.layers:
        out = layer(states, mask)
        states = out[0] if isinstance(out, tuple) else out
    return tower.final_layer_norm(states)


def test_the_vectors_stand_where_the_name_stood(tiny, named):
    overlay = named(vectors=3)
    words = tiny.text.token_ids(SAID)
    style = tiny.text.token_ids("my style")
    start = next(i for i in range(len(words)) if words[i : i + len(style)] == style)
    with torch.no_grad():
        expected = placed(tiny, [*words[:start], -1, -2, -3, *words[start + len(style) :]], overlay.vectors[0])
    with velatura.attach(tiny, overlay):
        torch.testing.assert_close(hidden(tiny), expected, atol=1e-5, rtol=1e-4)


def test_its_name_is_found_in_any_case_and_not_within_longer_words(tiny, named):
    with velatura.attach(tiny, named("cat")):
        assert tiny.text.tokenize("a Cat, cats")[1:3] == [(-1, -2), tuple(tiny.text.token_ids(","))]
        assert all(token > 0 for group in tiny.text.tokenize("a category of cats") for token in group)


def test_a_name_of_signs_is_found_beside_other_signs(tiny, named):
    with velatura.attach(tiny, named("<Cat>")):
        for text in ("<cat>", "(<cat>)", "a<cat>, asleep", "<cat><cat>"):
            assert (-1, -2) in tiny.text.tokenize(text)
        assert tiny.text.tokenize("a <cat>, asleep")[2:] == [(token,) for token in tiny.text.token_ids(", asleep")]


def test_the_longest_name_is_found_first(tiny, named):
    with velatura.attach(tiny, named("my")), velatura.attach(tiny, named("my style", vectors=1)):
        assert tiny.text.tokenize("my style my") == [(-3,), (-1, -2)]


def test_the_last_of_two_with_one_name_is_heard(tiny, named):
    one, two = named(seed=1), named(seed=2)
    with velatura.attach(tiny, two):
        alone = hidden(tiny)
    with velatura.attach(tiny, one):
        first = hidden(tiny)
        with velatura.attach(tiny, two):
            assert torch.equal(hidden(tiny), alone)
        assert torch.equal(hidden(tiny), first)


@pytest.mark.parametrize("strength", [0.01, 0.5, 1.7])
def test_strength_weighs_what_sets_it_apart_from_a_word_that_says_nothing(tiny, named, strength):
    prompt = "a boat in my style at night"
    neutral = hidden(tiny, prompt.replace("my", "*").replace("style", "*"))  # of as many vectors
    with velatura.attach(tiny, named()) as attachment:
        whole = hidden(tiny, prompt)
        attachment.strength = strength
        torch.testing.assert_close(hidden(tiny, prompt), neutral + strength * (whole - neutral), atol=1e-5, rtol=1e-4)


def test_several_are_weighed_each_by_its_own_difference(tiny, named):
    prompt = "my boat in my style"
    with velatura.attach(tiny, named("my boat", seed=2)) as boat, velatura.attach(tiny, named()) as style:
        whole = hidden(tiny, prompt)
        boat.strength = 0.5
        less_boat = hidden(tiny, prompt)
        boat.strength, style.strength = 1, 0.3
        less_style = hidden(tiny, prompt)
        boat.strength = 0.5
        torch.testing.assert_close(hidden(tiny, prompt) - whole, (less_boat - whole) + (less_style - whole))


def test_the_pooled_prompt_is_weighed_too(xl):
    overlay = velatura.Embedding.for_base(xl, name="my style", initial="boat")
    with torch.no_grad():
        neutral, whole = (xl.text.conditioning([text]).pooled for text in ("* at night", "boat at night"))
        with velatura.attach(xl, overlay, 0.5):
            half = xl.text.conditioning(["my style at night"]).pooled
    torch.testing.assert_close(half, (neutral + whole) / 2)


@pytest.mark.parametrize("side", ["prompt", "negative"])
def test_it_may_act_for_one_side_only(tiny, named, side):
    with velatura.attach(tiny, named(), on=side):
        read = {}
        for half in ("prompt", "negative"):
            with encoding_row(negative=half == "negative"):
                read[half] = tiny.text.tokenize("my style")
        assert read[side] == [(-1, -2)]
        assert read["negative" if side == "prompt" else "prompt"] != [(-1, -2)]
        low, high = (tiny.text.encode([SAID, SAID])[row] for row in (0, 1))
        assert not torch.equal(low, high)
        with pytest.raises(BadStrength, match="is not a guided batch"):
            hidden(tiny)


def test_it_makes_other_pictures(tiny, named):
    def paint(**fields):
        return velatura.generate(tiny, SAID, seed=3, steps=2, width=64, height=64, **fields).image.tobytes()

    bare = paint()
    with velatura.attach(tiny, named()) as attachment:
        assert paint() != bare
        attachment.strength = 0
        assert paint() == bare
    assert paint() == bare


def test_a_negative_prompt_may_name_it(tiny, named):
    def paint():
        fields = {"negative": "my style", "seed": 3, "steps": 2, "width": 64, "height": 64}
        return velatura.generate(tiny, "a boat", **fields).image.tobytes()

    bare = paint()
    with velatura.attach(tiny, named()):
        assert paint() != bare
    with (
        pytest.warns(velatura.VelaturaWarning, match="no text contains its name"),
        velatura.attach(tiny, named(), on="prompt"),
    ):
        assert paint() == bare


def test_both_towers_of_an_sdxl_read_their_own_vectors(xl):
    overlay = velatura.Embedding.for_base(xl, name="my style", vectors=2, initial="a boat")
    assert {name: tuple(tensor.shape) for name, tensor in overlay.state_dict().items()} == {
        "clip_l": (2, 16),
        "clip_g": (2, 24),
    }
    with torch.no_grad():
        bare, expected = (xl.text.conditioning([text]) for text in ("my style", "a boat"))
        with velatura.attach(xl, overlay):
            ours = xl.text.conditioning(["my style"])
    assert torch.equal(ours.context, expected.context)  # the vectors are those of "a boat"
    assert torch.equal(ours.pooled, expected.pooled)  # which looks for the end of the text
    assert not torch.equal(ours.context, bare.context)


def test_the_pooled_prompt_is_that_of_the_end_where_a_tower_looks_for_the_highest_token(xl):
    text = xl.text.deep_copy()
    text.encoders[1].model.text_model.eos_token_id = 2  # as SDXL's own configuration has it
    base = velatura.Base("xl", xl.family, unet=xl.unet, vae=xl.vae, text=text, schedule=xl.schedule)
    overlay = velatura.Embedding.for_base(base, name="my style", initial="boat")
    with torch.no_grad():
        expected = text.conditioning(["boat at night"]).pooled
        with velatura.attach(base, overlay):
            assert torch.equal(text.conditioning(["my style at night"]).pooled, expected)


def test_initial_text_is_spread_over_the_vectors_as_the_webui_does(tiny):
    table = tiny.text.model.get_input_embeddings().weight
    three = tiny.text.token_ids("red house boat")
    for count, rows in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 0, 1, 1, 2])):  # floor(i * 3 / count)
        made = velatura.Embedding.for_base(tiny, name="x", vectors=count, initial="red house boat")
        assert torch.equal(made.vectors[0], table[[three[row] for row in rows]].float())
    assert not velatura.Embedding.for_base(tiny, name="x", initial="").vectors[0].any()


def test_gradients_reach_the_vectors_and_nothing_else(tiny, named):
    overlay = named().train()
    with velatura.attach(tiny, overlay):
        tiny.text.encode([SAID]).square().sum().backward()
    assert overlay.vectors[0].grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tiny.text.model.parameters())


def test_vectors_of_other_widths_are_refused(tiny, xl, named):
    with pytest.raises(WrongBase, match="my style has vectors of 96, small XL reads 16 and 24"):
        velatura.attach(xl, named())
    wide = velatura.Embedding.from_vectors(torch.zeros(1, 768), card=velatura.Card(kind="embedding", name="x"))
    with pytest.raises(WrongBase, match="made for SD1"):
        velatura.attach(tiny, wide)


def test_what_cannot_be_is_refused(tiny, named):
    with pytest.raises(BadOverlay, match="76 vectors: one chunk of a prompt holds 75"):
        named(vectors=76)
    with pytest.raises(BadOverlay, match="0 vectors has no effect"):
        named(vectors=0)
    with pytest.raises(BadOverlay, match="no name"):
        velatura.attach(tiny, named(""))
    with pytest.raises(BadOverlay, match="not in blocks"):
        velatura.attach(tiny, named(), blocks=["in"])
    many = velatura.Embedding.from_vectors(torch.zeros(500, 96), card=velatura.Card(kind="embedding", name="huge"))
    with pytest.raises(BadOverlay, match="huge has 500 vectors"):
        velatura.attach(tiny, many)


def test_a_pipeline_is_told_what_to_do_instead(tiny, named):
    pipeline = StableDiffusionPipeline(
        *(
            tiny.vae,
            tiny.text.model,
            tiny.text.tokenizer,
            tiny.unet,
            DDIMScheduler(steps_offset=1, clip_sample=False),
            None,
            None,
        ),
        requires_safety_checker=False,
    )
    with pytest.raises(UnsupportedBase, match="load_textual_inversion"):
        velatura.attach(pipeline, named())


def test_it_goes_by_another_name_with_the_same_vectors(tiny, named):
    overlay = named()
    other = overlay.with_name("other")
    assert other.vectors[0] is overlay.vectors[0]
    with velatura.attach(tiny, other):
        assert tiny.text.tokenize("other") == [(-1, -2)]
        assert tiny.text.tokenize("my style") != [(-1, -2)]


def test_a_long_text_is_cut_before_a_name_that_does_not_fit(tiny, named):
    long = " ".join(["boat"] * 74) + " my style"
    with (
        velatura.attach(tiny, named()),
        pytest.warns(velatura.VelaturaWarning, match="76 tokens: the first 74 are read"),
    ):
        hidden(tiny, long)


def test_a_towers_own_forward_is_given_back(tiny, named):
    table = tiny.text.model.get_input_embeddings()
    own = table.forward
    calls: list[int] = []

    def counted(ids):
        calls.append(1)
        return own(ids)

    table.forward = counted
    try:
        with velatura.attach(tiny, named()):
            hidden(tiny)
        assert table.forward is counted
        assert calls
    finally:
        del table.forward


def test_vectors_may_be_changed_while_they_lie_over_a_base(tiny, named):
    overlay = named()
    with velatura.attach(tiny, overlay):
        before = hidden(tiny)
        nn.init.zeros_(overlay.vectors[0])
        assert not torch.equal(hidden(tiny), before)


def test_its_effect_tells_how_long_its_vectors_are_and_whether_it_was_named(tiny, named):
    overlay = named(vectors=1)
    table = tiny.text.model.get_input_embeddings().weight
    with torch.no_grad():
        overlay.vectors[0].mul_(2 * table.norm(dim=1).quantile(0.95) / overlay.vectors[0].norm())
    with velatura.attach(tiny, overlay) as attachment:
        expected = "'my style': 1 vector, 2.00 times as long as the base's token vectors, no text encoded yet"
        assert expected in str(attachment.effect)
        hidden(tiny)
        assert str(attachment.effect).endswith("vectors, used")


def test_an_embedding_that_no_text_names_is_warned_of(tiny, named):
    with (
        pytest.warns(velatura.VelaturaWarning, match="no text contains its name 'my style'"),
        velatura.attach(tiny, named()),
    ):
        hidden(tiny, "a boat")
    with velatura.attach(tiny, named()):
        pass  # nothing was read at all
    with velatura.attach(tiny, named(), 0):
        hidden(tiny)


def test_vectors_that_become_too_long_are_shortened_in_training(tiny):
    overlay = velatura.Embedding.for_base(tiny, name="x", vectors=2, longest=2.0)
    most = 2 * tiny.text.model.get_input_embeddings().weight.norm(dim=1).quantile(0.95)
    nn.init.constant_(overlay.vectors[0], 10.0)
    with torch.no_grad():
        overlay.vectors[0][1] = 0
    overlay.after_step()
    torch.testing.assert_close(overlay.vectors[0].norm(dim=1), torch.stack([most, torch.zeros(())]))
    free = velatura.Embedding.for_base(tiny, name="x", longest=None)
    nn.init.constant_(free.vectors[0], 10.0)
    free.after_step()
    assert (free.vectors[0] == 10).all()


@pytest.mark.filterwarnings("ignore:.*a copy of its .* is made without it")
def test_a_copy_of_a_text_encoder_is_plain(tiny, named):
    off = hidden(tiny)
    with velatura.attach(tiny, named()):
        for copied in (deepcopy(tiny.text), pickle.loads(pickle.dumps(tiny.text)), tiny.text.deep_copy()):
            with torch.no_grad():
                assert torch.equal(copied.encode([SAID]), off)
            assert copied.tokenize("my style") == [(token,) for token in tiny.text.token_ids("my style")]


def test_a_compiled_text_tower_heeds_it(tiny, named):
    text = tiny.text.deep_copy()
    base = velatura.Base("compiled", tiny.family, unet=tiny.unet, vae=tiny.vae, text=text, schedule=tiny.schedule)
    traced: list[int] = []

    def backend(graph, _inputs):
        traced.append(1)
        return graph.forward

    text.model.forward = torch.compile(text.model.forward, backend=backend)
    off = hidden(base)
    overlay = named()
    with velatura.attach(base, overlay) as attachment:
        with velatura.attach(tiny, overlay):
            torch.testing.assert_close(hidden(base), hidden(tiny))
        count = len(traced)
        attachment.strength = 0.5
        with velatura.attach(tiny, overlay, 0.5):
            torch.testing.assert_close(hidden(base), hidden(tiny))
        assert len(traced) == count
    assert torch.equal(hidden(base), off)
    torch._dynamo.reset()
