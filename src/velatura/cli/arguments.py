"""Turn command-line arguments into recipes, grid axes, init images and overlays."""

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import velatura
from velatura.cli.base import explain_missing, is_path
from velatura.cli.options import plain_type
from velatura.errors import BadFile, BadRecipe, UnknownName
from velatura.files import suggest_similar
from velatura.image_files import open_image, shrink_image
from velatura.library.entry import OVERLAY_KINDS

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.overlays.overlay import Overlay
    from velatura.overlays.strength import Strength
    from velatura.prompts.prompt_file import PromptLine
    from velatura.prompts.styles import Style
    from velatura.sampling.masks import InitImage
    from velatura.sampling.recipe.grid_fields import GridFields
    from velatura.sampling.recipe.recipe import Recipe


PROMPT_FIELDS = ("prompt", "hires_prompt")  # in which tags call overlays
TAG_KINDS = (*OVERLAY_KINDS, "lyco")  # lyco: A1111's other word for lora
ORDER_AXIS = "order"  # an axis of prompts with words in another order
TEXT_AXES = {"replace", "base", "checkpoint", "style"}  # axes whose values are never ranges of numbers
STANDARD_INPUT = "-"
MAX_TEXT_BYTES = 2**22  # of a file of prompts or styles


def build_recipe(
    picture: Path | None,
    prompt: str | None,
    fields: Mapping[str, object],
    changes: Sequence[str],
    *,
    needs_prompt: bool = True,
) -> "Recipe":
    """Build the recipe that the arguments ask for.

    Args:
        picture: A picture or a text file whose recipe is the start; - is standard input.
        prompt: Replaces the picture's prompt.
        fields: Recipe fields set by options.
        changes: Arguments of --set, as "seed=8".
        needs_prompt: Refuse an empty prompt that nobody wrote.
    """
    start = velatura.Recipe() if picture is None else _read_recipe(picture)
    recipe = start.replace(**fields, **({} if prompt is None else {"prompt": prompt}))
    recipe = recipe.replace(**dict(_parse_setting(change) for change in changes))
    if needs_prompt and picture is None and prompt is None and not recipe.prompt:
        raise BadRecipe('the prompt is missing: give one in quotes, "a red house", or a picture by --recipe')
    return recipe


def read_grid_axes(picture: Path | None, axes: tuple[str | None, ...], *, matrix: bool) -> "GridFields | None":
    """Return the grid that the picture of a grid describes, None if the command line describes one itself.

    Args:
        picture: The picture of --recipe.
        axes: The arguments of --x, --y and --z.
        matrix: Whether --matrix is given.
    """
    if picture is None or any(axes) or matrix or str(picture) == STANDARD_INPUT:
        return None
    from velatura.sampling.recipe.grid_fields import GRID_WARNING, read_grid_fields
    from velatura.sampling.recipe.infotext import read_infotext
    from velatura.sampling.recipe.metadata import read_recipe_infotext

    grid = read_grid_fields(read_infotext(read_recipe_infotext(picture.expanduser())).fields)
    if grid is not None:
        warnings.filterwarnings("ignore", GRID_WARNING)  # the whole grid is made, not its first cell
    return grid


def _read_recipe(path: Path) -> "Recipe":
    """Read a recipe from a picture, a text file, or standard input."""
    if str(path) != STANDARD_INPUT:
        return velatura.Recipe.from_file(path)
    from velatura.sampling.recipe.metadata import decode_text

    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if not data.strip():
        raise BadRecipe("standard input is empty: give the text of a recipe")
    return velatura.Recipe.from_text(decode_text(data, "standard input"), "standard input")


def expand_recipe(first: "Recipe", prompts: Path | None, count: int, tags: Sequence[str]) -> list["Recipe"]:
    """Return one recipe for each picture: for every line of a prompt file, or for the first recipe, `count` of them.

    Each picture has the next seed. With a variation, the variation seed increases instead, as in A1111.
    """
    from velatura.prompts.prompt_file import parse_prompt_lines
    from velatura.sampling.recipe.expand import increment_seeds
    from velatura.sampling.recipe.recipe import Recipe

    lines = parse_prompt_lines(_read_text(prompts), Recipe.model_fields) if prompts else []
    counted_recipes = [(_apply_line(first, line), line.count * count) for line in lines] or [(first, count)]
    if prompts and not lines:
        raise BadRecipe(f"{prompts} has no prompts: write one on each line")
    recipes = [seeded for recipe, repeats in counted_recipes for seeded in increment_seeds(recipe, repeats)]
    return [_tag_prompts(recipe, tags) for recipe in recipes]


