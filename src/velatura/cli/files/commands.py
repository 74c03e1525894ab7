"""Run `velatura list`, `show` and `convert`."""

import json
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.base.families import PredictionWord
from velatura.card import UNKNOWN_KIND
from velatura.cli.base import LoadOptions, is_path, prediction_option, zero_snr_option
from velatura.cli.screen import progress_bar, say, say_json
from velatura.errors import AlreadyExists, BadFile, UnknownName
from velatura.files import suggest_similar

if TYPE_CHECKING:
    from velatura.library.entry import LibraryEntry
    from velatura.overlays.overlay import Overlay

CONVERSION_PANEL = "Another kind"
MAX_NAME_WIDTH = 40
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def list_(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of A1111's, ComfyUI's or any other layout.", show_default="this folder"),
    ] = None,
    *,
    kind: Annotated[
        str | None,
        typer.Option(help="checkpoint, vae, hypernet, embedding, lora, aesthetic, difference, unknown, run."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Only what is for bases of it: SD1 (or SD1.5), SD2, SDXL, tiny.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only what has this in its name, trigger words or description.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the bases, overlays and runs in folders, one line each: the name to call it by, and what it is.

    velatura list

    velatura list ~/stable-diffusion-webui --kind lora --family SDXL --search ink --json
    """
    from velatura.cli.train.runs import RUN_KIND, run_as_json, run_line, runs_in

    folders = folders or [Path()]
    library = velatura.Library(*folders)
    entries: list[LibraryEntry] = []
    if kind != RUN_KIND:
        with _inspection_bar() as on_file:
            entries = library.entries(kind=kind, family=family, search=search, on_file=on_file)
    runs = runs_in(folders, search) if kind in {None, RUN_KIND} and family is None else []
    if as_json:
        say_json(json.dumps([*(entry.facts() for entry in entries), *map(run_as_json, runs)], indent=2))
        return
    names, run_names = _callable_names(entries), [str(run.path) for run in runs]
    width = min(max(map(len, [*names, *run_names]), default=0), MAX_NAME_WIDTH)
    say(*(f"{name:{width}}  {_describe_entry(entry)}" for name, entry in zip(names, entries, strict=True)))
    say(*(f"{name:{width}}  {run_line(run)}" for name, run in zip(run_names, runs, strict=True)))
    if not entries and not runs:
        say("nothing here matches" if kind or family or search else "no bases and no overlays here")


def show(
    file: Annotated[
        str, typer.Argument(help="A file of any kind, a diffusers folder, a run folder, or a name in --library.")
    ],
    library: Annotated[
        list[Path] | None,
        typer.Option("--library", help="Folders in which a name is found.", show_default="this folder"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a file is and where it came from; a hypernetwork's compatible programs; a picture's recipe; a run.

    velatura show inca.pt

    velatura show runs/inca

    velatura show sd15 --library ~/stable-diffusion-webui --json
    """
    if (Path(file).expanduser() / "log.jsonl").is_file():
        from velatura.cli.train.runs import show_run

        show_run(Path(file), as_json=as_json)
        return
    path = _find_path(file, library or [Path()])
    if path.suffix.lower() == ".hns":
        from velatura.cli.files.show_composition import show_composition

        show_composition(path, as_json=as_json)
        return
    from velatura.cli.files.show import is_plain_picture, show_entry, show_hypernetwork, show_picture

    if is_plain_picture(path):
        show_picture(path, as_json=as_json)
        return
    from velatura.library import file_entry

    entry = file_entry(path)
    if entry.error:
        raise BadFile(entry.error)
    if entry.kind == "hypernet":
        show_hypernetwork(entry, as_json=as_json)
    elif entry.kind == UNKNOWN_KIND and entry.info.container == "picture":
        show_picture(path, as_json=as_json)
    else:
        show_entry(entry, as_json=as_json)


def convert(
    source: Annotated[Path, typer.Argument(help="The overlay file to read, or the folder of an adapter of peft's.")],
    target: Annotated[Path, typer.Argument(help="The file to write: .safetensors, or .pt for A1111.")],
    *,
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Whose format, whatever the ending says: of a LoRA kohya, diffusers or peft.", metavar="NAME"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="The precision of a LoRA: float16, bfloat16, float32.", show_default="as it is"),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            help="Of an aesthetic: the folder of the CLIP that it was made by.", show_default="where it is known"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the target if it is there.")] = False,
    kind: Annotated[
        str | None,
        typer.Option("--as", help="Another kind of overlay to make of it: lora.", rich_help_panel=CONVERSION_PANEL),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base to make it for.", show_default="tiny", rich_help_panel=CONVERSION_PANEL),
    ] = None,
    prediction: Annotated[PredictionWord | None, prediction_option(CONVERSION_PANEL)] = None,
    zero_snr: Annotated[bool | None, zero_snr_option(CONVERSION_PANEL)] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="The rank of each layer.", show_default="32", rich_help_panel=CONVERSION_PANEL),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to fit by, one a line, at least 4.",
            show_default="built-in ones",
            rich_help_panel=CONVERSION_PANEL,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of each picture painted to fit.", show_default="10", rich_help_panel=CONVERSION_PANEL
        ),
    ] = None,
) -> None:
    """Write an overlay in another file format; the ending of the target names it.

    velatura convert inca.pt inca.safetensors

    velatura convert inca.safetensors models/hypernetworks/inca.pt

    velatura convert ink.safetensors pytorch_lora_weights.safetensors --dialect diffusers

    velatura convert inca.pt inca-lora.safetensors --as lora --rank 32 --base sd15/
    """
    if kind is None and any(value is not None for value in (base, prediction, zero_snr, rank, prompts, steps)):
        raise typer.BadParameter("--base, --prediction, --zero-snr, --rank, --prompts and --steps are for --as lora")
    if kind is not None and (dialect or dtype):
        raise typer.BadParameter("--dialect and --dtype are for the same overlay, --as for another kind")
    if kind not in {None, "lora"}:
        raise UnknownName.with_suggestions("kind of overlay to convert to", str(kind), ["lora"])
    if not source.expanduser().exists():
        raise BadFile(f"{source} does not exist{suggest_similar(source)}: give the path of an overlay's file")
    if base not in {None, "tiny"} and not is_path(str(base)):
        similar = suggest_similar(str(base))
        raise BadFile(f"{base} does not exist{similar}: give a checkpoint, a diffusers folder, or hub:owner/name")
    if target.exists() and not overwrite:
        raise AlreadyExists(f"{target} exists already: choose another name, or add --overwrite")
    overlay = velatura.open_overlay(source)
    overlay = overlay if clip is None else _with_clip(overlay, clip)
    if kind == "lora":
        from velatura.cli.bake import write_lora

        write_lora(
            overlay,
            target,
            base=base or "tiny",
            rank=rank or 32,
            prompts=prompts,
            steps=steps or 10,
            load_options=LoadOptions(prediction=prediction, zero_snr=zero_snr),
            overwrite=overwrite,
        )
        return
    velatura.save(overlay, target, dialect=dialect, dtype=dtype)
    say(f"{target}: {overlay.card}")


