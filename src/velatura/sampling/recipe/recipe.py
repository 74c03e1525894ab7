"""A recipe: everything that decides how a picture is made, as a request and as the record inside the picture."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from velatura.arguments import check_arguments
from velatura.errors import BadRecipe
from velatura.prompts.emphasis import EmphasisMode
from velatura.sampling.recipe.fields import (
    FaceFields,
    Fraction,
    HiresFields,
    Img2ImgFields,
    NoiseFields,
    NonNegative,
    OverlayHashes,
    OverlayResource,
    Pixels,
    PromptText,
    TemplateText,
)
from velatura.sampling.recipe.grid_fields import warn_of_grid
from velatura.sampling.recipe.infotext import (
    NEGATIVE_TEMPLATE,
    TEMPLATE,
    read_infotext,
    warn_of_infotext,
    write_infotext,
)
from velatura.sampling.recipe.infotext_fields import from_infotext_fields, to_infotext_fields
from velatura.sampling.recipe.metadata import infotext_from_text, read_image_recipe, read_recipe_infotext
from velatura.sampling.recipe.sampler_settings import SamplerSettings

# Fields that record what a picture was made with, and do not change a new one
RECORDED_FIELDS = (
    "base",
    "base_hash",
    "vae",
    "vae_hash",
    "text",
    "text_hash",
    "prediction",
    "zero_snr",
    "weights",
    "image_hash",
    "mask_hash",
    "overlay_hashes",
    "resources",
    "template",
    "negative_template",
    "version",
)
TEMPLATE_BY_PROMPT = {"prompt": "template", "negative": "negative_template"}


class Recipe(FaceFields, HiresFields, Img2ImgFields, NoiseFields, SamplerSettings):
    """A description of how to make one picture.

    A recipe cannot be changed; `replace` returns a changed copy. `generate` returns the recipe filled in: a missing
    seed is drawn, and missing sizes are the base's own. That recipe makes the same picture again.

    Raises:
        BadRecipe: A field is unknown or out of range.
    """

    owner: ClassVar[str] = "recipe"

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptText = Field(default="", description="prompt: what to show")
    negative: PromptText = Field(default="", description="negative prompt: what to avoid")
    steps: int = Field(default=20, ge=1, le=1000, description="sampling steps")
    sampler: str = Field(default="Euler a", description="name of the sampler")
    guidance: float = Field(
        default=7.0, allow_inf_nan=False, description="how much the prompt counts (CFG scale); 1: no guidance"
    )
    skip_negative_below: NonNegative = Field(
        default=0.0, description="noise level below which every other step is made without guidance (NGMS)"
    )
    width: Pixels | None = Field(default=None, description="width in pixels; none: the base's own")
    height: Pixels | None = Field(default=None, description="height in pixels; none: the base's own")
    clip_skip: int = Field(default=1, ge=1, le=12, description="layer of the text encoder, from the end; 1: the last")
    emphasis: EmphasisMode = Field(default="Original", description="how emphasis such as (words:1.2) is applied")
    old_editing: bool = Field(default=False, description="time prompt editing as A1111 did before version 1.6")
    tiling: bool = Field(default=False, description="make a picture that can be tiled without seams")
    keep_layout: PromptText = Field(default="", description="another prompt: keep the layout of its picture")
    keep_layout_until: Fraction = Field(default=0.5, description="fraction of the steps for which the layout is kept")
    combine: Literal["sequence", "sum", "average"] = Field(
        default="sequence",
        description="how overlays combine: one after another, or sum or average of their changes",
    )
    base: str | None = Field(default=None, description="name of the base it was made with")
    base_hash: str | None = Field(default=None, description="the base's short hash")
    vae: str | None = Field(default=None, description="name of the autoencoder, if it was not the base's own")
    vae_hash: str | None = Field(default=None, description="the autoencoder's short hash")
    text: str | None = Field(default=None, description="names of the text encoders, if they were not the base's own")
    text_hash: str | None = Field(default=None, description="the text encoders' short hashes")
    prediction: str | None = Field(
        default=None, description="what the base was told to predict (epsilon or v), if its file did not say it"
    )
    zero_snr: bool | None = Field(
        default=None, description="whether a noise schedule to zero terminal SNR was asked for; none: as the file says"
    )
    weights: Literal["ema"] | None = Field(
        default=None, description="ema: the averaged weights of the base's file; none: those of the last training step"
    )
    image_hash: str | None = Field(default=None, description="hash of the init image")
    mask_hash: str | None = Field(default=None, description="hash of the mask")
    overlay_hashes: OverlayHashes = Field(default=(), description="files of the overlays that it calls")
    resources: tuple[OverlayResource, ...] = Field(
        default=(), description="overlays without a tag in the prompt, which are called if the library has them"
    )
    template: TemplateText | None = Field(
        default=None, description="what the prompt was drawn from, with its wildcards"
    )
    negative_template: TemplateText | None = Field(default=None, description="the same of the negative prompt")
    version: str | None = Field(default=None, description="program that made it")

    @property
    def has_second_pass(self) -> bool:
        """Return True if the picture is made again at a larger size (hires fix)."""
        return bool(self.hires_scale or self.hires_size)

    @classmethod
    @check_arguments()
    def from_image(cls, path: str | os.PathLike[str]) -> Self:
        """Read the recipe inside a picture that was saved by velatura, A1111, ComfyUI or one of many other programs.

        Args:
            path: A PNG, JPEG, WebP or GIF file.

        Raises:
            BadRecipe: The picture contains no recipe, one with a bad field, or one that velatura does not read.
            BadFile: The file cannot be read as a picture.
        """
        path = Path(path).expanduser()
        infotext = read_image_recipe(path)
        with _named_in_errors(str(path)):
            return cls.from_infotext(infotext)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read the recipe in a picture, or in a text file that holds what `from_text` reads.

        Args:
            path: A PNG, JPEG, WebP or GIF file, or a text file.

        Raises:
            BadRecipe: The file contains no recipe, or one with a bad field.
            BadFile: The file is neither a picture nor a text, or is damaged.
        """
        return cls.from_infotext(read_recipe_infotext(Path(path).expanduser()))

    @classmethod
    def from_text(cls, text: str, source: str = "the text") -> Self:
        """Read a recipe from a text: generation data copied from A1111 or Civitai, or JSON of another program.

        Warns of what would change the picture and is not supported. A text without settings is all prompt.

        Args:
            text: The text.
            source: Where the text comes from, for messages.

        Raises:
            BadRecipe: The text is JSON that velatura does not read, or has a bad field.
        """
        infotext = infotext_from_text(text, source)
        with _named_in_errors(source):
            return cls.from_infotext(infotext)

    @classmethod
    def from_infotext(cls, text: str) -> Self:
        """Read a recipe from infotext, the text that A1111 writes into pictures.

        Warns of fields that would change the picture and are not supported, and of a grid, whose recipe is that of its
        first cell.

        Raises:
            BadRecipe: A field is out of range.
        """
        warn_of_infotext(text)
        prompt, negative, fields = read_infotext(text)
        warn_of_grid(fields)
        return cls.model_validate(
            {"prompt": prompt, "negative": negative, **from_infotext_fields(fields, f"{prompt}\n{negative}")}
        )

    def infotext(self, further_fields: Mapping[str, object] | None = None) -> str:
        """Return the recipe as infotext, the text that A1111 writes into pictures.

        Args:
            further_fields: Fields to write behind those of the recipe.
        """
        templates = {TEMPLATE: self.template, NEGATIVE_TEMPLATE: self.negative_template}
        return write_infotext(self.prompt, self.negative, self.fields() | dict(further_fields or {}), templates)

    def fields(self) -> dict[str, object]:
        """Return the fields of the last line of that text, in A1111's order."""
        return to_infotext_fields(dict(self), RECIPE_DEFAULTS)

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed and everything checked again.

        Another prompt was not drawn from the template that is recorded, which is left out then.

        Raises:
            BadRecipe: A field is unknown or out of range.
        """
        for field, template in TEMPLATE_BY_PROMPT.items():
            if changes.get(field, getattr(self, field)) != getattr(self, field):
                changes.setdefault(template, None)
        return self.model_validate(dict(self) | changes)


@contextmanager
def _named_in_errors(source: str) -> Generator[None]:
    """Name the picture or the text in the message of a BadRecipe."""
    try:
        yield
    except BadRecipe as error:
        raise BadRecipe(f"{source}: {error}") from None


RECIPE_DEFAULTS = {name: field.default for name, field in Recipe.model_fields.items()}


def refuse_recorded_field(name: str) -> None:
    """Refuse a field that only records something, where a field that changes the picture is needed.

    Args:
        name: Name of the field.

    Raises:
        BadRecipe: The field is one of RECORDED_FIELDS.
    """
    if name in RECORDED_FIELDS:
        settable_fields = ", ".join(field for field in Recipe.model_fields if field not in RECORDED_FIELDS)
        raise BadRecipe(
            f"the recipe's {name} records what a picture was made with and changes nothing: "
            f"open another base, or use one of {settable_fields}"
        )