def find_wildcards(
    texts: Iterable[str], wildcards: Path | None, library: Sequence[Path], *, is_replay: bool
) -> Path | None:
    """Return the folder of wildcard files to draw from, None to draw nothing; warn of templates that nothing draws.

    Args:
        texts: All prompts.
        wildcards: The folder that was given; by default wildcards/ in a folder of the library or beside it.
        library: The folders of the library.
        is_replay: The prompts are those of a picture, which were drawn when it was made.
    """
    from velatura.prompts.wildcards import warn_of_letters

    if is_replay or wildcards is not None:
        return wildcards
    candidates = [place / "wildcards" for folder in library for place in (folder, folder.absolute().parent)]
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        for text in dict.fromkeys(texts):
            warn_of_letters(text)
    return folder


def template_texts(recipes: Iterable["Recipe"], axes: Iterable[tuple[str, Sequence[object]]] = ()) -> Iterator[str]:
    """Yield the texts in which wildcards are drawn, those of axes too, without words in braces that name an axis."""
    from velatura.sampling.recipe.expand import TEMPLATE_FIELDS

    axes = list(axes)
    texts = [str(getattr(recipe, field)) for recipe in recipes for field in TEMPLATE_FIELDS]
    texts += [str(value) for name, values in axes if name in TEMPLATE_FIELDS for value in values]
    words = "|".join(re.escape(f"{{{name}}}") for name, _ in axes)
    yield from (re.sub(words, "", text) if words else text for text in texts)


def add_styles(recipe: "Recipe", names: Sequence[str], table: Path) -> "Recipe":
    """Add styles to the recipe's prompts."""
    if not names:
        return recipe
    from velatura.prompts.styles import apply_styles

    styles = read_style_table(table)
    for name in names:
        if name not in styles:
            raise UnknownName.with_suggestions("style", name, styles, str(table))
    prompt, negative = apply_styles(recipe.prompt, recipe.negative, [styles[name] for name in names])
    return recipe.replace(prompt=prompt, negative=negative)


def read_style_table(table: Path) -> dict[str, "Style"]:
    """Read the styles of a styles.csv by name."""
    from velatura.prompts.styles import read_styles

    return read_styles(_read_text(table))


def parse_axis(text: str, tags: Sequence[str]) -> tuple[str, Sequence[object]]:
    """Read "s=0,0.5,1", "seed=7-9" or "guidance=3-9 [4]"; prompts get the tags."""
    from velatura.prompts.axis_values import numbers, orders, prompt_values, texts, whole_numbers
    from velatura.sampling.recipe.recipe import Recipe

    field, values = _split_assignment(text, "s=0,0.5,1")
    if field == ORDER_AXIS:
        return field, orders(values)
    if field in TEXT_AXES:
        return field, texts(values)
    if field not in Recipe.model_fields:
        return field, prompt_values(values)
    field_type = plain_type(Recipe.model_fields[field].annotation)
    parse = {float: numbers, int: whole_numbers}.get(field_type, texts)
    parsed_values: Sequence[object] = parse(values)
    return field, [add_tags(str(value), tags) for value in parsed_values] if field in PROMPT_FIELDS else parsed_values


def read_init_image(image: Path | None, mask: Path | None, *, is_inverted: bool) -> "InitImage | None":
    """Read the init image and its mask, turned as their EXIF orientation says."""
    if image is None:
        if mask:
            raise BadRecipe(f"{mask} is a mask without an image: give the image with --image")
        return None
    from velatura.sampling.masks import InitImage, read_mask

    picture = _read_image(image)
    return InitImage(picture, read_mask(_read_image(mask), invert=is_inverted) if mask else None)


