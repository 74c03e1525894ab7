"""Values that Python and NumPy take for one another are taken by the check of arguments too."""

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from typing import Literal

import numpy as np
import pytest
import torch

import velatura
from velatura.arguments import matches
from velatura.errors import BadArgument


class Side(StrEnum):
    PROMPT = "prompt"


class Count(IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Side.PROMPT, Literal["prompt", "negative"]),
        (np.str_("prompt"), Literal["prompt", "negative"]),
        (Side.PROMPT, str),
        (Count.TWO, Literal[1, 2]),
        (np.int64(2), Literal[1, 2]),
        (np.True_, bool),
        (np.True_, Literal[True, "auto"]),
        (np.False_, bool | None),
        (np.array([1, 2, 1]), Sequence[int]),
        (np.array([1, 2, 1]), Sequence[float]),
        (np.array([0.5, 1.5]), Sequence[float]),
        (np.array([0.5, 1.5]), float | Iterable[float]),
    ],
)
def test_what_stands_for_a_value_is_taken(value, annotation):
    assert matches(value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, Literal[1, 2]),
        (1, Literal[True, "auto"]),
        (np.int64(1), bool),
        (1, bool),
        ("prompt", bool),
        (np.array([True]), bool),
        (torch.tensor([True]), bool),
        (np.array([0.5]), Sequence[int]),
        (np.array(["a"]), Sequence[float]),
        (np.array(["a"]), Sequence[str]),
        (np.ones((2, 2)), Sequence[float]),
        (np.array(1.0), Sequence[float]),
        (torch.ones(2), Sequence[float]),
    ],
)
def test_what_stands_for_no_value_is_refused(value, annotation):
    assert not matches(value, annotation)


def test_layers_may_be_an_array(tiny):
    overlay = velatura.Hypernetwork.for_base(tiny, layers=np.array([1, 2, 1]))
    assert overlay.structure == velatura.Hypernetwork.for_base(tiny, layers=[1, 2, 1]).structure


def test_a_wrong_argument_is_a_type_error():
    assert issubclass(BadArgument, TypeError)
    with pytest.raises(TypeError, match="not a"):
        velatura.open_overlay(3)


def test_an_overlay_is_named_by_anything_with_a_path(tiny, lora, tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "ink.safetensors")

    velatura.save(lora(), tmp_path / "ink.safetensors")
    with velatura.attach(tiny, Place()) as attachment:
        assert isinstance(attachment.overlay, velatura.Lora)
