"""The fields of a recipe as options of a verb: a new field is a new option, with its own words of help."""

import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from velatura.sampling.fields import Beginning, Noise, SecondPass
from velatura.sampling.recipe import RECORDED, Recipe
from velatura.sampling.settings import Settings

PAINT, HOW, NOISE, IMAGE, AGAIN, WALK = (
    "What is painted",
    "How it is painted",
    "What noise it begins with",
    "What image it begins from",
    "A second, larger pass",
    "How the sampler walks",
)
PAINTED = ("negative", "width", "height", "seed", "keep_layout", "keep_layout_until")
PANEL_ORDER = (PAINT, HOW, NOISE, WALK, IMAGE, AGAIN)
PANELS = {Noise: NOISE, Beginning: IMAGE, SecondPass: AGAIN, Settings: WALK}
NAMES = {"guidance": "cfg"}  # the field's own name for it
APART = ("prompt", *RECORDED)  # an argument; and what cannot be chosen
PLAIN = (bool, int, float)


def recipe_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a verb's parameter `given`, a dict of the recipe's fields that were set, come from one option for each."""
    fields = [name for name in Recipe.model_fields if name not in APART]

    @wraps(verb)
    def with_options(**words: Any) -> None:
        given = {name: value for name in fields if (value := words.pop(name)) is not None}
        verb(given=given, **words)

    own = inspect.signature(verb, eval_str=True).parameters
    kept = [each for name, each in own.items() if name != "given"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name))
        for name in sorted(fields, key=_place)
    ]
    arguments = [each for each in kept if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    others = [each for each in kept if each.kind is inspect.Parameter.KEYWORD_ONLY]
    taken = [*arguments, *options, *others]
    with_options.__signature__ = inspect.Signature(taken)  # pyright: ignore[reportAttributeAccessIssue]
    with_options.__annotations__ = {each.name: each.annotation for each in taken}
    del with_options.__wrapped__  # whose signature typer would look at
    return with_options


def _place(name: str) -> int:
    return PANEL_ORDER.index(_panel(name))


def _option(name: str) -> Any:
    """The annotation of a field's option."""
    field = Recipe.model_fields[name]
    kind = plain_type(field.annotation)
    flag = f"--{NAMES.get(name, name).replace('_', '-')}"
    shown = "none" if field.default in {None, ""} else str(field.default)
    said = (field.description or "") + "".join(f": {', '.join(each)}" for each in [_choices(field.annotation)] if each)
    help_text = f"{said[:1].upper()}{said[1:]}."
    settings = typer.Option(flag, help=help_text, rich_help_panel=_panel(name), show_default=shown)
    return Annotated[kind | None, settings]


def _panel(name: str) -> str:
    if name in PAINTED:
        return PAINT
    return next((panel for part, panel in PANELS.items() if name in part.model_fields), HOW)


def plain_type(annotation: Any) -> type:
    """What the command line reads a field as; the recipe checks the rest."""
    found = set(_within(annotation))
    return next((each for each in PLAIN if each in found), str)


def _choices(annotation: Any) -> list[str]:
    """The words that a field takes, where it takes only some."""
    return [str(word) for word in get_args(annotation)] if get_origin(annotation) is Literal else []


def _within(annotation: Any) -> list[Any]:
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return [inner for each in get_args(annotation) for inner in _within(each)]
    return [str] if get_origin(annotation) in {Literal, tuple} else [annotation]