def refuse_unknown_names(
    recipes: "Iterable[Recipe]", library: "velatura.Library", overlay_names: Iterable[str], *, needs_faces: bool
) -> None:
    """Refuse samplers, schedulers and overlays that do not exist, before a base is opened or torch is imported.

    Args:
        recipes: The recipes of the pictures. Overlays of a recipe that records hashes may be found by them later.
        library: Where tags find overlays.
        overlay_names: Overlays that are given as files.
        needs_faces: Refuse missing files for faces too, which making a recorded recipe only warns of.

    Raises:
        UnknownName: No such sampler, scheduler, kind of overlay, overlay or restorer of faces exists.
        BadPrompt: A prompt or tag cannot be read.
    """
    from velatura.prompts.prompt import Prompt

    given_names = {name.lower() for name in overlay_names}
    checked_names: set[tuple[str, str]] = set()
    for recipe in recipes:
        _refuse_unknown_sampler(recipe)
        if needs_faces and recipe.restore_faces:
            from velatura.sampling.resolve.faces import find_face_files

            find_face_files(recipe.face_restorer, library)
        texts = () if recipe.overlay_hashes else (recipe.prompt, recipe.hires_prompt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same warnings come when the picture is made
            tags = [tag for text in texts if "<" in (text or "") for tag in Prompt.parse(text).tags]
            for kind, name in dict.fromkeys((tag.kind, tag.name) for tag in tags):
                if kind not in TAG_KINDS:
                    raise UnknownName.with_suggestions("kind of overlay", kind, OVERLAY_KINDS)
                if name.lower() not in given_names and (kind, name) not in checked_names:
                    library.path(name, "lora" if kind == "lyco" else kind)
                checked_names.add((kind, name))


def _refuse_unknown_sampler(recipe: "Recipe") -> None:
    """Refuse names that mean nothing in any program; the sampler itself explains those of other programs."""
    from velatura.sampling.recipe import sampler_names as names

    for sampler in filter(None, (recipe.sampler, recipe.hires_sampler)):
        if not (names.find_sampler_name(sampler) or names.nearest(sampler, names.NEAREST_SAMPLERS)):
            raise UnknownName.with_suggestions("sampler", sampler, names.SAMPLER_NAMES)
    scheduler = recipe.scheduler or "Karras"
    if not (names.find_scheduler_name(scheduler) or names.nearest(scheduler, names.NEAREST_SCHEDULERS)):
        raise UnknownName.with_suggestions("scheduler", scheduler, names.SCHEDULER_NAMES)


def _apply_line(first: "Recipe", line: "PromptLine") -> "Recipe":
    if "prompt" not in line.settings and not first.prompt:
        raise BadRecipe(
            f'line {line.number} has options, but no prompt: write one before them, or --prompt "" for an empty one'
        )
    try:
        return first.replace(**line.settings)
    except BadRecipe as error:
        raise BadRecipe(f"line {line.number}: {error}") from None


def _read_image(path: Path) -> "Image":
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with open_image(path.expanduser()) as opened_image:
            return ImageOps.exif_transpose(shrink_image(opened_image)).copy()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or "it is not a picture, or it is damaged"
        raise BadFile(f"{path} cannot be read ({reason}): give a .png, .jpg or .webp") from None


def _tag_prompts(recipe: "Recipe", tags: Sequence[str]) -> "Recipe":
    """Add tags to the recipe's prompts; a hires prompt of its own gets them too."""
    return recipe.replace(
        **{
            field: add_tags(text, tags)
            for field in PROMPT_FIELDS
            if (text := getattr(recipe, field)) or field == "prompt"
        }
    )


def _read_text(path: Path) -> str:
    """Read a small text file."""
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise BadFile(f"{path} is longer than {MAX_TEXT_BYTES >> 20} MiB: split it")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}; give a text file") from None
    except UnicodeDecodeError:
        raise BadFile(f"{path} is not UTF-8 text: save it as UTF-8") from None


