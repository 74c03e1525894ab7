"""A1111's scripts that we have: the X/Y/Z plot and the prompt matrix, which become grid jobs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from fastapi import APIRouter
from pydantic import JsonValue

from velatura.errors import quantity
from velatura.prompts.axis_values import numbers, orders, texts, whole_numbers
from velatura.server.errors import ApiError
from velatura.server.jobs.requests import GridAxis, GridRequest, PaintRequest

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

NOTHING = "Nothing"
TXT2IMG_ONLY, IMG2IMG_ONLY = "txt2img", "img2img"
MAX_SEED = 2**32 - 2
AxisValues = Callable[[str], Sequence[object]]


class PlotAxis(NamedTuple):
    """A row of the X/Y/Z plot's list.

    Attributes:
        label: A1111's name.
        name: What a grid calls it, "" for those that we do not have.
        values: Reads its values.
        tab: "txt2img" or "img2img" if it is only there.
    """

    label: str
    name: str = ""
    values: AxisValues = texts
    tab: str = ""


# In the order of A1111 1.8, which requests give by number; txt2img and img2img leave out those of the other one
PLOT_AXES = (
    PlotAxis(NOTHING),
    PlotAxis("Seed", "seed", whole_numbers),
    PlotAxis("Var. seed", "variation_seed", whole_numbers),
    PlotAxis("Var. strength", "variation_strength", numbers),
    PlotAxis("Steps", "steps", whole_numbers),
    PlotAxis("Hires steps", "hires_steps", whole_numbers, TXT2IMG_ONLY),
    PlotAxis("CFG Scale", "guidance", numbers),
    PlotAxis("Image CFG Scale", "image_guidance", numbers, IMG2IMG_ONLY),
    PlotAxis("Prompt S/R", "replace"),
    PlotAxis("Prompt order", "order", orders),
    PlotAxis("Sampler", "sampler", tab=TXT2IMG_ONLY),
    PlotAxis("Hires sampler", "hires_sampler", tab=TXT2IMG_ONLY),
    PlotAxis("Sampler", "sampler", tab=IMG2IMG_ONLY),
    PlotAxis("Checkpoint name", "base"),
    PlotAxis("Negative Guidance minimum sigma", "skip_negative_below", numbers),
    PlotAxis("Sigma Churn", "churn", numbers),
    PlotAxis("Sigma min", "churn_from", numbers),
    PlotAxis("Sigma max", "churn_to", numbers),
    PlotAxis("Sigma noise", "churn_noise", numbers),
    PlotAxis("Schedule type", "scheduler"),
    PlotAxis("Schedule min sigma", "sigma_min", numbers),
    PlotAxis("Schedule max sigma", "sigma_max", numbers),
    PlotAxis("Schedule rho", "rho", numbers),
    PlotAxis("Eta", "eta", numbers),
    PlotAxis("Clip skip", "clip_skip", whole_numbers),
    PlotAxis("Denoising", "denoising", numbers),
    PlotAxis("Initial noise multiplier", "noise_multiplier", numbers),
    PlotAxis("Extra noise", "extra_noise", numbers),
    PlotAxis("Hires upscaler", "hires_upscaler", tab=TXT2IMG_ONLY),
    PlotAxis("Cond. Image Mask Weight", "inpainting_mask_weight", numbers, IMG2IMG_ONLY),
    PlotAxis("VAE"),
    PlotAxis("Styles"),
    PlotAxis("UniPC Order", "unipc_order", whole_numbers),
    PlotAxis("Face restore"),
    PlotAxis("Token merging ratio"),
    PlotAxis("Token merging ratio high-res"),
    PlotAxis("Always discard next-to-last sigma", "discards_penultimate"),
    PlotAxis("SGM noise multiplier", "sgm_noise"),
    PlotAxis("Refiner checkpoint"),
    PlotAxis("Refiner switch at"),
    PlotAxis("RNG source", "noise"),
    PlotAxis("FP8 mode"),
)


class ScriptArgument(NamedTuple):
    """An argument of a script: its label and its default."""

    label: str
    value: JsonValue
    choices: tuple[str, ...] = ()


class GridScript(NamedTuple):
    """A script of A1111 that makes a grid.

    Attributes:
        title: Its name in requests, in small letters.
        arguments: Its arguments in their order.
        change: Changes a grid job by the values of the arguments; names in a list what has no effect.
    """

    title: str
    arguments: Sequence[ScriptArgument]
    change: Callable[[GridRequest, Mapping[str, JsonValue], bool, list[str]], GridRequest]

    def make_job(self, job: PaintRequest, values: Sequence[JsonValue], warnings: list[str]) -> GridRequest:
        """Return the grid job of a request.

        Args:
            job: The paint job that the request would be without the script.
            values: The script's arguments; those at the end may be missing.
            warnings: What has no effect is added.

        Raises:
            ApiError: An argument is of the wrong type, or asks for what we do not have.
        """
        if len(values) > len(self.arguments):
            message = f"{self.title} has {quantity(len(self.arguments), 'argument')}, {len(values)} are given"
            raise ApiError(422, "bad_script_args", message, "script_args")
        if job.count > 1:
            warnings.append("n_iter and batch_size have no effect with a script: each cell is one picture")
        named = {argument.label: argument.value for argument in self.arguments}
        named |= {argument.label: value for argument, value in zip(self.arguments, values, strict=False)}
        shared = {"base": job.base, "vae": job.vae, "lenient": True, "ending": job.ending}
        images = {"image": job.image, "mask": job.mask, "mask_inverted": job.mask_inverted}
        grid = GridRequest.model_validate({"recipe": job.recipes[0], **shared, **images})
        return self.change(grid, named, job.image is not None, warnings)


def plot(grid: GridRequest, values: Mapping[str, JsonValue], is_img2img: bool, warnings: list[str]) -> GridRequest:
    """Return the grid of an X/Y/Z plot."""
    keeps_random = bool(values["Keep -1 for seeds"])
    axes = {letter: _read_axis(values, letter, is_img2img=is_img2img) for letter in "XYZ"}
    if keeps_random:
        warnings.append("Keep -1 for seeds has no effect: a seed is drawn once, so that the cells can be compared")
    ignored = ["Include Sub Grids", "Grid margins (px)", *(f"Vary seeds for {letter}" for letter in "XYZ")]
    warnings += [f"{label} has no effect" for label in ignored if values[label]]
    if not values["Draw legend"]:
        warnings.append("Draw legend has no effect: the grid has labels")
    used = [axis for axis in axes.values() if axis is not None]
    if not used:
        raise ApiError(422, "no_axis", "the plot changes nothing: give at least one axis", "script_args")
    x, y, z = [*used, None, None][:3]
    changes = {"x": x, "y": y, "z": z, "keeps_pictures": bool(values["Include Sub Images"])}
    return grid.model_copy(update=changes)


def matrix(grid: GridRequest, values: Mapping[str, JsonValue], is_img2img: bool, warnings: list[str]) -> GridRequest:
    """Return the grid of a prompt matrix, and all its pictures behind it."""
    del is_img2img
    ignored = {
        "Put variable parts at start of prompt": bool(values["Put variable parts at start of prompt"]),
        "Use different seed for each picture": bool(values["Use different seed for each picture"]),
        "Grid margins (px)": bool(values["Grid margins (px)"]),
        "Select joining char": values["Select joining char"] not in {"comma", ""},
    }
    warnings += [f"{label} has no effect" for label, is_set in ignored.items() if is_set]
    if values["Select prompt"] == "negative":
        raise ApiError(422, "unsupported", "a matrix of the negative prompt is not supported", "script_args")
    return grid.model_copy(update={"matrix": True, "keeps_pictures": True})


def _axis_arguments(letter: str) -> list[ScriptArgument]:
    return [
        ScriptArgument(f"{letter} type", 0),
        ScriptArgument(f"{letter} values", ""),
        ScriptArgument(f"{letter} values (list)", []),
    ]


SCRIPTS = (
    GridScript(
        "prompt matrix",
        (
            ScriptArgument("Put variable parts at start of prompt", False),
            ScriptArgument("Use different seed for each picture", False),
            ScriptArgument("Select prompt", "positive", ("positive", "negative")),
            ScriptArgument("Select joining char", "comma", ("comma", "space")),
            ScriptArgument("Grid margins (px)", 0),
        ),
        matrix,
    ),
    GridScript(
        "x/y/z plot",
        (
            *(argument for letter in "XYZ" for argument in _axis_arguments(letter)),
            ScriptArgument("Draw legend", True),
            ScriptArgument("Include Sub Images", False),
            ScriptArgument("Include Sub Grids", False),
            ScriptArgument("Keep -1 for seeds", False),
            *(ScriptArgument(f"Vary seeds for {letter}", False) for letter in "XYZ"),
            ScriptArgument("Grid margins (px)", 0),
            ScriptArgument("Use text inputs instead of dropdowns", False),
        ),
        plot,
    ),
)


@router.get("/scripts")
def list_scripts() -> dict[str, list[str]]:
    """List the scripts of both tabs."""
    titles = [script.title for script in SCRIPTS]
    return {"txt2img": titles, "img2img": titles}


@router.get("/script-info")
def list_script_info() -> list[dict[str, object]]:
    """List the scripts with their arguments."""
    return [
        {"name": script.title, "is_alwayson": False, "is_img2img": is_img2img, "args": _arguments(script, is_img2img)}
        for is_img2img in (False, True)
        for script in SCRIPTS
    ]


def find_script(name: str) -> GridScript:
    """Return a script by its name in any case.

    Raises:
        ApiError: There is none; 422, as in A1111.
    """
    script = next((script for script in SCRIPTS if script.title == name.lower()), None)
    if script is None:
        raise ApiError(422, "unknown_script", f"Script '{name[:100]}' not found", "script_name")
    return script


def plot_axes(*, is_img2img: bool) -> list[PlotAxis]:
    """Return the axes in the order of their numbers in requests of one tab."""
    other = TXT2IMG_ONLY if is_img2img else IMG2IMG_ONLY
    return [axis for axis in PLOT_AXES if axis.tab != other]


def _arguments(script: GridScript, is_img2img: bool) -> list[dict[str, object]]:
    axes = [axis.label for axis in plot_axes(is_img2img=is_img2img)]
    empty = {"minimum": None, "maximum": None, "step": None}
    return [
        {
            "label": argument.label,
            "value": argument.value,
            **empty,
            "choices": axes if argument.label.endswith(" type") else list(argument.choices) or None,
        }
        for argument in script.arguments
    ]


def _read_axis(values: Mapping[str, JsonValue], letter: str, *, is_img2img: bool) -> GridAxis | None:
    """Return an axis of a plot, None for "Nothing".

    Raises:
        ApiError: The axis does not exist, or we do not have it.
        BadRecipe: Its values cannot be read.
    """
    axis = _find_axis(values[f"{letter} type"], is_img2img=is_img2img)
    if axis.label == NOTHING:
        return None
    if not axis.name:
        raise ApiError(422, "unsupported", f"the axis {axis.label} is not supported", "script_args")
    listed = values[f"{letter} values (list)"]
    text = values[f"{letter} values"]
    uses_list = isinstance(listed, list) and listed and not values["Use text inputs instead of dropdowns"]
    if uses_list and not text:
        found: Sequence[object] = [str(value) for value in cast("list[JsonValue]", listed)]
    elif isinstance(text, str):
        found = axis.values(text)
    else:
        raise ApiError(422, "bad_script_args", f"the values of {axis.label} should be a text", "script_args")
    return GridAxis.model_validate({"name": axis.name, "values": _draw_seeds(axis, found)})


def _find_axis(kind: JsonValue, *, is_img2img: bool) -> PlotAxis:
    """Return an axis by its number, or by its name."""
    axes = plot_axes(is_img2img=is_img2img)
    if isinstance(kind, str):
        named = next((axis for axis in axes if axis.label.lower() == kind.lower()), None)
        if named is not None:
            return named
    elif isinstance(kind, int) and not isinstance(kind, bool) and 0 <= kind < len(axes):
        return axes[kind]
    raise ApiError(422, "bad_script_args", f"no axis is called {str(kind)[:60]}: see script-info", "script_args")


def _draw_seeds(axis: PlotAxis, values: Sequence[object]) -> Sequence[object]:
    """Return the values of an axis with drawn seeds in place of -1."""
    if not axis.name.endswith("seed"):
        return values
    return [random.randrange(MAX_SEED) if value == -1 else value for value in values]
