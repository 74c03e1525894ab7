import importlib

import pytest

import velatura
from velatura.errors import UnknownName


def test_tiny_is_a_function_however_it_was_imported():
    importlib.import_module("velatura.tiny")
    assert callable(velatura.tiny)


def test_an_unknown_set_of_pictures_is_refused():
    with pytest.raises(UnknownName, match="set of pictures is called 'neno'"):
        velatura.tiny_pictures("neno")
