"""How a command line names the base."""

from typing import TYPE_CHECKING

import typer
from typer.models import OptionInfo

import velatura

if TYPE_CHECKING:
    from velatura.base.base import Base


def base_option(panel: str) -> OptionInfo:
    """The option --base, in a panel of the verb's help."""
    return typer.Option("--base", help="tiny, a checkpoint, or a folder in diffusers' layout.", rich_help_panel=panel)


def open_base(name: str) -> "Base":
    """The base that a command line names: tiny, a checkpoint or a folder."""
    return velatura.tiny() if name == "tiny" else velatura.open_base(name)
