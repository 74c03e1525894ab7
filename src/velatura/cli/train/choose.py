"""Run `velatura choose`: say which kind of overlay to train on a folder of pictures, what it costs, and the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

import velatura
from velatura.cli.base import base_option, explain_missing, is_path
from velatura.cli.screen import say, say_json
from velatura.cli.train.options import LibraryFolders, bundled_or_given
from velatura.cli.train.session import command_line
from velatura.errors import BadPlan, UnknownName, UnsupportedBase

if TYPE_CHECKING:
    from velatura.datasets.check import DatasetReport
    from velatura.training.kinds.choice import Advice, Cost, Machine, Purpose, TrainedKind

LABEL_WIDTH = 10  # letters
FEW_PICTURES = 5  # fewer are known by heart before they teach what they have in common

PictureFolder = Annotated[
    Path | None, typer.Argument(help="The pictures to learn from, or a bundled set.", show_default="none yet")
]
ForWhat = Annotated[
    str | None,
    typer.Option("--for", help="What is to be learned: style, subject, mood or word.", show_default="is asked"),
]
Minutes = Annotated[float | None, typer.Option(help="The longest training you want, in minutes.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Choice(NamedTuple):
    """A choice with all that it stands on.

    Attributes:
        purpose: What is to be learned.
        family: Family of the base.
        machine: The machine to train on.
        advice: The kinds for that purpose, the one to take first.
        first, second: What they cost.
        report: What was found in the pictures, if a folder was given.
    """

    purpose: Purpose
    family: str
    machine: Machine
    advice: Advice
    first: Cost
    second: Cost
    report: DatasetReport | None


def choose(
    folder: PictureFolder = None,
    *,
    purpose: ForWhat = None,
    base: Annotated[str, base_option("Options")] = "tiny",
    library: LibraryFolders = None,
    minutes: Minutes = None,
    as_json: AsJson = False,
) -> None:
    """Say which kind of overlay to train on your pictures, why, what it costs, and the command to run.

    velatura choose photos/ --for style

    velatura choose photos/ --for subject --base sd15 --library models/ --minutes 60
    """
    chosen_purpose = _ask_purpose() if purpose is None else _parse_purpose(purpose)
    family = _find_family(base, library or [Path()])
    pictures = None if folder is None else bundled_or_given(folder)
    choice = _make_choice(chosen_purpose, family, pictures, minutes)
    command = _command(choice, choice.advice.first, choice.first, folder or Path("photos"), base)
    if as_json:
        say_json(json.dumps(_as_json(choice, command), indent=2))
        return
    for label, text in _rows(choice, base, command, minutes):
        say(f"{label:{LABEL_WIDTH}}{text}")


def _ask_purpose() -> Purpose:
    """Ask on a terminal what is to be learned."""
    from velatura.training.kinds.choice import PURPOSES

    if not sys.stdin.isatty():
        choices = "; ".join(f"--for {name} ({text})" for name, text in PURPOSES.items())
        raise BadPlan(f"what is to be learned is not given: add one of {choices}")
    say("What are the pictures to teach?", *(f"  {name:9}{text}" for name, text in PURPOSES.items()))
    return _parse_purpose(typer.prompt("Which"))


def _parse_purpose(text: str) -> Purpose:
    from velatura.training.kinds.choice import PURPOSES

    purpose = text.strip().lower()
    if purpose not in PURPOSES:
        raise UnknownName.with_suggestions("purpose (--for)", text, PURPOSES)
    return purpose


def _find_family(base: str, folders: list[Path]) -> str:
    """Return the family of a base by its header alone, without opening it."""
    from velatura.base.families import FAMILIES
    from velatura.library import file_entry

    if base == "tiny":
        return base
    if base.startswith("hub:"):
        raise UnsupportedBase(f"{base} is not on this machine, so its family is unknown: velatura pull {base} first")
    try:
        entry = (
            file_entry(base) if is_path(base) else velatura.Library(*folders).entry(base, "checkpoint", label="base")
        )
    except UnknownName as error:
        raise explain_missing(base, error) from None
    if entry.family not in FAMILIES:
        raise UnsupportedBase(
            f"{base} is {entry.info.card}, not a base to train on: give a checkpoint of SD1, SD2 or SDXL"
        )
    return entry.family


def _make_choice(purpose: Purpose, family: str, folder: Path | None, minutes: float | None) -> Choice:
    """Look at the pictures and the machine, and take the second kind if the first one takes too long."""
    from velatura.base.families import FAMILIES
    from velatura.datasets.check import check_folder
    from velatura.training.kinds.choice import advice_for, estimate_cost, measure_machine

    report = None if folder is None else check_folder(folder, FAMILIES[family].default_pixels)
    machine, advice = measure_machine(family), advice_for(purpose, family)
    first, second = (estimate_cost(kind, purpose, family, machine) for kind in (advice.first, advice.second))
    is_too_much = first.memory > machine.memory or (minutes is not None and first.minutes > minutes)
    fits_better = second.memory <= machine.memory and second.minutes < first.minutes
    if is_too_much and fits_better:
        reason = "it fits into the memory" if first.memory > machine.memory else "it is done sooner"
        swapped = advice._replace(
            first=advice.second, reason=reason, second=advice.first, second_if=f"there is room: {advice.reason}"
        )
        return Choice(purpose, family, machine, swapped, second, first, report)
    return Choice(purpose, family, machine, advice, first, second, report)


def _rows(choice: Choice, base: str, command: str, minutes: float | None) -> Iterator[tuple[str, str]]:
    advice, machine = choice.advice, choice.machine
    yield "pictures", _describe_pictures(choice.report)
    yield "machine", f"{machine.device} with {machine.memory / 2**30:.0f} GiB of memory, for {base} ({choice.family})"
    yield "take", f"{advice.first}: {advice.reason}"
    late = ", longer than you want" if minutes is not None and choice.first.minutes > minutes else ""
    measured = "" if advice.first == "aesthetic" else "; --dry-run measures it"
    yield "costs", f"{_describe_cost(choice.first)}{late}{measured}"
    yield "or", f"{advice.second}, if {advice.second_if}: {_describe_cost(choice.second)}"
    yield "run", command


def _describe_pictures(report: DatasetReport | None) -> str:
    """Say in one line how many pictures there are and what is wrong with them."""
    if report is None:
        return "none given; 8 to 20 are usual, from different sides and distances"
    count = len(report.pictures)
    named = sum(finding.kind == "named" for finding in report.findings)
    small = sum(finding.kind == "small" for finding in report.findings)
    copies = sum(finding.kind == "duplicate" for finding in report.findings)
    remarks = [
        "few: show more sides of it" if count < FEW_PICTURES else "",
        f"{named} captioned by their file names only" if named else "",
        f"{small} smaller than {report.pixels} pixels" if small else "",
        f"{copies} nearly the same as another" if copies else "",
        f"{len(report.errors)} that cannot be used" if report.errors else "",
    ]
    shown = "; ".join(filter(None, remarks))
    advice = f" (velatura dataset check {command_line(report.source)})" if shown else ""
    return f"{count}{f': {shown}' if shown else ', and nothing wrong with them'}{advice}"


def _describe_cost(cost: Cost) -> str:
    checkpointing = ", with gradient checkpointing" if cost.needs_checkpointing else ""
    return (
        f"about {_describe_minutes(cost.minutes)}, {max(0.1, cost.memory / 2**30):.1f} GiB of memory{checkpointing}, "
        f"a file of {_describe_bytes(cost.file_bytes)}"
    )


def _describe_minutes(minutes: float) -> str:
    if minutes >= 120:
        return f"{minutes / 60:.0f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 2 else "a minute" if minutes >= 1 else "half a minute"


def _describe_bytes(count: int) -> str:
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 10**6 else f"{max(1, count // 1000)} kB"


def _command(choice: Choice, kind: TrainedKind, cost: Cost, folder: Path, base: str) -> str:
    """Return the command that trains a kind, ready to paste."""
    from velatura.training.kinds.choice import preset_purpose

    words: list[str | Path] = ["velatura", "train", kind, folder]
    if base != "tiny":
        words += ["--base", base]
    if kind != "aesthetic":
        words += ["--for", preset_purpose(choice.purpose)]
    if cost.needs_checkpointing:
        words += ["--checkpointing"] if kind == "dreambooth" else ["--set", "checkpointing=true"]
    return command_line(*words)


def _as_json(choice: Choice, command: str) -> dict[str, object]:
    def facts(kind: str, cost: Cost) -> dict[str, object]:
        return {"kind": kind, **vars(cost)}

    return {
        "purpose": choice.purpose,
        "family": choice.family,
        "machine": choice.machine._asdict(),
        "pictures": None if choice.report is None else len(choice.report.pictures),
        "take": facts(choice.advice.first, choice.first) | {"reason": choice.advice.reason, "command": command},
        "or": facts(choice.advice.second, choice.second) | {"if": choice.advice.second_if},
    }
