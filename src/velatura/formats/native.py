"""velatura's own file: an overlay's state dict as safetensors, in its own precision, its card in the metadata.

Beside the card stands what other programs may read: ModelSpec's fields, and a hypernetwork's settings as A1111 names
them.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from velatura.base.families import FAMILIES
from velatura.errors import BadFile, UnknownName, VelaturaError
from velatura.formats.hypernetworks import flat
from velatura.formats.hypernetworks.a1111_fields import to_a1111_fields
from velatura.formats.load_state import check_not_empty, load_tensors
from velatura.formats.metadata import model_spec_fields
from velatura.overlays import KINDS
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card, Overlay
from velatura.tensors import Contents, write_safetensors

CARD_KEY = "velatura.card"
MODEL_SPEC_KINDS = {"hypernet": "hypernetwork", "embedding": "textual-inversion"}


def sniff(contents: Contents) -> bool:
    """Whether a card of ours is in the file's metadata, or its tensors are named as those of a hypernetwork."""
    return CARD_KEY in contents.metadata or flat.sniff(contents)


def read(contents: Contents) -> Overlay:
    """Build the overlay that the card describes and fill in its tensors, in the precision of the file."""
    if CARD_KEY not in contents.metadata:
        return flat.read(contents)
    name = contents.path.name
    try:
        card = Card.model_validate_json(contents.metadata[CARD_KEY])
        if card.kind not in KINDS:
            raise UnknownName.with_suggestions("kind of overlay", card.kind[:40], KINDS)
        check_not_empty(name, card, len(contents.tensors))
        overlay = KINDS[card.kind].from_card(card)
    except BadFile:
        raise
    except ValidationError as error:
        raise BadFile(
            f"{name} has a damaged card ({error.errors()[0]['msg'].lower()}): save the overlay again"
        ) from None
    except VelaturaError as error:
        raise BadFile(f"{name} has a card that cannot be: {error}") from None
    return load_tensors(overlay, contents.tensors, name)


def write(overlay: Overlay, path: Path) -> None:
    """Write any overlay, the same one in the same bytes."""
    fields = to_a1111_fields(overlay, path.stem) if isinstance(overlay, Hypernetwork) else {}
    metadata = {key: json.dumps(value) for key, value in fields.items()}
    metadata |= _overlay_model_spec(overlay.card, path.stem)
    write_safetensors(path, overlay.state_dict(), {CARD_KEY: overlay.card.model_dump_json(), **metadata})


def _overlay_model_spec(card: Card, stem: str) -> dict[str, str]:
    """ModelSpec's fields of an overlay, of those for a family that is known all of them."""
    title, kind = card.name or stem, MODEL_SPEC_KINDS.get(card.kind, card.kind)
    family = FAMILIES.get(card.family)
    spec = model_spec_fields(family, title, kind=kind) if family else {"modelspec.title": title}
    card_values = {
        "modelspec.implementation": "velatura",  # whose names the tensors have
        "modelspec.description": card.note,
        "modelspec.trigger_phrase": ", ".join(card.trigger_words),
    }
    return spec | {key: value for key, value in card_values.items() if value}
