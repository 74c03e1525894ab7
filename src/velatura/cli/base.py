"""How a command line names the base."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.models import OptionInfo

import velatura

if TYPE_CHECKING:
    from velatura.base.base import Base


def base_option(panel: str) -> OptionInfo:
    """The option --base, in a panel of the verb's help."""
    said = "tiny, a checkpoint, a diffusers folder, its name in --library, or hub:OWNER/NAME."
    return typer.Option("--base", help=said, rich_help_panel=panel)


def open_base(name: str, library: "velatura.Library | None" = None) -> "Base":
    """The base that a command line names: tiny, a checkpoint or a folder by its path, or by its name in a library."""
    if name == "tiny":
        return velatura.tiny()
    is_path = bool(set(name) & set("/\\:")) or Path(name).exists()
    return velatura.open_base(name) if library is None or is_path else library.base(name)
