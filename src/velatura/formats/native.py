"""velatura's own format: the tensors of an overlay as safetensors, in their own precision, and its card as metadata.

Beside the card stand fields that other programs read: those of ModelSpec, and a hypernetwork's settings as A1111
names them.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from velatura.errors import BadFile, UnknownName, VelaturaError
from velatura.files import parse_json
from velatura.formats.hypernetworks import flat
from velatura.formats.hypernetworks.a1111_fields import to_a1111_fields
from velatura.formats.load_state import check_not_empty, load_tensors
from velatura.formats.metadata import family_of_card, model_spec_fields
from velatura.overlays import KINDS
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card, Overlay
from velatura.tensors import Contents, write_safetensors

CARD_KEY = "velatura.card"
MODEL_SPEC_KINDS = {"hypernet": "hypernetwork", "embedding": "textual-inversion"}
MAX_SHOWN_KIND = 40  # characters of a stranger's text in a message


def sniff(contents: Contents) -> bool:
    """Return True if the metadata holds a card, or if the tensors have the names of a hypernetwork's."""
    return CARD_KEY in contents.metadata or flat.sniff(contents)


def parse_card(contents: Contents) -> Card:
    """Parse the card in a file's metadata, which must hold one.

    Raises:
        BadFile: The card is not JSON, or a field is unknown or out of range.
    """
    try:
        fields = parse_json(contents.metadata[CARD_KEY])
        return Card.model_validate_json(json.dumps(fields))  # JSON has no tuples, as Python's values would need
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise BadFile(f"{contents.path.name} has a damaged card ({reason}): save the overlay again")


def read(contents: Contents) -> Overlay:
    """Build the overlay that the card describes and load its tensors, in the precision of the file.

    Files without a card are read as hypernetworks with flat tensor names.

    Raises:
        BadFile: The card is damaged, describes no overlay, or does not fit the tensors.
    """
    if CARD_KEY not in contents.metadata:
        return flat.read(contents)
    name, card = contents.path.name, parse_card(contents)
    check_not_empty(name, card, len(contents.tensors))
    try:
        overlay = _build_overlay(card)
    except VelaturaError as error:
        raise BadFile(f"{name} has a card that describes no overlay: {error}") from None
    return load_tensors(overlay, contents.tensors, name)


def _build_overlay(card: Card) -> Overlay:
    if card.kind not in KINDS:
        raise UnknownName.with_suggestions("kind of overlay", card.kind[:MAX_SHOWN_KIND], KINDS)
    return KINDS[card.kind].from_card(card)


def write(overlay: Overlay, path: Path) -> None:
    """Write an overlay of any kind; equal overlays become equal bytes."""
    fields = to_a1111_fields(overlay, path.stem) if isinstance(overlay, Hypernetwork) else {}
    metadata = {key: json.dumps(value) for key, value in fields.items()}
    metadata |= _overlay_model_spec(overlay.card, path.stem)
    write_safetensors(path, overlay.state_dict(), {CARD_KEY: overlay.card.model_dump_json(), **metadata})


def _overlay_model_spec(card: Card, stem: str) -> dict[str, str]:
    """Return ModelSpec's fields for an overlay; those that belong to a base only where its family is known."""
    title, kind = card.name or stem, MODEL_SPEC_KINDS.get(card.kind, card.kind)
    family = family_of_card(card)
    spec = model_spec_fields(family, title, kind=kind) if family else {"modelspec.title": title}
    card_values = {
        "modelspec.implementation": "velatura",  # the program that named the tensors
        "modelspec.description": card.note,
        "modelspec.trigger_phrase": ", ".join(card.trigger_words),
    }
    return spec | {key: value for key, value in card_values.items() if value}
