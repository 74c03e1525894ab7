"""When a run ends with the strength that serves best."""

import importlib.util

import pytest

from velatura.training.run import end_tune


@pytest.fixture
def is_due(monkeypatch):
    """The function itself, which tests replace elsewhere so that trainings stay quick."""
    fresh = importlib.util.module_from_spec(end_tune.__spec__)
    end_tune.__spec__.loader.exec_module(fresh)
    return fresh.is_tune_due


def test_it_is_due_where_it_takes_little_beside_the_training(tiny, xl, is_due):
    assert is_due(tiny, None, 50)
    assert not is_due(tiny, None, 49)
    assert not is_due(xl, None, 5000)  # on a CPU


def test_a_plan_decides_otherwise(tiny, xl, is_due):
    assert not is_due(tiny, False, 500)
    assert is_due(xl, True, 1)


def test_it_is_never_due_without_an_image_to_edit(pix2pix, is_due):
    assert not is_due(pix2pix, True, 500)
