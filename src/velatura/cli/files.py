"""The verbs about overlay files: list, show, convert."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.cli.screen import say, say_json
from velatura.errors import BadFile, Occupied, UnknownName

if TYPE_CHECKING:
    from velatura.formats.verdict import Verdict
    from velatura.overlays.overlay import Card

ANOTHER = "Another kind"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def list_(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of overlays; A1111's own layout is understood.", show_default="this folder"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the overlays in folders: the name a prompt calls each by, and its card in a line.

    velatura list

    velatura list ~/stable-diffusion-webui --json
    """
    cards = dict(_cards(velatura.Library(*(folders or [Path()]))))
    if as_json:
        say_json(json.dumps({name: _dumped(card) for name, card in cards.items()}, indent=2))
        return
    for name, card in cards.items():
        say(f"{name:{max(map(len, cards))}}  {'cannot be read: ' if isinstance(card, BadFile) else ''}{card}")
    if not cards:
        say("no overlays here")


def show(
    file: Annotated[Path, typer.Argument(help="An overlay file of any kind: .safetensors, .pt, ...")],
    as_json: AsJson = False,
) -> None:
    """Show what an overlay file is, where it came from, and which programs open it.

    velatura show inca.pt

    velatura show inca.safetensors --json
    """
    if file.suffix == ".hns":
        from velatura.cli.compositions import show_composition

        show_composition(file, as_json=as_json)
        return
    from velatura.formats.verdict import examine

    verdict = examine(file)
    if as_json:
        say_json(verdict.model_dump_json(indent=2))
        return
    for label, value in _rows(verdict):
        say(f"{label:15}{value}")


def convert(
    source: Annotated[Path, typer.Argument(help="The overlay file to read.")],
    target: Annotated[Path, typer.Argument(help="The file to write: .safetensors, or .pt for A1111.")],
    *,
    dialect: Annotated[str | None, typer.Option(help="The file format, whatever the ending says.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the target if it is there.")] = False,
    kind: Annotated[
        str | None, typer.Option("--as", help="Another kind of overlay to make of it: lora.", rich_help_panel=ANOTHER)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base to make it for.", show_default="tiny", rich_help_panel=ANOTHER),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The rank of each layer.", show_default="32", rich_help_panel=ANOTHER)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to fit by, one a line, at least 4.", show_default="built-in ones", rich_help_panel=ANOTHER
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of each picture painted to fit.", show_default="10", rich_help_panel=ANOTHER),
    ] = None,
) -> None:
    """Write an overlay in another file format; the ending of the target names it.

    velatura convert inca.pt inca.safetensors

    velatura convert inca.safetensors models/hypernetworks/inca.pt

    velatura convert inca.pt inca-lora.safetensors --as lora --rank 32 --base sd15/
    """
    if kind is None and any(each is not None for each in (base, rank, prompts, steps)):
        raise typer.BadParameter("--base, --rank, --prompts and --steps are for --as lora")
    if kind is not None and dialect is not None:
        raise typer.BadParameter("--dialect is for the same overlay in another format, --as for another kind")
    if kind not in {None, "lora"}:
        raise UnknownName.among("kind of overlay to convert to", str(kind), ["lora"])
    overlay = velatura.open_overlay(source)
    if kind == "lora":
        from velatura.cli.merging import write_lora

        fit_on, rank, steps = base or "tiny", rank or 32, steps or 10
        write_lora(overlay, target, base=fit_on, rank=rank, prompts=prompts, steps=steps, overwrite=overwrite)
        return
    if target.exists() and not overwrite:
        raise Occupied(f"{target} is there already; choose another name, or add --overwrite")
    velatura.save(overlay, target, dialect=dialect)
    say(f"{target}: {overlay.card}")


def _cards(library: "velatura.Library") -> Iterator[tuple[str, "Card | BadFile"]]:
    """Open every overlay for its card; one that cannot be read stands in the list with its reason."""
    for name in library.names():
        try:
            yield name, library.overlay(name).card
        except BadFile as error:
            yield name, error


def _dumped(card: "Card | BadFile") -> dict[str, object]:
    return {"error": str(card)} if isinstance(card, BadFile) else card.model_dump(mode="json")


def _rows(verdict: "Verdict") -> Iterator[tuple[str, str]]:
    card = verdict.card
    yield "kind", card.kind
    yield "name", card.name
    yield "structure", card.outline
    made_for = filter(None, (card.family, card.base, card.base_hash and f"({card.base_hash})"))
    yield "made for", " ".join(made_for) or "unknown"
    yield "trained", f"{card.steps:,} steps"
    if card.trigger_words:
        yield "trigger words", ", ".join(card.trigger_words)
    if card.note:
        yield "note", card.note
    yield "in a prompt", verdict.trigger
    yield "parameters", f"{verdict.parameters:,} in {', '.join(verdict.precisions)}"
    yield "file", f"{verdict.dialect}, {verdict.container}, {_size(verdict.file_bytes)}"
    yield "hash", f"{verdict.short_hash} (SHA-256 {verdict.hash})"
    for program, answer in verdict.opens.items():
        yield f"in {program}", str(answer)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
