"""Where pictures go, and what is said of them on the way."""

import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from velatura.cli.screen import say, say_json
from velatura.errors import BadFile, Occupied, VelaturaError

if TYPE_CHECKING:
    from velatura.sampling.generate import Picture
    from velatura.sampling.recipe import Recipe


@contextmanager
def picture_bar(what: str = "painting") -> Generator[Callable[[int, int], None]]:
    """A bar of the steps done, on stderr, with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(what, *columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def paths_for(out: Path, count: int, *, overwrite: bool, endings: Sequence[str] = ()) -> list[Path]:
    """Where the pictures go: the next free numbers of a folder, or files of the given name."""
    from velatura.sampling.carriers import SAVED_AS

    endings = endings or tuple(SAVED_AS)
    out = out.expanduser()
    is_folder = out.is_dir() or not re.fullmatch(r"\.[a-z]+", out.suffix.lower())
    refuse_unwritable(out if is_folder else out.parent)
    if is_folder:
        taken = [int(path.stem) for path in out.glob("*.png") if path.stem.isdecimal()]
        start = max(taken, default=0) + 1
        return [out / f"{number:05}.png" for number in range(start, start + count)]
    if out.suffix.lower() not in endings:
        raise BadFile(f"{out} is no name for a picture; end it in {', '.join(endings)}, or name a folder that is there")
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(count)]
    for path in paths:
        if path.exists() and not overwrite:
            raise Occupied(f"{path} is there already; choose another name, or add --overwrite")
    return paths


def refuse_unwritable(folder: Path) -> None:
    """Raise BadFile where nothing can be written into a folder, which need not be there yet."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise BadFile(f"{folder} cannot be written to: {error.strerror or error}; choose another place") from None


def save_each(pictures: Iterable[tuple[int, "Picture"]], paths: Sequence[Path]) -> list["Recipe"]:
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


def tell(paths: Sequence[Path], recipes: Sequence["Recipe"], *, as_json: bool) -> None:
    """Print where the pictures are."""
    if not as_json:
        say(*paths)
        return
    rows = [
        {"path": str(path), "recipe": recipe.model_dump(mode="json")}
        for path, recipe in zip(paths, recipes, strict=True)
    ]
    say_json(json.dumps(rows, indent=2, ensure_ascii=False))
