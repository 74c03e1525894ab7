"""From the words of a command line to recipes, axes and the image to begin from."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import velatura
from velatura.cli.options import plain_type
from velatura.errors import BadFile, BadRecipe, UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.overlays.overlay import Overlay
    from velatura.prompts.prompt_file import PromptLine
    from velatura.sampling.masks import InitImage
    from velatura.sampling.recipe.recipe import Recipe


PROMPT_FIELDS = ("prompt", "hires_prompt")  # in which tags call overlays
ORDER_AXIS, REPLACE_AXIS = "order", "replace"  # axes of prompts with words in another order, or replaced
MAX_TEXT_BYTES = 2**22  # of a file of prompts or styles


def build_recipe(
    picture: Path | None,
    prompt: str | None,
    fields: Mapping[str, object],
    changes: Sequence[str],
    *,
    needs_prompt: bool = True,
) -> "Recipe":
    """The recipe that a command line asks for."""
    start = velatura.Recipe() if picture is None else velatura.Recipe.from_image(picture)
    recipe = start.replace(**fields, **({} if prompt is None else {"prompt": prompt}))
    recipe = recipe.replace(**dict(_parse_setting(change) for change in changes))
    if needs_prompt and picture is None and prompt is None and not recipe.prompt:
        raise BadRecipe('there is nothing to paint: give a prompt in quotes, "a red house", or a picture by --recipe')
    return recipe


def expand_recipe(first: "Recipe", prompts: Path | None, count: int, tags: Sequence[str]) -> list["Recipe"]:
    """A recipe for each picture: the lines of a file of prompts, so many of each, with tags in their prompts.

    Each has the next seed, but with a variation, where the variation's seed goes on instead, as in the webui.
    """
    from velatura.prompts.prompt_file import parse_prompt_lines
    from velatura.sampling.recipe.recipe import Recipe

    lines = parse_prompt_lines(_read_text(prompts), Recipe.model_fields) if prompts else []
    counted_recipes = [(_apply_line(first, line), line.count * count) for line in lines] or [(first, count)]
    if prompts and not lines:
        raise BadRecipe(f"{prompts} has no prompts: write one a line")
    recipes = [seeded for recipe, repeats in counted_recipes for seeded in _increment_seeds(recipe, repeats)]
    return [_tag_prompts(recipe, tags) for recipe in recipes]


def add_styles(recipe: "Recipe", names: Sequence[str], table: Path) -> "Recipe":
    """The recipe with styles added to its prompts."""
    if not names:
        return recipe
    from velatura.prompts.styles import apply_styles, read_styles

    styles = read_styles(_read_text(table))
    for name in names:
        if name not in styles:
            raise UnknownName.with_suggestions("style", name, styles, str(table))
    prompt, negative = apply_styles(recipe.prompt, recipe.negative, [styles[name] for name in names])
    return recipe.replace(prompt=prompt, negative=negative)


def parse_axis(text: str, tags: Sequence[str]) -> tuple[str, Sequence[object]]:
    """Read "s=0,0.5,1", "seed=7-9" or "guidance=3-9 [4]"; prompts get the tags."""
    from velatura.prompts.axis_values import numbers, orders, prompt_values, texts, whole_numbers
    from velatura.sampling.recipe.recipe import Recipe

    field, values = _split_assignment(text, "s=0,0.5,1")
    if field == ORDER_AXIS:
        return field, orders(values)
    if field == REPLACE_AXIS or field not in Recipe.model_fields:
        return field, texts(values) if field == REPLACE_AXIS else prompt_values(values)
    field_type = plain_type(Recipe.model_fields[field].annotation)
    parse = {float: numbers, int: whole_numbers}.get(field_type, texts)
    parsed_values: Sequence[object] = parse(values)
    return field, [add_tags(str(value), tags) for value in parsed_values] if field in PROMPT_FIELDS else parsed_values


def read_init_image(image: Path | None, mask: Path | None, *, is_inverted: bool) -> "InitImage | None":
    """The image to begin from and its mask, turned as a camera's notes say."""
    from velatura.sampling.masks import InitImage, read_mask

    if image is None:
        if mask:
            raise BadRecipe(f"{mask} masks nothing: give the image that it belongs to by --image")
        return None
    picture = _read_image(image)
    return InitImage(picture, read_mask(_read_image(mask), invert=is_inverted) if mask else None)


