"""What each kind of job asks for, as a pydantic value, which is also its JSON in the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from velatura.sampling.recipe.recipe import Recipe

PictureEnding = Literal["png", "jpg", "webp"]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Number = Annotated[float, Field(allow_inf_nan=False)]
ImageText = Annotated[
    str, Field(min_length=1, description="an image as base64, as a data URL, or by its reference input:...")
]


class OverlayWithStrength(BaseModel):
    """An overlay of the library, and how strongly it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    strength: Number = 1.0


class JobRequest(BaseModel):
    """Request for a job, with the fields of all kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: int = Field(default=0, ge=-100, le=100, description="jobs of higher priority run first")


class PaintRequest(JobRequest):
    """Make pictures from recipes."""

    kind: Literal["paint"] = "paint"
    recipes: tuple[Recipe, ...] = Field(min_length=1, description="what to paint; `recipe` is one of them")
    count: int = Field(default=1, ge=1, description="pictures of each recipe, each with the next seed")
    base: Name | None = Field(default=None, description="name of a base; none: the recipe's, or the server's")
    vae: Name | None = Field(default=None, description="name of a VAE in the library; none: the base's")
    image: ImageText | None = Field(default=None, description="paint over this image")
    mask: ImageText | None = Field(default=None, description="paint only where this is white")
    mask_inverted: bool = Field(default=False, description="paint where the mask is black")
    lenient: bool = Field(default=False, description="warn of tags that name nothing, and go on")
    ending: PictureEnding = Field(default="png", description="format of the files")
    previews: bool = Field(default=True, description="send small previews with the steps")

    @model_validator(mode="before")
    @classmethod
    def _take_one_recipe(cls, values: Any) -> Any:
        return _plural(values, "recipe", "recipes")


class GridAxis(BaseModel):
    """Axis of a grid: a field of the recipe or a word in braces, and its values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    values: tuple[str | int | float | tuple[str, ...] | None, ...] = Field(min_length=1)


class GridRequest(JobRequest):
    """Make pictures side by side that differ in one to three settings."""

    kind: Literal["grid"] = "grid"
    recipe: Recipe
    x: GridAxis | None = None
    y: GridAxis | None = None
    z: GridAxis | None = None
    matrix: bool = Field(default=False, description="instead of axes: all combinations of what stands behind bars")
    base: Name | None = Field(default=None, description="name of a base; none: the recipe's, or the server's")
    vae: Name | None = Field(default=None, description="name of a VAE in the library; none: the base's")
    image: ImageText | None = Field(default=None, description="paint over this image")
    mask: ImageText | None = Field(default=None, description="paint only where this is white")
    mask_inverted: bool = False
    lenient: bool = False
    ending: PictureEnding = "png"
    keeps_pictures: bool = Field(default=False, description="keep the single pictures too, behind the grid")


def _plural(values: Any, one: str, many: str) -> Any:
    """Return values in which one item by its singular name is a list of one."""
    if not isinstance(values, Mapping) or one not in values or many in values:
        return cast("Any", values)
    fields = dict(cast("Mapping[str, Any]", values))
    item = fields.pop(one)
    return fields | {many: [item]}
