"""Where pictures go, and what is said of them on the way."""

import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from velatura.cli.screen import say, say_json
from velatura.errors import BadFile, Occupied, VelaturaError

if TYPE_CHECKING:
    from velatura.overlays.effect import Effect
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


class Kept(NamedTuple):
    """A picture that is saved: where, how it was made, and what the overlays did that its prompts call."""

    path: Path
    recipe: "Recipe"
    effects: "tuple[Effect, ...]" = ()


def save_each(pictures: Iterable[tuple[int, "Picture"]], paths: Sequence[Path]) -> list[Kept]:
    """Save each picture as soon as it is painted, and tell of them in the order of their paths."""
    kept: dict[int, Kept] = {}
    try:
        for place, picture in pictures:
            picture.save(paths[place])
            kept[place] = Kept(paths[place], picture.recipe, picture.effects)
    except (KeyboardInterrupt, VelaturaError) as error:
        if kept:
            error.add_note(f"{len(kept)} of {len(paths)} pictures are saved, from {paths[min(kept)]} on")
        raise
    return [kept[place] for place in sorted(kept)]


def tell(pictures: Sequence[Kept], *, as_json: bool, with_effects: bool = False) -> None:
    """Print where the pictures are, and what overlays did to each, once where it is the same for several."""
    if as_json:
        say_json(json.dumps([_row(each) for each in pictures], indent=2, ensure_ascii=False))
        return
    said: tuple[Effect, ...] = ()
    for each in pictures:
        say(each.path)
        if with_effects and each.effects != said:
            said = each.effects
            say(*(f"  {line}" for effect in said for line in str(effect).splitlines()))


def _row(kept: Kept) -> dict[str, object]:
    effects = [each.model_dump(mode="json") for each in kept.effects]
    return {"path": str(kept.path), "recipe": kept.recipe.model_dump(mode="json"), "effects": effects}
