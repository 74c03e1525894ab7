"""Where pictures go, and what is said of them on the way."""

import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from velatura.cli.screen import say, say_json
from velatura.errors import AlreadyExists, BadFile, VelaturaError

if TYPE_CHECKING:
    from velatura.overlays.effect import Effect
    from velatura.sampling.generate import Picture
    from velatura.sampling.recipe.recipe import Recipe


@contextmanager
def picture_bar(label: str = "painting") -> Generator[Callable[[int, int], None]]:
    """A bar of the steps done, on stderr, with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(label, *columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def output_paths(out: Path, count: int, *, overwrite: bool, endings: Sequence[str] = ()) -> list[Path]:
    """Where the pictures go: the next free numbers of a folder, or files of the given name."""
    from velatura.sampling.recipe.metadata import PICTURE_FORMATS

    endings = endings or tuple(PICTURE_FORMATS)
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
            raise AlreadyExists(f"{path} is there already; choose another name, or add --overwrite")
    return paths


def refuse_unwritable(folder: Path) -> None:
    """Raise BadFile where nothing can be written into a folder, which need not be there yet."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise BadFile(f"{folder} cannot be written to: {error.strerror or error}; choose another place") from None


class SavedPicture(NamedTuple):
    """A picture that is saved: where, how it was made, and what the overlays did that its prompts call."""

    path: Path
    recipe: "Recipe"
    effects: "tuple[Effect, ...]" = ()


def save_pictures(pictures: Iterable[tuple[int, "Picture"]], paths: Sequence[Path]) -> list[SavedPicture]:
    """Save each picture as soon as it is painted, and tell of them in the order of their paths."""
    saved: dict[int, SavedPicture] = {}
    try:
        for index, picture in pictures:
            picture.save(paths[index])
            saved[index] = SavedPicture(paths[index], picture.recipe, picture.effects)
    except (KeyboardInterrupt, VelaturaError) as error:
        if saved:
            error.add_note(f"{len(saved)} of {len(paths)} pictures are saved, from {paths[min(saved)]} on")
        raise
    return [saved[index] for index in sorted(saved)]


def print_pictures(pictures: Sequence[SavedPicture], *, as_json: bool, with_effects: bool = False) -> None:
    """Print where the pictures are, and what overlays did to each, once where it is the same for several."""
    if as_json:
        say_json(json.dumps([_picture_as_json(picture) for picture in pictures], indent=2, ensure_ascii=False))
        return
    printed_effects: tuple[Effect, ...] = ()
    for picture in pictures:
        say(picture.path)
        if with_effects and picture.effects != printed_effects:
            printed_effects = picture.effects
            say(*(f"  {line}" for effect in printed_effects for line in str(effect).splitlines()))


def _picture_as_json(picture: SavedPicture) -> dict[str, object]:
    effects = [effect.model_dump(mode="json") for effect in picture.effects]
    return {"path": str(picture.path), "recipe": picture.recipe.model_dump(mode="json"), "effects": effects}
