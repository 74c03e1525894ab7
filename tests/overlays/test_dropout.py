"""Where a new hypernetwork drops, as A1111 derives it from one probability (version 1.8)."""

import pytest

import velatura
from velatura.errors import BadOverlay


@pytest.mark.parametrize(
    ("layers", "last", "expected"),
    [
        ((1, 2, 1), True, (0, 0.3, 0)),
        ((1, 2, 2, 1), True, (0, 0.3, 0.3, 0)),
        ((1, 2, 2, 1), False, (0, 0.3, 0, 0)),
        ((1, 2, 4, 2, 1), False, (0, 0.3, 0.3, 0, 0)),
        ((1, 1), True, (0, 0.3)),
    ],
)
def test_one_probability_is_laid_out(tiny, layers, last, expected):
    overlay = velatura.Hypernetwork.for_base(tiny, layers=layers, dropout=0.3, last_layer_dropout=last)
    assert overlay.structure.dropout == expected


def test_without_dropout_there_is_none_after_the_last_layer_either(tiny):
    for last in (True, False):
        overlay = velatura.Hypernetwork.for_base(tiny, layers=(1, 2, 2, 1), last_layer_dropout=last)
        assert overlay.structure.dropout == (0, 0, 0, 0)


def test_probabilities_for_each_layer_are_taken_as_they_are(tiny):
    for last in (True, False):
        given = (0, 0.1, 0.2 * last, 0)
        overlay = velatura.Hypernetwork.for_base(tiny, layers=(1, 2, 2, 1), dropout=given, last_layer_dropout=last)
        assert overlay.structure.dropout == given


@pytest.mark.parametrize(
    ("layers", "dropout"), [((1, 2, 1), 0.3), ((1, 1), 0.3), ((1, 2, 2, 1), (0, 0.1, 0.2, 0))], ids=str
)
def test_dropout_that_has_no_place_is_refused(tiny, layers, dropout):
    with pytest.raises(BadOverlay, match="last_layer_dropout=False"):
        velatura.Hypernetwork.for_base(tiny, layers=layers, dropout=dropout, last_layer_dropout=False)