def _apply_line(first: "Recipe", line: "PromptLine") -> "Recipe":
    try:
        return first.replace(**line.settings)
    except BadRecipe as error:
        raise BadRecipe(f"line {line.number}: {error}") from None


def _read_image(path: Path) -> "Image":
    from PIL import ImageOps, UnidentifiedImageError
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as open_image

    try:
        with open_image(path.expanduser()) as opened_image:
            return ImageOps.exif_transpose(opened_image).copy()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture, or damaged"
        raise BadFile(f"{path} cannot be read ({reason}): give a .png, .jpg or .webp") from None


def _tag_prompts(recipe: "Recipe", tags: Sequence[str]) -> "Recipe":
    """The recipe with tags in its prompts: a second pass that has a prompt of its own has its own tags."""
    return recipe.replace(
        **{
            field: add_tags(text, tags)
            for field in PROMPT_FIELDS
            if (text := getattr(recipe, field)) or field == "prompt"
        }
    )


def _increment_seeds(recipe: "Recipe", count: int) -> Iterator["Recipe"]:
    """So many recipes that differ in their seeds; variations are of one picture, whose seed is drawn here if open."""
    from secrets import randbelow

    from velatura.sampling.job import RANDOM_SEED_COUNT

    seed_field = "variation_seed" if recipe.variation_strength else "seed"
    if seed_field == "variation_seed" and count > 1 and recipe.seed is None:
        recipe = recipe.replace(seed=randbelow(RANDOM_SEED_COUNT))
    first_seed = getattr(recipe, seed_field)
    for offset in range(count):
        yield recipe if first_seed is None else recipe.replace(**{seed_field: first_seed + offset})


def _read_text(path: Path) -> str:
    """The text of a small file."""
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise BadFile(f"{path} is longer than {MAX_TEXT_BYTES >> 20} MiB: split it")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}; give a text file") from None
    except UnicodeDecodeError:
        raise BadFile(f"{path} is no text in UTF-8: save it so") from None


def _split_assignment(text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadRecipe(f"{text!r} names nothing to set; write it as {example}")
    return name.strip(), value


def _parse_setting(text: str) -> tuple[str, str]:
    """Read "seed=8"; raises BadRecipe for a field that would change nothing."""
    from velatura.sampling.recipe.recipe import refuse_recorded_field

    name, value = _split_assignment(text, "seed=8")
    refuse_recorded_field(name)
    return name, value


TAG_ARGUMENT_PATTERN = r"[+-]?(?:\d+\.?\d*|\.\d+)|[^:<>/\\]*[@=][^:<>/\\]*"  # of a tag: 0.6, 0@0, 0.8@0.5, end=0.5


def open_overlay_files(overlays: Sequence[str]) -> tuple[dict[str, "Overlay"], list[str]]:
    """The overlays that a command line names by file, and the tags that call them."""
    opened: dict[str, Overlay] = {}
    tags: list[str] = []
    for argument in overlays:
        file, strength = _file_and_strength(argument)
        _refuse_file_name(file, opened)
        opened[file.stem] = overlay = velatura.open_overlay(file)
        tags.append(f"<{overlay.kind}:{file.stem}:{strength}>")
    return opened, tags


def add_tags(prompt: str, tags: Sequence[str]) -> str:
    """The prompt behind its tags: a comment at its end would swallow them."""
    return " ".join([*tags, prompt])


def _refuse_file_name(file: Path, known_stems: Iterable[str]) -> None:
    """Refuse a file whose name no tag can hold, or can hold for one file only."""
    if set(file.stem) & set("<>:#\n") or file.stem != file.stem.strip():
        raise BadFile(f"{file} has a name that no tag can hold: rename it without < > : # and spaces around it")
    if file.stem.lower() in map(str.lower, known_stems):
        raise BadFile(f"{file} is the second file called {file.stem}, and a tag names only one: rename one of them")


def _file_and_strength(text: str) -> tuple[Path, str]:
    """Split "inca.pt:0.6:end=0.5" into the file and what a tag says of its strength, "1" where nothing follows."""
    match = re.fullmatch(rf"(.+?):((?:{TAG_ARGUMENT_PATTERN})(?::(?:{TAG_ARGUMENT_PATTERN}))*)", text)
    return (Path(match[1]), match[2]) if match else (Path(text), "1")