def _with_clip(overlay: "Overlay", clip: Path) -> "Overlay":
    """Return the aesthetic with the text projection of the CLIP that made it."""
    from velatura.formats.clip import read_text_projection

    if not isinstance(overlay, velatura.Aesthetic):
        raise typer.BadParameter(f"--clip is for aesthetics, and this is a {overlay.kind}")
    return overlay.with_projection(read_text_projection(clip.expanduser()))


@contextmanager
def _inspection_bar() -> Generator[Callable[[int, int], None]]:
    """Show a bar of inspected files on stderr, once a file has to be read: known files need no bar."""
    with ExitStack() as stack:
        update: list[Callable[[int, int | None], None]] = []

        def on_file(done: int, total: int) -> None:
            if not update:
                update.append(stack.enter_context(progress_bar("inspecting files")))
            update[0](done, total)

        yield on_file


def _find_path(text: str, folders: list[Path]) -> Path:
    """Return the path of a file given by its path or by its name in a library."""
    from velatura.cli.base import explain_missing, is_path

    if is_path(text):
        return Path(text).expanduser()
    try:
        return velatura.Library(*folders).entry(text).path
    except UnknownName as error:
        raise explain_missing(text, error) from None


def _callable_names(entries: "Sequence[LibraryEntry]") -> list[str]:
    """Return the name to call each file by: of files that share theirs, the path below the folder, or all of it."""
    name_counts = Counter(entry.name.casefold() for entry in entries)
    path_counts = Counter(entry.file.relative_name.casefold() for entry in entries)
    names: list[str] = []
    for entry in entries:
        relative_name = entry.file.relative_name
        if name_counts[entry.name.casefold()] == 1:
            names.append(entry.name)
        elif "/" in relative_name and path_counts[relative_name.casefold()] == 1:
            names.append(relative_name)
        else:
            names.append(str(entry.path))
    return names


def _describe_entry(entry: "LibraryEntry") -> str:
    if entry.error:
        return f"cannot be read: {entry.error}"
    count = len(entry.info.warnings)
    more = f" (and {count - 1} more)" if count > 1 else ""
    warnings = f" · warning: {entry.info.warnings[0]}{more}" if count else ""
    return str(entry.info.card.replace(family=entry.family, trigger_words=entry.trigger_words)) + warnings
