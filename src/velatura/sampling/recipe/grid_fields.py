"""Fields of infotext that describe a grid: the axes of A1111's X/Y/Z plot, and the prompts in which they change words.

A picture of a grid holds the recipe of its first cell, as in A1111. These fields make the whole grid again.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, cast

from velatura.errors import OTHER_PROGRAMS_WORDS, BadRecipe, warn
from velatura.prompts.axis_values import join_texts, texts

SCRIPT_FIELD, PLOT_SCRIPT, MATRIX_SCRIPT = "Script", "X/Y/Z plot", "Prompt matrix"
PROMPT_FIELDS = ("Grid prompt", "Grid negative prompt")
AXIS_LETTERS = "XYZ"
GRID_WARNING = "this is a grid"
ORDER_AXIS = "order"
SEVERAL_VALUES = re.compile(r"[,\n(\[]|\d-\d")  # a list, or a range such as 7-9, 0-1 (+0.5), 0-1 [3]
MAX_LENGTH = 60  # of an axis in a message
# What A1111 calls axes, where it is not the name of a field or another word for one
A1111_AXES = {
    "checkpoint_name": "base",
    "initial_noise_multiplier": "noise_multiplier",
    "negative_guidance_minimum_sigma": "skip_negative_below",
    "prompt_order": ORDER_AXIS,
    "prompt_s/r": "replace",
    "rng_source": "noise",
    "schedule_type": "scheduler",
    "styles": "style",
    "var_seed": "variation_seed",
    "var_strength": "variation_strength",
}


class GridFields(NamedTuple):
    """A grid as its picture describes it.

    Attributes:
        axes: For X, Y and Z the name of the axis and its values as text; None for one that the grid does not have.
        is_matrix: It is a prompt matrix, which has no axes.
        prompt, negative: The prompts in which the axes change words; None for those of the first cell.
    """

    axes: tuple[tuple[str, str] | None, ...]
    is_matrix: bool = False
    prompt: str | None = None
    negative: str | None = None

    def axis_arguments(self) -> list[str | None]:
        """Return the axes as arguments of the command line: "seed=7, 8"."""
        return [None if axis is None else f"{axis[0]}={axis[1]}" for axis in self.axes]

    def negative_field(self) -> dict[str, object]:
        """Return the negative prompt as a field of the recipe, if it is not that of the first cell."""
        return {} if self.negative is None else {"negative": self.negative}


def write_grid_fields(
    axes: Sequence[tuple[str, Sequence[object]] | None], prompts: tuple[str, str], first_prompts: tuple[str, str]
) -> dict[str, object]:
    """Return the fields that describe a grid.

    Args:
        axes: The axes of columns, rows and sheets; none for a prompt matrix.
        prompts: Prompt and negative prompt of the whole grid.
        first_prompts: Those of the first cell.
    """
    fields: dict[str, object] = {SCRIPT_FIELD: PLOT_SCRIPT if axes else MATRIX_SCRIPT}
    for letter, axis in zip(AXIS_LETTERS, axes, strict=False):
        if axis is not None:
            fields |= {f"{letter} Type": axis[0], f"{letter} Values": _write_values(*axis)}
    if prompts != first_prompts:  # an empty one is left out
        fields |= {name: prompt for name, prompt in zip(PROMPT_FIELDS, prompts, strict=True) if prompt}
    return fields


def read_grid_fields(fields: Mapping[str, str]) -> GridFields | None:
    """Return the grid that the fields of an infotext describe, ours or A1111's, or None if they describe a picture."""
    axes = tuple(_read_axis(fields, letter) for letter in AXIS_LETTERS)
    has_prompts = any(name in fields for name in PROMPT_FIELDS)
    is_matrix = fields.get(SCRIPT_FIELD) == MATRIX_SCRIPT and has_prompts
    if not (any(axes) or is_matrix):
        return None
    prompt, negative = (fields.get(name, "") if has_prompts else None for name in PROMPT_FIELDS)
    return GridFields(axes, is_matrix, prompt, negative)


def warn_of_grid(fields: Mapping[str, str]) -> None:
    """Warn that a recipe is that of the first cell of a grid, and say how the grid and other cells are made again."""
    grid = read_grid_fields(fields)
    if grid is None or not (grid.is_matrix or any(axis and SEVERAL_VALUES.search(axis[1]) for axis in grid.axes)):
        return  # a picture, or a grid of one
    axes = [(letter, *axis) for letter, axis in zip("xyz", grid.axes, strict=True) if axis is not None]
    shown = "; ".join(f"{letter}: {name} = {_shorten(values)}" for letter, name, values in axes)
    what = shown or f"prompt matrix {_shorten(grid.prompt or '')!r}"
    cells = ", ".join(f"{name}={_shorten(first)}" for _, name, values in axes if (first := _first_value(values)))
    warn(
        f"{GRID_WARNING} ({what}), and its recipe is that of the first cell{cells and f', {cells}'}: `velatura grid "
        "--recipe` with this file makes the whole grid again; for another cell change what differs, as in --set seed=8 "
        "or in a prompt of your own"
    )


def _read_axis(fields: Mapping[str, str], letter: str) -> tuple[str, str] | None:
    """Return the name of an axis and its values as text; drawn values, which A1111 calls fixed, before written ones."""
    label = fields.get(f"{letter} Type", "").strip()
    values = fields.get(f"Fixed {letter} Values", fields.get(f"{letter} Values", ""))
    if label in {"", "Nothing"} or not values.strip():
        return None
    name = re.sub(r"[. ]+", "_", label.lower()).strip("_")
    known = A1111_AXES.get(name) or OTHER_PROGRAMS_WORDS.get(name)
    return known or (name if label[0].isupper() else label), values


def _write_values(name: str, values: Sequence[object]) -> str:
    """Return the values of an axis as the text that makes them again."""
    if name == ORDER_AXIS:
        return join_texts(cast("Sequence[str]", values[0]))  # all orders are made of the first one
    return join_texts([format_axis_value(value) for value in values])


def format_axis_value(value: object) -> str:
    """Return a value of an axis as text: a number with 15 digits, so that 0.1 + 0.2 is 0.3, and without an exponent."""
    return f"{Decimal(f'{value:.15g}'):f}" if isinstance(value, float) else str(value)


def _first_value(values: str) -> str:
    try:
        return next(iter(texts(values)), "")
    except BadRecipe:
        return ""


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 3] + "..."
