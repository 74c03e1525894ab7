"""The verbs about pictures: generate, grid."""

import csv
import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.cli.base import base_option, open_base
from velatura.cli.overlays import opened_by_file, tagged
from velatura.cli.screen import say, say_json
from velatura.errors import BadFile, BadRecipe, Occupied, VelaturaError

if TYPE_CHECKING:
    from velatura.sampling.generate import Picture
    from velatura.sampling.recipe import Recipe

PAINT, HOW, WITH, KEPT = "What is painted", "How it is painted", "What it is painted with", "What is kept"

Prompt = Annotated[
    str | None, typer.Argument(help="What to paint; <hypernet:name:0.6> lays an overlay on.", show_default=False)
]
Negative = Annotated[
    str | None, typer.Option(help="What to keep away from.", rich_help_panel=PAINT, show_default="nothing")
]
Width = Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=PAINT, show_default="the base's")]
Height = Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=PAINT, show_default="the base's")]
Seed = Annotated[
    int | None, typer.Option(help="What the noise is drawn from.", rich_help_panel=PAINT, show_default="a new one")
]
Count = Annotated[int, typer.Option(min=1, help="Pictures, each with the next seed.", rich_help_panel=PAINT)]
Steps = Annotated[int | None, typer.Option(help="Steps from noise to picture.", rich_help_panel=HOW, show_default="20")]
SamplerName = Annotated[
    str | None,
    typer.Option("--sampler", help="How the steps are taken.", rich_help_panel=HOW, show_default="Euler a"),
]
Cfg = Annotated[
    float | None, typer.Option(help="How much the prompt counts; 1: as is.", rich_help_panel=HOW, show_default="7")
]
From = Annotated[
    Path | None, typer.Option("--recipe", help="A picture, made again.", rich_help_panel=HOW, show_default="none")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of the recipe: seed=8.", rich_help_panel=HOW, show_default="none"),
]
BaseName = Annotated[str, base_option(WITH)]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--library",
        help="Folders in which names find bases and overlays.",
        rich_help_panel=WITH,
        show_default="this folder",
    ),
]
Overlays = Annotated[
    list[str] | None,
    typer.Option("--overlay", help="FILE:STRENGTH, as if tagged.", rich_help_panel=WITH, show_default="none"),
]
Combine = Annotated[
    str | None,
    typer.Option(
        help="How overlays join: each on the last one's result, or their sum or average.",
        rich_help_panel=WITH,
        show_default="sequence",
    ),
]
Out = Annotated[Path, typer.Option(help="A folder, or a file: .png, .jpg, .webp.", rich_help_panel=KEPT)]
GridOut = Annotated[Path, typer.Option("--out", help="A file: .png, .jpg, .webp.", rich_help_panel=KEPT)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.", rich_help_panel=KEPT)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=KEPT)]
Across = Annotated[str, typer.Option("--x", help="NAME=VALUES over the columns: s=0,0.5,1.", rich_help_panel=PAINT)]
Down = Annotated[str | None, typer.Option("--y", help="NAME=VALUES beside the rows: seed=7,8.", rich_help_panel=PAINT)]


def generate(
    prompt: Prompt = None,
    *,
    negative: Negative = None,
    width: Width = None,
    height: Height = None,
    seed: Seed = None,
    count: Count = 1,
    steps: Steps = None,
    sampler: SamplerName = None,
    cfg: Cfg = None,
    recipe: From = None,
    changes: Set = None,
    base: BaseName = "tiny",
    library: Folders = None,
    overlay: Overlays = None,
    combine: Combine = None,
    out: Out = Path("pictures"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make pictures from a prompt, or from the recipe inside a picture.

    velatura generate "a lighthouse at dusk" --seed 7

    velatura generate --recipe lighthouse.png --set seed=8 --out again.png
    """
    from velatura.sampling.generate import generate_each

    given = {"prompt": prompt, "negative": negative, "width": width, "height": height, "seed": seed}
    how = {"steps": steps, "sampler": sampler, "guidance": cfg, "combine": combine}
    overlays, tags = opened_by_file(overlay or ())
    first = _asked(recipe, given | how, changes or (), tags)
    paths = _paths(out, count, overwrite=overwrite)
    wanted = [first if first.seed is None else first.but(seed=first.seed + i) for i in range(count)]
    shelf = velatura.Library(*(library or [Path()]))
    on = open_base(base, shelf)
    with picture_bar() as on_step:
        pictures = generate_each(on, wanted, library=shelf, overlays=overlays, on_step=on_step)
        recipes = _saved(pictures, paths)
    _tell(paths, recipes, as_json=as_json)


def grid(
    prompt: Prompt = None,
    *,
    x: Across,
    y: Down = None,
    negative: Negative = None,
    width: Width = None,
    height: Height = None,
    seed: Seed = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    cfg: Cfg = None,
    recipe: From = None,
    changes: Set = None,
    base: BaseName = "tiny",
    library: Folders = None,
    overlay: Overlays = None,
    combine: Combine = None,
    out: GridOut = Path("grid.png"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Lay pictures side by side, changing one or two things: a field of the recipe, or a word in braces.

    velatura grid "a lighthouse <hypernet:inca:{s}>" --x s=0,0.5,1 --y seed=7,8,9

    velatura grid "a lighthouse" --x "sampler=Euler a,DDIM" --y steps=5,10,20 --out samplers.png
    """
    given = {"prompt": prompt, "negative": negative, "width": width, "height": height, "seed": seed}
    how = {"steps": steps, "sampler": sampler, "guidance": cfg, "combine": combine}
    overlays, tags = opened_by_file(overlay or ())
    across, down = _axis(x, tags), _axis(y, tags) if y else None
    first = _asked(recipe, given | how, changes or (), tags)
    [path] = _paths(out if out.suffix else out / "grid.png", 1, overwrite=overwrite)
    shelf = velatura.Library(*(library or [Path()]))
    on = open_base(base, shelf)
    with picture_bar() as on_step:
        made = velatura.grid(on, first, x=across, y=down, library=shelf, overlays=overlays, on_step=on_step)
    _tell([made.save(path)], [made.recipe], as_json=as_json)


@contextmanager
def picture_bar() -> Generator[Callable[[int, int], None]]:
    """A bar of the steps done, on stderr, with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress("painting", *columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("painting", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _asked(picture: Path | None, given: Mapping[str, object], changes: Sequence[str], tags: Sequence[str]) -> "Recipe":
    """The recipe that a command line asks for, with tags in its prompt."""
    start = velatura.Recipe() if picture is None else velatura.Recipe.from_image(picture)
    recipe = start.but(**{name: value for name, value in given.items() if value is not None})
    recipe = recipe.but(**dict(_setting(change) for change in changes))
    if picture is None and given["prompt"] is None and not recipe.prompt:
        raise BadRecipe('there is nothing to paint: give a prompt in quotes, "a red house", or a picture by --recipe')
    return recipe.but(prompt=tagged(recipe.prompt, tags))


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


def _axis(text: str, tags: Sequence[str]) -> tuple[str, list[str]]:
    """Read "s=0,0.5,1"; a value with a comma in it stands in double quotes, and prompts get the tags."""
    name, values = _named(text, "s=0,0.5,1")
    row = next(csv.reader([" ".join(values.splitlines())], skipinitialspace=True), list[str]())
    return name, [tagged(value.strip(), tags) if name == "prompt" else value.strip() for value in row]


def _paths(out: Path, count: int, *, overwrite: bool) -> list[Path]:
    """Where the pictures go: the next free numbers of a folder, or files of the given name."""
    from velatura.sampling.infotext import SAVED_AS

    out = out.expanduser()
    is_folder = out.is_dir() or not re.fullmatch(r"\.[a-z]+", out.suffix.lower())
    _refuse_unwritable(out if is_folder else out.parent)
    if is_folder:
        taken = [int(path.stem) for path in out.glob("*.png") if path.stem.isdecimal()]
        start = max(taken, default=0) + 1
        return [out / f"{number:05}.png" for number in range(start, start + count)]
    if out.suffix.lower() not in SAVED_AS:
        raise BadFile(
            f"{out} is no name for a picture; end it in {', '.join(SAVED_AS)}, or name a folder that is there"
        )
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(count)]
    for path in paths:
        if path.exists() and not overwrite:
            raise Occupied(f"{path} is there already; choose another name, or add --overwrite")
    return paths


def _refuse_unwritable(folder: Path) -> None:
    """Raise BadFile where nothing can be written into a folder, which need not be there yet."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise BadFile(f"{folder} cannot be written to: {error.strerror or error}; choose another place") from None


def _saved(pictures: Iterable[tuple[int, "Picture"]], paths: Sequence[Path]) -> list["Recipe"]:
    """Save each picture as soon as it is painted, and give back their recipes."""
    recipes: list[Recipe] = []
    try:
        for place, picture in pictures:
            picture.save(paths[place])
            recipes.append(picture.recipe)
    except (KeyboardInterrupt, VelaturaError) as error:
        if recipes:
            error.add_note(f"{len(recipes)} of {len(paths)} pictures are saved, from {paths[0]} on")
        raise
    return recipes


def _tell(paths: Sequence[Path], recipes: Sequence["Recipe"], *, as_json: bool) -> None:
    """Print where the pictures are."""
    if not as_json:
        say(*paths)
        return
    rows = [{"path": str(path), "recipe": recipe.model_dump()} for path, recipe in zip(paths, recipes, strict=True)]
    say_json(json.dumps(rows, indent=2, ensure_ascii=False))
