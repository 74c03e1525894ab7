"""A recipe: what a picture is asked to be, and the record of how it was made."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from velatura.errors import BadRecipe
from velatura.prompts.emphasis import EmphasisMode
from velatura.sampling.recipe.fields import (
    Fraction,
    HiresFields,
    Img2ImgFields,
    NoiseFields,
    NonNegative,
    OverlayHash,
    Pixels,
    PromptText,
)
from velatura.sampling.recipe.infotext import read_infotext, write_infotext
from velatura.sampling.recipe.infotext_fields import from_infotext_fields, to_infotext_fields
from velatura.sampling.recipe.metadata import read_image_infotext
from velatura.sampling.recipe.sampler_settings import SamplerSettings

# Fields that say what a picture was made with, and choose nothing
RECORDED_FIELDS = ("base", "base_hash", "vae", "vae_hash", "image_hash", "mask_hash", "overlay_hashes", "version")


class Recipe(HiresFields, Img2ImgFields, NoiseFields, SamplerSettings):
    """How to make one picture; `generate` gives it back filled in, so that it makes the same picture again.

    guidance is how much the prompt counts against the negative prompt (classifier-free guidance), 1 being none.
    What is None is filled in: the seed is drawn, width and height are the base's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptText = Field(default="", description="what to paint")
    negative: PromptText = Field(default="", description="what to keep away from")
    steps: int = Field(default=20, ge=1, le=1000, description="steps from noise to picture")
    sampler: str = Field(default="Euler a", description="how the steps are taken")
    guidance: float = Field(
        default=7.0, allow_inf_nan=False, description="how much the prompt counts (CFG scale); 1: no guidance"
    )
    skip_negative_below: NonNegative = Field(
        default=0.0, description="noise level below which every other step goes without guidance (NGMS)"
    )
    width: Pixels | None = Field(default=None, description="pixels")
    height: Pixels | None = Field(default=None, description="pixels")
    clip_skip: int = Field(default=1, ge=1, le=12, description="text encoder's layer from the end; 1: the last")
    emphasis: EmphasisMode = Field(default="Original", description="how (words:1.2) are stressed")
    old_editing: bool = Field(default=False, description="words change when they did before the webui's version 1.6")
    tiling: bool = Field(default=False, description="paint what can be laid side by side without a seam")
    keep_layout: PromptText = Field(default="", description="another prompt, whose picture's layout is kept")
    keep_layout_until: Fraction = Field(default=0.5, description="for how much of the steps the layout is kept")
    combine: Literal["sequence", "sum", "average"] = Field(
        default="sequence", description="overlays act on each other's result, or side by side: their sum or average"
    )
    base: str | None = Field(default=None, description="name of the base it was made with")
    base_hash: str | None = Field(default=None, description="the base's short hash")
    vae: str | None = Field(default=None, description="name of the autoencoder, where it was not the base's own")
    vae_hash: str | None = Field(default=None, description="the autoencoder's short hash")
    image_hash: str | None = Field(default=None, description="hash of the image it began from")
    mask_hash: str | None = Field(default=None, description="hash of the mask over that image")
    overlay_hashes: tuple[OverlayHash, ...] = Field(default=(), description="the files of the overlays it calls")
    version: str | None = Field(default=None, description="the program that made it")

    @model_validator(mode="wrap")
    @classmethod
    def _raise_bad_recipe(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise BadRecipe("; ".join(map(_describe_error, error.errors()))) from None

    @classmethod
    def from_image(cls, path: str | os.PathLike[str]) -> Self:
        """The recipe inside a picture, ours or the webui's; raises BadRecipe where there is none."""
        text = read_image_infotext(Path(path).expanduser())
        if not text:
            raise BadRecipe(f"{path} carries no recipe; name a picture as it was saved, or give a prompt")
        return cls.from_infotext(text)

    @classmethod
    def from_infotext(cls, text: str) -> Self:
        """Read the text that travels in pictures; warns of fields that mean something and are not read yet."""
        prompt, negative, fields = read_infotext(text)
        return cls.model_validate(
            {"prompt": prompt, "negative": negative, **from_infotext_fields(fields, prompt + negative)}
        )

    def infotext(self) -> str:
        """The recipe as the text that the webui writes into pictures."""
        return write_infotext(self.prompt, self.negative, self.fields())

    def fields(self) -> dict[str, object]:
        """What stands in the last line of that text, in the webui's order."""
        return to_infotext_fields(dict(self), RECIPE_DEFAULTS)

    def replace(self, **changes: object) -> Self:
        """This recipe with some fields changed, and checked again."""
        return self.model_validate(dict(self) | changes)


RECIPE_DEFAULTS = {name: field.default for name, field in Recipe.model_fields.items()}


def refuse_recorded_field(name: str) -> None:
    """Raise BadRecipe for a field that only keeps record, where one is asked for that changes the picture."""
    if name in RECORDED_FIELDS:
        settable_fields = ", ".join(field for field in Recipe.model_fields if field not in RECORDED_FIELDS)
        raise BadRecipe(
            f"the recipe's {name} records what a picture was made with and changes nothing: "
            f"open another base, or name one of {settable_fields}"
        )


def _describe_error(error: ErrorDetails) -> str:
    """One entry of pydantic's list of errors, in our words."""
    name = str(error["loc"][0]) if error["loc"] else ""
    if name not in Recipe.model_fields:
        suggestions = get_close_matches(name, Recipe.model_fields, n=3)
        hint = f"did you mean {' or '.join(suggestions)}? It" if suggestions else "it"
        return f"a recipe has no {name or repr(error['input'])}; {hint} has {', '.join(Recipe.model_fields)}"
    description = Recipe.model_fields[name].description
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"the recipe's {name} is {error['input']!r}: it {reason} ({description})"
