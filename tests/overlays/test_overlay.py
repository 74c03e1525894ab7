import pytest
from pydantic import ValidationError

from velatura.overlays.overlay import Card


def test_a_card_says_what_it_is_in_one_line():
    card = Card(kind="hypernet", outline="320,640,768,1280 · 1,2,1 mish", family="SD1", steps=12000)
    assert str(card) == "hypernet 320,640,768,1280 · 1,2,1 mish · SD1 · 12,000 steps"
    assert str(Card(kind="hypernet")) == "hypernet"


def test_a_card_changes_by_copy():
    card = Card(kind="hypernet", steps=1)
    assert (card.but(steps=2).steps, card.steps) == (2, 1)
    with pytest.raises(ValidationError):
        card.but(hats=3)


def test_a_card_survives_json():
    card = Card(kind="hypernet", structure={"widths": [64], "layers": [1, 2, 1]}, trigger_words=("ink",))
    assert Card.model_validate_json(card.model_dump_json()) == card
