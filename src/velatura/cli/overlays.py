"""How a command line names overlays by their files, and how strongly they act."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import velatura
from velatura.errors import BadFile

if TYPE_CHECKING:
    from velatura.overlays.overlay import Overlay

TAG_ARGUMENT_PATTERN = r"[+-]?(?:\d+\.?\d*|\.\d+)|[^:<>/\\]*[@=][^:<>/\\]*"  # of a tag: 0.6, 0@0, 0.8@0.5, end=0.5


def open_overlay_files(overlays: Sequence[str]) -> tuple[dict[str, "Overlay"], list[str]]:
    """The overlays that a command line names by file, and the tags that call them."""
    opened: dict[str, Overlay] = {}
    tags: list[str] = []
    for argument in overlays:
        file, strength = _file_and_strength(argument)
        _refuse_file_name(file, opened)
        opened[file.stem] = overlay = velatura.open_overlay(file)
        tags.append(f"<{overlay.kind}:{file.stem}:{strength}>")
    return opened, tags


def add_tags(prompt: str, tags: Sequence[str]) -> str:
    """The prompt behind its tags: a comment at its end would swallow them."""
    return " ".join([*tags, prompt])


def _refuse_file_name(file: Path, known_stems: Iterable[str]) -> None:
    """Refuse a file whose name no tag can hold, or can hold for one file only."""
    if set(file.stem) & set("<>:#\n") or file.stem != file.stem.strip():
        raise BadFile(f"{file} has a name that no tag can hold: rename it without < > : # and spaces around it")
    if file.stem.lower() in map(str.lower, known_stems):
        raise BadFile(f"{file} is the second file called {file.stem}, and a tag names only one: rename one of them")


def _file_and_strength(text: str) -> tuple[Path, str]:
    """Split "inca.pt:0.6:end=0.5" into the file and what a tag says of its strength, "1" where nothing follows."""
    match = re.fullmatch(rf"(.+?):((?:{TAG_ARGUMENT_PATTERN})(?::(?:{TAG_ARGUMENT_PATTERN}))*)", text)
    return (Path(match[1]), match[2]) if match else (Path(text), "1")
