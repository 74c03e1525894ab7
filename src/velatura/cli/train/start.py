"""Open the overlay that --start trains further, of any kind and file format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import velatura
from velatura.cli.train.options import OVERLAY_PANEL, option
from velatura.errors import BadFile, BadOverlay
from velatura.files import suggest_similar

if TYPE_CHECKING:
    from velatura.overlays.overlay import Overlay

AnyOverlay = TypeVar("AnyOverlay", bound="Overlay")


def refuse_missing(path: Path | None) -> Path | None:
    """Return the path of --start, or refuse one that does not exist, before torch is imported."""
    if path is not None and not path.expanduser().exists():
        raise BadFile(f"{path} does not exist{suggest_similar(path)}: give the path of an overlay's file to --start")
    return path


Start = Annotated[
    Path | None,
    option(
        "Train this overlay further; its steps count on.",
        OVERLAY_PANEL,
        "--start",
        default="a new one",
        callback=refuse_missing,
    ),
]


def open_start(
    path: Path,
    overlay_class: type[AnyOverlay],
    name: str,
    structure: Mapping[str, object],
    defaults: Mapping[str, object],
) -> AnyOverlay:
    """Open an overlay to be trained further.

    Args:
        path: Its file, in any format that velatura opens.
        overlay_class: The kind that the command trains.
        name: What the overlay is called from now on.
        structure: The command's options for a new overlay, by their names.
        defaults: Their values where they are not given.

    Raises:
        BadOverlay: The file holds another kind, or an option for a new overlay is given.
    """
    given = [option_name for option_name, value in structure.items() if value != defaults[option_name]]
    if given:
        flag = given[0].replace("_", "-")
        raise BadOverlay(f"{path.name} has a structure already, which --start keeps: leave out --{flag}")
    overlay = velatura.open_overlay(path)
    if not isinstance(overlay, overlay_class):
        raise BadOverlay(
            f"{path.name} is a {overlay.kind_name}, and --start needs a {overlay_class.kind_name}: name one, or leave "
            "out --start"
        )
    overlay.card = overlay.card.replace(name=name)
    return overlay
