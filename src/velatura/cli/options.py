"""Turn the fields of a recipe into options of a command: a new field becomes a new option with its description."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from velatura.imports import check_ray_installed
from velatura.sampling.recipe.fields import FaceFields, HiresFields, Img2ImgFields, NoiseFields
from velatura.sampling.recipe.recipe import RECORDED_FIELDS, Recipe
from velatura.sampling.recipe.sampler_settings import SamplerSettings

PROMPT_PANEL, SAMPLING_PANEL, NOISE_PANEL, IMG2IMG_PANEL, HIRES_PANEL, FACES_PANEL, SAMPLER_PANEL = (
    "Prompt",
    "Sampling",
    "Noise",
    "Image to image",
    "Hires fix",
    "Restore faces",
    "Sampler settings",
)
PROMPT_PANEL_FIELDS = ("negative", "width", "height", "seed", "keep_layout", "keep_layout_until")
PANEL_ORDER = (PROMPT_PANEL, SAMPLING_PANEL, NOISE_PANEL, SAMPLER_PANEL, IMG2IMG_PANEL, HIRES_PANEL, FACES_PANEL)
PANEL_OF_MODEL = {
    NoiseFields: NOISE_PANEL,
    Img2ImgFields: IMG2IMG_PANEL,
    HiresFields: HIRES_PANEL,
    FaceFields: FACES_PANEL,
    SamplerSettings: SAMPLER_PANEL,
}
OPTION_NAMES = {"guidance": "cfg"}  # as the field calls it
EXCLUDED_FIELDS = ("prompt", *RECORDED_FIELDS)  # an argument; and what cannot be chosen
PLAIN_TYPES = (bool, int, float)


def ray_option(work: str, panel: str) -> Any:
    """Return the option --ray, which is refused where Ray is not installed, before torch is imported.

    Args:
        work: What the cluster does, as a command: "Run trials".
        panel: The panel of the help in which it is.
    """

    def check(address: str | None) -> str | None:
        if address is not None:
            check_ray_installed()
        return address

    return typer.Option(
        "--ray",
        help=f"{work} on a Ray cluster: its address, auto for this machine's, or local for a new one.",
        rich_help_panel=panel,
        show_default="none",
        callback=check,
    )


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Fill a command's parameter `recipe_fields`, a dict of the fields that were set, from one option a field."""
    fields = [name for name in Recipe.model_fields if name not in EXCLUDED_FIELDS]

    @wraps(command)
    def with_options(**values: Any) -> None:
        recipe_fields = {name: value for name in fields if (value := values.pop(name)) is not None}
        command(recipe_fields=recipe_fields, **values)

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name))
        for name in sorted(fields, key=_panel_index)
    ]
    set_signature(with_options, command, replaced="recipe_fields", before=options)
    return with_options


def set_signature(
    wrapper: Callable[..., None],
    command: Callable[..., None],
    *,
    replaced: str,
    before: Sequence[inspect.Parameter] = (),
    after: Sequence[inspect.Parameter] = (),
) -> None:
    """Give a wrapper the signature that typer makes the command's options of.

    Args:
        wrapper: Made by `functools.wraps`; its signature is replaced in place.
        command: The function whose parameters stay, but for the replaced one.
        replaced: The parameter that the wrapper fills from several options.
        before, after: Those options, before and after the command's own.
    """
    own = [
        parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != replaced
    ]
    arguments = [parameter for parameter in own if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    others = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    parameters = [*arguments, *before, *others, *after]
    wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]  # typer would look at its signature


def _panel_index(name: str) -> int:
    return PANEL_ORDER.index(_panel(name))


def _option(name: str) -> Any:
    """Build the annotation of a field's option."""
    field = Recipe.model_fields[name]
    field_type = plain_type(field.annotation)
    flag = f"--{OPTION_NAMES.get(name, name).replace('_', '-')}"
    default_text = "none" if field.default in {None, ""} else str(field.default)
    description = (field.description or "") + "".join(
        f": {', '.join(choices)}" for choices in [_choices(field.annotation)] if choices
    )
    help_text = f"{description[:1].upper()}{description[1:]}."
    option = typer.Option(flag, help=help_text, rich_help_panel=_panel(name), show_default=default_text)
    return Annotated[field_type | None, option]


def _panel(name: str) -> str:
    if name in PROMPT_PANEL_FIELDS:
        return PROMPT_PANEL
    return next((panel for part, panel in PANEL_OF_MODEL.items() if name in part.model_fields), SAMPLING_PANEL)


def plain_type(annotation: Any) -> type:
    """Return the plain type that the command line parses; the recipe checks the rest."""
    member_types = set(_flatten_annotation(annotation))
    return next((plain for plain in PLAIN_TYPES if plain in member_types), str)


def _choices(annotation: Any) -> list[str]:
    """List the words that a field accepts, if it accepts only some."""
    return [str(word) for word in get_args(annotation)] if get_origin(annotation) is Literal else []


def _flatten_annotation(annotation: Any) -> list[Any]:
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return [member for argument in get_args(annotation) for member in _flatten_annotation(argument)]
    return [str] if get_origin(annotation) in {Literal, tuple} else [annotation]
