"""Print what is known about a file for `velatura show`, as labelled lines or as JSON."""

import json
from collections.abc import Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import velatura
from velatura.card import Card
from velatura.cli.screen import say, say_json
from velatura.errors import quantity, warn

if TYPE_CHECKING:
    from velatura.library.entry import LibraryEntry

LABEL_WIDTH = 15  # letters
TAGGED_KINDS = {"lora", "aesthetic", "difference"}  # kinds that a prompt calls by a tag; hypernetworks are read whole
CONTAINER_NAMES = {
    "zip": "a torch file",
    "legacy": "a torch file of before 1.6",
    "folder": "a folder",
    "picture": "a picture",
}


def show_hypernetwork(entry: "LibraryEntry", *, as_json: bool) -> None:
    """Print what a hypernetwork is, with the warnings of opening it, and which programs open it."""
    _give_warnings(entry)
    report = entry.info.report
    if as_json:
        facts = entry.facts()
        notes = {key: facts[key] for key in ("path", "strength", "trigger_words", "preview", "hashes")}
        say_json(json.dumps({**report, **notes}, indent=2))
        return
    _say_rows([*_hypernetwork_rows(report), *_note_rows(entry), *_file_rows(entry), *_program_rows(report)])


def show_entry(entry: "LibraryEntry", *, as_json: bool) -> None:
    """Print what is known about any other file, with the warnings of opening it."""
    _give_warnings(entry)
    beside = dict(_beside_rows(entry))
    if as_json:
        say_json(json.dumps(entry.facts() | ({"beside": beside} if beside else {}), indent=2))
        return
    rows = [*_kind_rows(entry), *_note_rows(entry), *_header_rows(entry), *_file_rows(entry)]
    _say_rows([*rows, *((f"beside: {name}", value) for name, value in beside.items())])


def _give_warnings(entry: "LibraryEntry") -> None:
    for message in entry.info.warnings:
        warn(message)


def is_plain_picture(path: Path) -> bool:
    """Return True for a picture that holds no weights: a JPEG or a GIF; PNG, WebP and AVIF may hold an embedding."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4).startswith((b"\xff\xd8\xff", b"GIF8"))


def show_picture(path: Path, *, as_json: bool) -> None:
    """Print the recipe of a picture; raises BadRecipe if it has none."""
    recipe = velatura.Recipe.from_image(path)
    if as_json:
        say_json(recipe.model_dump_json(indent=2))
        return
    say(*recipe.infotext().splitlines())


def _say_rows(rows: list[tuple[str, str]]) -> None:
    for label, value in rows:
        if value:
            say(f"{label:{LABEL_WIDTH}}{value}")


def _hypernetwork_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    card = Card.model_validate(report["card"])
    yield "kind", card.kind
    yield "name", card.name
    yield "structure", card.outline
    yield (
        "made for",
        " ".join(filter(None, (card.family, card.base, card.base_hash and f"({card.base_hash})"))) or "unknown",
    )
    yield "trained", quantity(card.steps, "step")
    yield "note", card.note
    yield "in a prompt", report["trigger"]


def _program_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for program, support in report["opens"].items():
        answer = "yes" if support["opens"] else "no"
        yield f"in {program}", f"{answer}, {support['why']}" if support["why"] else answer


def _kind_rows(entry: "LibraryEntry") -> Iterator[tuple[str, str]]:
    card = entry.info.card
    yield "kind", card.kind
    yield "name", entry.name
    yield "also called", ", ".join(dict.fromkeys(alias for alias in entry.aliases if alias != entry.name))
    yield "structure", card.outline
    yield "family", entry.family or "unknown"
    yield "trained", quantity(card.steps, "step") if card.steps else ""
    yield "note", card.note
    if entry.kind in TAGGED_KINDS:
        yield "in a prompt", f"<{entry.kind}:{entry.name}:{1 if entry.strength is None else entry.strength:g}>"
    if entry.kind == "embedding":
        yield "in a prompt", card.name if entry.info.container == "picture" and card.name else entry.name


def _note_rows(entry: "LibraryEntry") -> Iterator[tuple[str, str]]:
    """Yield what its owner or its publisher wrote beside it."""
    notes = entry.notes
    yield "trigger words", ", ".join(entry.trigger_words)
    yield "strength", "" if entry.strength is None else f"{entry.strength:g}, as its notes say"
    yield "negative", notes.negative
    yield "with the VAE", notes.vae
    yield "described as", notes.description
    yield "preview", str(entry.preview or "")
    yield from (("unread", line) for line in entry.note_problems)


def _header_rows(entry: "LibraryEntry") -> Iterator[tuple[str, str]]:
    """Yield what programs wrote into its header, without what is printed already."""
    yield from (row for row in entry.info.details.items() if row[1] not in {entry.name, entry.info.card.note})


def _file_rows(entry: "LibraryEntry") -> Iterator[tuple[str, str]]:
    info = entry.info
    if info.tensors:
        tensors = "1 tensor" if info.tensors == 1 else f"{info.tensors:,} tensors"
        yield "parameters", f"{info.parameters:,} in {tensors}, {', '.join(info.precisions)}"
    container = CONTAINER_NAMES.get(info.container, info.container)
    size = "" if entry.file.is_folder else _format_bytes(entry.file.state.size)
    yield "file", ", ".join(filter(None, (info.dialect, container, size)))
    if entry.hashes is not None:
        yield "hash", f"{entry.hashes.sha256[:10]} (SHA-256 {entry.hashes.sha256})"
        yield "on Civitai", ", ".join(f"{name} {value}" for name, value in entry.hashes.by_civitai_name().items())


def _beside_rows(entry: "LibraryEntry") -> Iterator[tuple[str, str]]:
    """Yield the kinds of files beside a checkpoint that opening it uses, and what they say."""
    path = entry.path
    if entry.kind != "checkpoint" or entry.file.is_folder:
        return
    if any(path.parent.glob(f"{escape(path.stem)}.vae.*")):
        from velatura.formats.checkpoints.vae_file import find_vae_beside

        vae = find_vae_beside(path)
        if vae is not None:
            yield "VAE", f"{vae.name}, which replaces its own autoencoder"
    yaml_path = path.with_suffix(".yaml")
    if yaml_path.is_file():
        from velatura.base.families import PREDICTION_WORDS
        from velatura.formats.checkpoints.prediction import read_yaml_prediction

        stated = read_yaml_prediction(path)
        if stated is not None:
            yield (
                "yaml",
                f"{yaml_path.name} says that it predicts {PREDICTION_WORDS[stated]}, if the file does not say it",
            )


def _format_bytes(byte_count: int) -> str:
    return f"{byte_count / 2**20:,.1f} MiB" if byte_count >= 2**20 else f"{byte_count / 2**10:.1f} KiB"
