"""Axis of a grid that goes through bases: one of them is open at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, cast

from velatura.arguments import describe_value
from velatura.errors import BadFile, BadRecipe
from velatura.files import suggest_similar
from velatura.library import Library

if TYPE_CHECKING:
    from velatura.base.pipeline import AnyBase
    from velatura.sampling.generate import OnSamplingStep, Picture
    from velatura.sampling.recipe.recipe import Recipe

TINY_NAME, HUB_PREFIX = "tiny", "hub:"

OpenBase = Callable[[str], "AnyBase"]
GenerateOnBase = Callable[["AnyBase", "Sequence[Recipe]", "OnSamplingStep | None"], "Sequence[Picture]"]


def check_base_values(values: Sequence[object], library: Library | None) -> None:
    """Refuse bases that do not exist, before the first of them is opened.

    Args:
        values: Values of the axis: bases and pipelines, paths, and names in the library.
        library: Finds bases by name.

    Raises:
        UnknownName: The library has no base of this name.
        BadFile: A path does not exist, and no library is given.
        UnsupportedBase: A value is not a base.
    """
    for value in values:
        if not isinstance(value, str | PurePath):
            base_label(value)
        elif not _is_openable(name := str(value)):
            if library is None:
                similar = suggest_similar(name)
                raise BadFile(
                    f"{name!r} does not exist{similar}: give the path of a base, or a library that has its name"
                )
            library.entry(name, "checkpoint")


def open_base_value(name: str, library: Library | None) -> AnyBase:
    """Open the base of a path, or of a name in the library; "tiny" is the tiny base."""
    if name == TINY_NAME:
        from velatura.tiny import tiny

        return tiny()
    if library is None or _is_openable(name):
        from velatura.formats.open import open_base

        return open_base(name)
    return library.base(name)


def base_label(value: object) -> str:
    """Return the name of a base for the labels of a grid; raises UnsupportedBase if it is not one."""
    if isinstance(value, str | PurePath):
        return str(value)
    from velatura.base.pipeline import freeze_models, to_base

    return freeze_models(to_base)(value, "a value of the axis 'base'").name


def generate_by_base(
    values: Sequence[object],
    recipes: Sequence[Recipe],
    base_indexes: Sequence[int],
    *,
    generate: GenerateOnBase,
    open_value: OpenBase,
    on_step: OnSamplingStep | None,
) -> list[Picture]:
    """Make the pictures of a grid base by base; the last one is released before the next one is opened.

    Args:
        values: Values of the axis.
        recipes: Recipes of all cells.
        base_indexes: For each recipe the index of its value.
        generate: Makes pictures on one base.
        open_value: Opens a value that is a path or a name.
        on_step: Called after each step with the steps done and the steps in all, over all bases.

    Returns:
        The pictures in the order of their recipes.
    """
    pictures: dict[int, Picture] = {}
    for number, value in enumerate(values):
        cells = [cell for cell, index in enumerate(base_indexes) if index == number]
        base = open_value(str(value)) if isinstance(value, str | PurePath) else cast("AnyBase", value)
        made = generate(base, [recipes[cell] for cell in cells], _count_over_bases(on_step, number, len(values)))
        pictures |= zip(cells, made, strict=True)
        del base  # its memory is needed for the next one
    return [pictures[cell] for cell in range(len(recipes))]


def refuse_second_base(base: object) -> None:
    """Refuse a base beside an axis that names the bases."""
    if base is not None:
        raise BadRecipe(
            f"the axis 'base' opens its bases itself, and {describe_value(base)} is given too: leave out the base, or "
            "name it in the axis"
        )


def _is_openable(name: str) -> bool:
    return name == TINY_NAME or name.startswith(HUB_PREFIX) or Path(name).expanduser().exists()


def _count_over_bases(on_step: OnSamplingStep | None, number: int, base_count: int) -> OnSamplingStep | None:
    """Return a callback of one base's steps that counts those of all bases, which take as many steps each."""
    if on_step is None:
        return None
    return lambda done, total: on_step(number * total + done, base_count * total)
