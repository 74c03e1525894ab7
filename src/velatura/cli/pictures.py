"""The verbs about pictures: generate, grid."""

import csv
import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.errors import BadFile, BadRecipe, Occupied

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.overlays.overlay import Overlay
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
BaseName = Annotated[str, typer.Option("--base", help="tiny, or a folder in diffusers' layout.", rich_help_panel=WITH)]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--library", help="Where tags find overlays.", rich_help_panel=WITH, show_default="this folder"),
]
Overlays = Annotated[
    list[str] | None,
    typer.Option("--overlay", help="FILE:STRENGTH, as if tagged.", rich_help_panel=WITH, show_default="none"),
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
    out: Out = Path("pictures"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make pictures from a prompt, or from the recipe inside a picture.

    velatura generate "a lighthouse at dusk" --seed 7

    velatura generate --recipe lighthouse.png --set seed=8 --out again.png
    """
    given = {"prompt": prompt, "negative": negative, "width": width, "height": height, "seed": seed}
    how = {"steps": steps, "sampler": sampler, "guidance": cfg}
    first, overlays = _asked(recipe, given | how, changes or (), overlay or ())
    paths = _paths(out, count, overwrite=overwrite)
    wanted = [first if first.seed is None else first.but(seed=first.seed + i) for i in range(count)]
    on, shelf = _base(base), velatura.Library(*(library or [Path()]))
    with picture_bar() as on_step:
        pictures = velatura.generate_many(on, wanted, library=shelf, overlays=overlays, on_step=on_step)
    saved = [picture.save(path) for picture, path in zip(pictures, paths, strict=True)]
    _tell(saved, [picture.recipe for picture in pictures], as_json=as_json)


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
    out: GridOut = Path("grid.png"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Lay pictures side by side, changing one or two things: a field of the recipe, or a word in braces.

    velatura grid "a lighthouse <hypernet:inca:{s}>" --x s=0,0.5,1 --y seed=7,8,9

    velatura grid "a lighthouse" --x "sampler=Euler a,DDIM" --y steps=5,10,20 --out samplers.png
    """
    given = {"prompt": prompt, "negative": negative, "width": width, "height": height, "seed": seed}
    how = {"steps": steps, "sampler": sampler, "guidance": cfg}
    across, down = _axis(x), _axis(y) if y else None
    first, overlays = _asked(recipe, given | how, changes or (), overlay or ())
    [path] = _paths(out if out.suffix else out / "grid.png", 1, overwrite=overwrite)
    on, shelf = _base(base), velatura.Library(*(library or [Path()]))
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


def _asked(
    picture: Path | None, given: Mapping[str, object], changes: Sequence[str], overlays: Sequence[str]
) -> tuple["Recipe", dict[str, "Overlay"]]:
    """The recipe that a command line asks for, and the overlays it names by file, tagged in the prompt."""
    start = velatura.Recipe() if picture is None else velatura.Recipe.from_image(picture)
    recipe = start.but(**{name: value for name, value in given.items() if value is not None})
    recipe = recipe.but(**dict(_setting(change) for change in changes))
    if picture is None and given["prompt"] is None and not recipe.prompt:
        raise BadRecipe('there is nothing to paint: give a prompt in quotes, "a red house", or a picture by --recipe')
    opened: dict[str, Overlay] = {}
    tags: list[str] = []
    for each in overlays:
        file, strength = _file_and_strength(each)
        _refuse_stem(file, opened)
        opened[file.stem] = overlay = velatura.open_overlay(file)
        tags.append(f"<{overlay.kind}:{file.stem}:{strength}>")
    # first, since a comment at the prompt's end would swallow them
    return recipe.but(prompt=" ".join([*tags, recipe.prompt])), opened


def _refuse_stem(file: Path, opened: Iterable[str]) -> None:
    """Refuse a file whose name no tag can hold, or can hold for one file only."""
    if set(file.stem) & set("<>:#\n") or file.stem != file.stem.strip():
        raise BadFile(f"{file} has a name that no tag can hold: rename it without < > : # and spaces around it")
    if file.stem.lower() in map(str.lower, opened):
        raise BadFile(f"{file} is the second file called {file.stem}, and a tag names only one: rename one of them")


def _file_and_strength(text: str) -> tuple[Path, str]:
    """Split "inca.pt:0.6"; what follows the last colon is a strength if it is a number."""
    found = re.fullmatch(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))", text)
    return (Path(found[1]), found[2]) if found else (Path(text), "1")


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


def _axis(text: str) -> tuple[str, list[str]]:
    """Read "s=0,0.5,1"; a value with a comma in it stands in double quotes."""
    name, values = _named(text, "s=0,0.5,1")
    row = next(csv.reader([" ".join(values.splitlines())], skipinitialspace=True), list[str]())
    return name, [value.strip() for value in row]


def _paths(out: Path, count: int, *, overwrite: bool) -> list[Path]:
    """Where the pictures go: the next free numbers of a folder, or files of the given name."""
    from velatura.sampling.infotext import SAVED_AS

    out = out.expanduser()
    if out.is_dir() or not re.fullmatch(r"\.[a-z]+", out.suffix.lower()):
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


def _base(name: str) -> "Base":
    return velatura.tiny() if name == "tiny" else velatura.open_base(name)


def _tell(paths: Sequence[Path], recipes: Sequence["Recipe"], *, as_json: bool) -> None:
    """Print where the pictures are."""
    if not as_json:
        print(*paths, sep="\n")
        return
    rows = [{"path": str(path), "recipe": recipe.model_dump()} for path, recipe in zip(paths, recipes, strict=True)]
    print(json.dumps(rows, indent=2, ensure_ascii=False))
