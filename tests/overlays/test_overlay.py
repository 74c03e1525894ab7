"""Cards of overlays, and what is common to overlays of all kinds."""

import pytest
from pydantic import ValidationError

from velatura.overlays.overlay import Card


def test_a_card_says_what_it_is_in_one_line():
    card = Card(kind="hypernet", outline="320,640,768,1280 · 1,2,1 mish", family="SD1", steps=12000)
    assert str(card) == "hypernet 320,640,768,1280 · 1,2,1 mish · SD1 · 12,000 steps"
    assert str(Card(kind="hypernet")) == "hypernet"


def test_a_card_changes_by_copy():
    card = Card(kind="hypernet", steps=1)
    assert (card.replace(steps=2).steps, card.steps) == (2, 1)
    with pytest.raises(ValidationError):
        card.replace(hats=3)


def test_a_card_survives_json():
    card = Card(kind="hypernet", structure={"widths": [64], "layers": [1, 2, 1]}, trigger_words=("ink",))
    assert Card.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize("field", ["kind", "name", "outline", "family", "base", "base_hash", "note"])
def test_no_text_of_a_card_moves_the_cursor_or_fills_the_screen(field):
    # escape to red, clear the screen, then turn the writing direction, as a stranger's file might say
    card = Card.model_validate({"kind": "hypernet", field: "in\x1b[31m\x1b[2Jk\nwell\u202e\x07" + "k" * 2000})
    text = getattr(card, field)
    assert text.isprintable()
    assert text.startswith("in[31m[2Jk wellkkk")
    assert len(text) <= 1000


def test_trigger_words_are_cleaned_too():
    assert Card(kind="hypernet", trigger_words=("\x1b]0;title\x07ink",)).trigger_words == ("]0;titleink",)
    with pytest.raises(ValidationError):
        Card(kind="hypernet", trigger_words=("ink",) * 1000)


@pytest.mark.parametrize("steps", [-1, 2**60])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ValidationError):
        Card(kind="hypernet", steps=steps)


def test_the_repr_of_an_overlay_is_its_card_in_one_line(hyper, embedding):
    assert repr(hyper()) == "Hypernetwork(hypernet 64,96,128,192 · 1,2,1 linear · tiny)"
    assert repr(embedding()) == "Embedding(embedding 2 vectors of 96 · tiny)"
