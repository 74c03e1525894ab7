"""What `velatura show` prints of a file: all that is known of it, a label and a value a line, or as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import velatura
from velatura.cli.screen import say, say_json

if TYPE_CHECKING:
    from velatura.formats.verdict import Verdict
    from velatura.library.entry import Entry

LABEL = 15  # letters
TAGGED = {"lora", "aesthetic", "difference"}  # kinds that a prompt calls by a tag; hypernetworks are read whole
CONTAINERS = {
    "zip": "a torch file",
    "legacy": "a torch file of before 1.6",
    "folder": "a folder",
    "picture": "a picture",
}


def show_hypernetwork(entry: "Entry", *, as_json: bool) -> None:
    """Print what a hypernetwork is, having read all of it, and which programs open it."""
    from velatura.formats.verdict import examine

    verdict = examine(entry.path)
    if as_json:
        facts = entry.facts()
        notes = {each: facts[each] for each in ("path", "strength", "trigger_words", "preview", "hashes")}
        say_json(json.dumps({**verdict.model_dump(mode="json"), **notes}, indent=2))
        return
    _say([*_of_hypernetwork(verdict), *_of_notes(entry), *_of_file(entry), *_of_programs(verdict)])


def show_entry(entry: "Entry", *, as_json: bool) -> None:
    """Print what is known of a file of any other kind, of which no weight is read."""
    if as_json:
        say_json(json.dumps(entry.facts(), indent=2))
        return
    _say([*_of_kind(entry), *_of_notes(entry), *_of_header(entry), *_of_file(entry)])


def show_picture(path: Path, *, as_json: bool) -> None:
    """Print what a picture was made by; raises BadRecipe where it does not say."""
    recipe = velatura.Recipe.from_image(path)
    if as_json:
        say_json(recipe.model_dump_json(indent=2))
        return
    say(*recipe.infotext().splitlines())


def _say(rows: list[tuple[str, str]]) -> None:
    for label, value in rows:
        if value:
            say(f"{label:{LABEL}}{value}")


def _of_hypernetwork(verdict: "Verdict") -> Iterator[tuple[str, str]]:
    card = verdict.card
    yield "kind", card.kind
    yield "name", card.name
    yield "structure", card.outline
    yield (
        "made for",
        " ".join(filter(None, (card.family, card.base, card.base_hash and f"({card.base_hash})"))) or "unknown",
    )
    yield "trained", f"{card.steps:,} steps"
    yield "note", card.note
    yield "in a prompt", verdict.trigger


def _of_programs(verdict: "Verdict") -> Iterator[tuple[str, str]]:
    yield from ((f"in {program}", str(answer)) for program, answer in verdict.opens.items())


def _of_kind(entry: "Entry") -> Iterator[tuple[str, str]]:
    card = entry.nature.card
    yield "kind", card.kind
    yield "name", entry.name
    yield "also called", ", ".join(dict.fromkeys(each for each in entry.aliases if each != entry.name))
    yield "structure", card.outline
    yield "family", entry.family or "unknown"
    yield "trained", f"{card.steps:,} steps" if card.steps else ""
    yield "note", card.note
    if entry.kind in TAGGED:
        yield "in a prompt", f"<{entry.kind}:{entry.name}:{1 if entry.strength is None else entry.strength:g}>"
    if entry.kind == "embedding":
        yield "in a prompt", card.name if entry.nature.container == "picture" and card.name else entry.name


def _of_notes(entry: "Entry") -> Iterator[tuple[str, str]]:
    """What its owner or its publisher says of it."""
    notes = entry.notes
    yield "trigger words", ", ".join(entry.trigger_words)
    yield "strength", "" if entry.strength is None else f"{entry.strength:g}, as its notes say"
    yield "negative", notes.negative
    yield "with the VAE", notes.vae
    yield "described as", notes.description
    yield "preview", str(entry.preview or "")
    yield from (("unread", each) for each in notes.unread)


def _of_header(entry: "Entry") -> Iterator[tuple[str, str]]:
    """What programs wrote into its header, but for what stands there already: our note is its description too."""
    yield from (row for row in entry.nature.details.items() if row[1] not in {entry.name, entry.nature.card.note})


def _of_file(entry: "Entry") -> Iterator[tuple[str, str]]:
    nature = entry.nature
    if nature.tensors:
        tensors = "1 tensor" if nature.tensors == 1 else f"{nature.tensors:,} tensors"
        yield "parameters", f"{nature.parameters:,} in {tensors}, {', '.join(nature.precisions)}"
    container = CONTAINERS.get(nature.container, nature.container)
    size = "" if entry.place.is_folder else _size(entry.place.state.size)
    yield "file", ", ".join(filter(None, (nature.dialect, container, size)))
    if entry.hashes is not None:
        yield "hash", f"{entry.hashes.sha256[:10]} (SHA-256 {entry.hashes.sha256})"
        yield "on Civitai", ", ".join(f"{name} {each}" for name, each in entry.hashes.shown().items())


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