def _split_assignment(text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadRecipe(f"{text!r} has no name and value: write it as {example}")
    return name.strip(), value


def _parse_setting(text: str) -> tuple[str, str]:
    """Read "seed=8" and refuse a field that only records how a picture was made."""
    from velatura.sampling.recipe.recipe import refuse_recorded_field

    name, value = _split_assignment(text, "seed=8")
    refuse_recorded_field(name)
    return name, value


NUMBER_PATTERN = r"[+-]?(?:\d+\.?\d*|\.\d+)"
TAG_ARGUMENT_PATTERN = r"[+-]?(?:\d+\.?\d*|\.\d+)|[^:<>/\\]*[@=][^:<>/\\]*"  # of a tag: 0.6, 0@0, 0.8@0.5, end=0.5


def open_overlay_files(overlays: Sequence[str]) -> tuple[dict[str, "Overlay"], list[str]]:
    """Open overlays given as FILE:STRENGTH, and return them by name with the tags that call them."""
    opened: dict[str, Overlay] = {}
    tags: list[str] = []
    for argument in overlays:
        file, strength = _file_and_strength(argument)
        if not file.expanduser().exists():
            raise BadFile(
                f"{file} does not exist{suggest_similar(file)}: give the path of an overlay's file, as FILE:STRENGTH"
            )
        _refuse_file_name(file, opened)
        opened[file.stem] = overlay = velatura.open_overlay(file)
        tags.append(f"<{overlay.kind}:{file.stem}:{strength}>")
    return opened, tags


def add_tags(prompt: str, tags: Sequence[str]) -> str:
    """Put tags before the prompt: a comment at the prompt's end would swallow them."""
    return " ".join([*tags, prompt])


def _refuse_file_name(file: Path, known_stems: Iterable[str]) -> None:
    """Refuse a file name that a tag cannot hold, or that another file has already."""
    if set(file.stem) & set("<>:#\n") or file.stem != file.stem.strip():
        raise BadFile(
            f"{file} has a name that a tag cannot hold: rename it without < > : # and without spaces around it"
        )
    if file.stem.lower() in map(str.lower, known_stems):
        raise BadFile(f"{file} is the second file called {file.stem}, and a tag names only one: rename one of them")


def _file_and_strength(text: str) -> tuple[Path, str]:
    """Split "inca.pt:0.6:end=0.5" into the file and its strength in a tag, "1" if nothing follows."""
    match = re.fullmatch(rf"(.+?):((?:{TAG_ARGUMENT_PATTERN})(?::(?:{TAG_ARGUMENT_PATTERN}))*)", text)
    return (Path(match[1]), match[2]) if match else (Path(text), "1")


def refuse_unknown_overlay(text: str, library: "velatura.Library") -> None:
    """Refuse an argument such as "inca:0.5" that names no overlay, before torch is imported.

    Raises:
        UnknownName: It is not a path that exists, and no overlay in the library has this name.
        BadFile: The same of a name that looks like a path.
    """
    name, _ = split_strengths(text)
    if is_path(name):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same warnings come when the overlay is opened
        try:
            library.path(name)
        except UnknownName as error:
            raise explain_missing(name, error) from None


def open_overlay_argument(text: str, library: "velatura.Library") -> tuple["Overlay", "float | Strength"]:
    """Open "inca.pt:0.5", or "inca.pt" at strength 1, or an overlay by its name in the library.

    Two numbers are the strengths in the text encoders and in the UNet, as in a LoRA's tag. An overlay without a name
    gets its file's name.
    """
    name, numbers = split_strengths(text)
    strength = velatura.Strength(text=numbers[0], unet=numbers[1]) if len(numbers) > 1 else single_strength(numbers)
    try:
        overlay = velatura.open_overlay(name) if is_path(name) else library.overlay(name)
    except UnknownName as error:
        raise explain_missing(name, error) from None
    overlay.name_after_file()
    return overlay, strength


def split_strengths(text: str) -> tuple[str, list[float]]:
    """Split "ink:0.5:0.8" into a name and the numbers after it; there may be none."""
    match = None if Path(text).exists() else re.fullmatch(rf"(.+?):({NUMBER_PATTERN})(?::({NUMBER_PATTERN}))?", text)
    return (match[1], [float(number) for number in match.groups()[1:] if number is not None]) if match else (text, [])


def single_strength(numbers: Sequence[float]) -> float:
    """Return the strength behind the name of an overlay, at most one number, or 1 if there is none."""
    return numbers[0] if numbers else 1.0
