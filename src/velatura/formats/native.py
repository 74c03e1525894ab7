"""velatura's own file: an overlay's state dict as safetensors, its card as JSON in the metadata."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from velatura.errors import BadFile, UnknownName, VelaturaError
from velatura.formats.fill import fill
from velatura.overlays import KINDS
from velatura.overlays.overlay import Card, Overlay
from velatura.tensors import Contents, write_safetensors

CARD = "velatura.card"


def sniff(contents: Contents) -> bool:
    """Whether a card of ours is in the file's metadata."""
    return CARD in contents.metadata


def read(contents: Contents) -> Overlay:
    """Build the overlay that the card describes and fill in its tensors, in the precision of the file."""
    name = contents.path.name
    try:
        card = Card.model_validate_json(contents.metadata[CARD])
        if card.kind not in KINDS:
            raise UnknownName.among("kind of overlay", card.kind[:40], KINDS)
        overlay = KINDS[card.kind].from_card(card)
    except ValidationError as error:
        raise BadFile(
            f"{name} has a damaged card ({error.errors()[0]['msg'].lower()}): save the overlay again"
        ) from None
    except VelaturaError as error:
        raise BadFile(f"{name} has a card that cannot be: {error}") from None
    return fill(overlay, contents.tensors, name)


def write(overlay: Overlay, path: Path) -> None:
    """Write any overlay, the same one in the same bytes."""
    # safetensors writes several entries in an order of chance; "format", which others add, is for whole models
    write_safetensors(path, overlay.state_dict(), {CARD: overlay.card.model_dump_json()})
