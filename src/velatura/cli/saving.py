"""Choose where pictures are written, write them, and print where they are."""

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from velatura.cli.screen import progress_bar, say, say_json
from velatura.errors import AlreadyExists, BadFile, UnknownName, VelaturaError, choose_number, quantity
from velatura.files import atomic_write

PREVIEW_SCALE = 4  # pixels of a preview for each latent

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.merging.bake.report import BakeReport
    from velatura.merging.checkpoints.report import MergeReport
    from velatura.merging.lora.extract import ExtractReport
    from velatura.overlays.effect import Effect
    from velatura.sampling.generate import Picture
    from velatura.sampling.recipe.recipe import Recipe

    WeightsReport = BakeReport | MergeReport | ExtractReport


@contextmanager
def picture_bar(label: str = "painting") -> Generator[Callable[[int, int | None], None]]:
    """Show a progress bar of steps on stderr, with the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with progress_bar(label, *columns) as update:
        yield update


def output_paths(out: Path, count: int, *, overwrite: bool, endings: Sequence[str] = ()) -> list[Path]:
    """Return where pictures are written: the next free numbers of a folder, or files of the given name."""
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
        raise BadFile(f"{out} is not a picture's name: end it in {', '.join(endings)}, or name a folder that exists")
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(count)]
    for path in paths:
        if path.exists() and not overwrite:
            raise AlreadyExists(f"{path} exists already: choose another name, or add --overwrite")
    return paths


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be written to; it need not exist yet."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise BadFile(f"{folder} cannot be written to: {error.strerror or error}; choose another place") from None


class SavedPicture(NamedTuple):
    """A saved picture: its path, its recipe, and the effects of the overlays that its prompt calls."""

    path: Path
    recipe: "Recipe"
    effects: "tuple[Effect, ...]" = ()


def save_pictures(
    pictures: Iterable[tuple[int, "Picture"]],
    paths: Sequence[Path],
    on_saved: Callable[[SavedPicture], None] | None = None,
) -> list[SavedPicture]:
    """Save each picture as soon as it is finished, and return them in the order of their paths.

    Args:
        pictures: Pairs of a picture's index and the picture.
        paths: The path of each index.
        on_saved: Called with each picture after it is saved.
    """
    saved: dict[int, SavedPicture] = {}
    try:
        for index, picture in pictures:
            picture.save(paths[index])
            saved[index] = SavedPicture(paths[index], picture.recipe, picture.effects)
            if on_saved:
                on_saved(saved[index])
    except (KeyboardInterrupt, VelaturaError) as error:
        if saved:
            error.add_note(
                f"{len(saved)} of {quantity(len(paths), 'picture')} {choose_number(len(saved), 'is', 'are')} saved, "
                f"from {paths[min(saved)]} on"
            )
        raise
    return [saved[index] for index in sorted(saved)]


def print_pictures(pictures: Sequence[SavedPicture], *, as_json: bool, with_effects: bool = False) -> None:
    """Print the pictures' paths, and the overlays' effects where they differ from the picture before."""
    if as_json:
        say_json(json.dumps([_picture_as_json(picture) for picture in pictures], indent=2, ensure_ascii=False))
        return
    say_picture = picture_printer(with_effects=with_effects)
    for picture in pictures:
        say_picture(picture)


def picture_printer(*, with_effects: bool) -> Callable[[SavedPicture], None]:
    """Return a function that prints the path of a picture, and its effects if they differ from the one before."""
    printed_effects: tuple[Effect, ...] = ()

    def say_picture(picture: SavedPicture) -> None:
        nonlocal printed_effects
        say(picture.path)
        if with_effects and picture.effects != printed_effects:
            printed_effects = picture.effects
            say(*(f"  {line}" for effect in printed_effects for line in str(effect).splitlines()))
        sys.stdout.flush()

    return say_picture


@contextmanager
def live_preview(path: Path) -> "Generator[Callable[[list[Image]], None]]":
    """Write what a batch looks like after each step into NAME.preview.png beside a picture; delete it at the end."""
    preview_path = path.with_suffix(".preview.png")

    def on_preview(images: "list[Image]") -> None:
        from PIL import Image

        width, height = images[0].size
        sheet = Image.new("RGB", (width * len(images), height))
        for index, image in enumerate(images):
            sheet.paste(image, (index * width, 0))
        scaled = sheet.resize((sheet.width * PREVIEW_SCALE, sheet.height * PREVIEW_SCALE), Image.Resampling.NEAREST)
        with atomic_write(preview_path) as temporary:
            scaled.save(temporary, format="PNG")

    try:
        yield on_preview
    finally:
        preview_path.unlink(missing_ok=True)


def _picture_as_json(picture: SavedPicture) -> dict[str, object]:
    effects = [effect.model_dump(mode="json") for effect in picture.effects]
    return {"path": str(picture.path), "recipe": picture.recipe.model_dump(mode="json"), "effects": effects}


def prepare_output(path: Path, *, overwrite: bool, takes_folders: bool = False) -> None:
    """Check before the work that the output file, or new folder, can be written after it."""
    if takes_folders and not path.suffix:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise AlreadyExists(f"{path} is not empty: choose a new folder")
    elif path.suffix != ".safetensors":
        raise UnknownName.with_suggestions("ending of a file of weights", path.suffix, [".safetensors"])
    elif path.exists() and not overwrite:
        raise AlreadyExists(f"{path} exists already: choose another name, or add --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=path.parent).close()


def print_report(report: "WeightsReport", path: Path, *, as_json: bool) -> None:
    """Print a report and the path of the file."""
    if as_json:
        say_json(report.model_dump_json(indent=2))
    else:
        say(*str(report).splitlines(), path)
