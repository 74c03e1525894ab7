"""From the words of a command line to recipes, axes and the image to begin from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import velatura
from velatura.cli.overlays import tagged
from velatura.cli.recipe_options import plain_type
from velatura.errors import BadFile, BadRecipe, UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.prompts.lines import Line
    from velatura.sampling.masks import Source
    from velatura.sampling.recipe import Recipe

PROMPTS = ("prompt", "hires_prompt")  # in which tags call overlays
ORDER, REPLACE = "order", "replace"  # axes of prompts with words in another order, or replaced
MOST_BYTES = 2**22  # of a file of prompts or styles


def asked(
    picture: Path | None,
    prompt: str | None,
    given: Mapping[str, object],
    changes: Sequence[str],
    *,
    needs_prompt: bool = True,
) -> "Recipe":
    """The recipe that a command line asks for."""
    start = velatura.Recipe() if picture is None else velatura.Recipe.from_image(picture)
    recipe = start.but(**given, **({} if prompt is None else {"prompt": prompt}))
    recipe = recipe.but(**dict(_setting(change) for change in changes))
    if needs_prompt and picture is None and prompt is None and not recipe.prompt:
        raise BadRecipe('there is nothing to paint: give a prompt in quotes, "a red house", or a picture by --recipe')
    return recipe


def all_asked(first: "Recipe", prompts: Path | None, count: int, tags: Sequence[str]) -> list["Recipe"]:
    """A recipe for each picture: the lines of a file of prompts, so many of each, with tags in their prompts.

    Each has the next seed, but with a variation, where the variation's seed goes on instead, as in the webui.
    """
    from velatura.prompts.lines import read_lines
    from velatura.sampling.recipe import Recipe

    lines = read_lines(_read(prompts), Recipe.model_fields) if prompts else []
    asked = [(_of_line(first, line), line.count * count) for line in lines] or [(first, count)]
    if prompts and not lines:
        raise BadRecipe(f"{prompts} has no prompts: write one a line")
    each = [following for recipe, many in asked for following in _following(recipe, many)]
    return [_tagged(recipe, tags) for recipe in each]


def styled(recipe: "Recipe", names: Sequence[str], table: Path) -> "Recipe":
    """The recipe with styles added to its prompts."""
    if not names:
        return recipe
    from velatura.prompts.styles import apply_styles, read_styles

    styles = read_styles(_read(table))
    for name in names:
        if name not in styles:
            raise UnknownName.among("style", name, styles, str(table))
    prompt, negative = apply_styles(recipe.prompt, recipe.negative, [styles[name] for name in names])
    return recipe.but(prompt=prompt, negative=negative)


def axis_of(text: str, tags: Sequence[str]) -> tuple[str, Sequence[object]]:
    """Read "s=0,0.5,1", "seed=7-9" or "guidance=3-9 [4]"; prompts get the tags."""
    from velatura.prompts.values import numbers, orders, texts, whole_numbers, words
    from velatura.sampling.recipe import Recipe

    name, values = _named(text, "s=0,0.5,1")
    if name == ORDER:
        return name, orders(values)
    if name == REPLACE or name not in Recipe.model_fields:
        return name, texts(values) if name == REPLACE else words(values)
    kind = plain_type(Recipe.model_fields[name].annotation)
    read = {float: numbers, int: whole_numbers}.get(kind, texts)
    found: Sequence[object] = read(values)
    return name, [tagged(str(value), tags) for value in found] if name in PROMPTS else found


def source_of(image: Path | None, mask: Path | None, *, inverted: bool) -> "Source | None":
    """The image to begin from and its mask, turned as a camera's notes say."""
    from velatura.sampling.masks import Source, read_mask

    if image is None:
        if mask:
            raise BadRecipe(f"{mask} masks nothing: give the image that it belongs to by --image")
        return None
    picture = _opened(image)
    return Source(picture, read_mask(_opened(mask), inverted=inverted) if mask else None)


def _of_line(first: "Recipe", line: "Line") -> "Recipe":
    try:
        return first.but(**line.settings)
    except BadRecipe as error:
        raise BadRecipe(f"line {line.number}: {error}") from None


def _opened(path: Path) -> "Image":
    from PIL import ImageOps, UnidentifiedImageError
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as open_image

    try:
        with open_image(path.expanduser()) as opened:
            return ImageOps.exif_transpose(opened).copy()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, DecompressionBombError) as error:
        said = getattr(error, "strerror", None) or "it is no picture, or damaged"
        raise BadFile(f"{path} cannot be read ({said}): give a .png, .jpg or .webp") from None


def _tagged(recipe: "Recipe", tags: Sequence[str]) -> "Recipe":
    """The recipe with tags in its prompts: a second pass that has a prompt of its own has its own tags."""
    return recipe.but(
        **{name: tagged(said, tags) for name in PROMPTS if (said := getattr(recipe, name)) or name == "prompt"}
    )


def _following(recipe: "Recipe", count: int) -> Iterator["Recipe"]:
    """So many recipes that differ in their seeds; variations are of one picture, whose seed is drawn here if open."""
    from secrets import randbelow

    from velatura.sampling.order import SEEDS

    varied = "variation_seed" if recipe.variation_strength else "seed"
    if varied == "variation_seed" and count > 1 and recipe.seed is None:
        recipe = recipe.but(seed=randbelow(SEEDS))
    first = getattr(recipe, varied)
    for place in range(count):
        yield recipe if first is None else recipe.but(**{varied: first + place})


def _read(path: Path) -> str:
    """The text of a small file."""
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise BadFile(f"{path} is longer than {MOST_BYTES >> 20} MiB: split it")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}; give a text file") from None
    except UnicodeDecodeError:
        raise BadFile(f"{path} is no text in UTF-8: save it so") from None


def _named(text: str, such_as: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadRecipe(f"{text!r} names nothing to set; write it as {such_as}")
    return name.strip(), value


def _setting(text: str) -> tuple[str, str]:
    """Read "seed=8"; raises BadRecipe for a field that would change nothing."""
    from velatura.sampling.recipe import refuse_recorded

    name, value = _named(text, "seed=8")
    refuse_recorded(name)
    return name, value
