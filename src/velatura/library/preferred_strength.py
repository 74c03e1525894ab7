"""Write the strength to start with beside a file of weights, as A1111 and Forge read it, and into our own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from velatura.errors import BadFile
from velatura.files import atomic_write, parse_json

SIDECAR_STRENGTH, SIDECAR_NOTES = "preferred weight", "notes"  # fields of A1111's user metadata
METADATA_STRENGTH, METADATA_NOTE = "velatura.strength", "velatura.strength_note"
USAGE_HINT = "modelspec.usage_hint"
NOTE_PREFIX = "velatura tune: "  # of the line that a new measurement replaces
CARD_KEY = "velatura.card"
MAX_SIDECAR_BYTES = 2**21


def write_sidecar(weights: Path, strength: float, note: str) -> Path:
    """Write the preferred weight and a note into the .json beside a file of weights; other fields stay as they are.

    Args:
        weights: The file of weights.
        strength: The preferred strength.
        note: One line, which replaces that of an earlier measurement.

    Returns:
        The sidecar.

    Raises:
        BadFile: There is a .json already that holds something else than a JSON object.
    """
    path = weights.with_suffix(".json")
    fields = _read_fields(path) if path.exists() else {}
    notes = str(fields.get(SIDECAR_NOTES) or "").splitlines()
    kept = [line for line in notes if not line.startswith(NOTE_PREFIX)]
    fields |= {SIDECAR_STRENGTH: strength, SIDECAR_NOTES: "\n".join([*kept, NOTE_PREFIX + note])}
    with atomic_write(path) as temp_path:
        temp_path.write_text(json.dumps(fields, indent=4, ensure_ascii=False) + "\n", "utf-8")
    return path


def write_into_file(weights: Path, strength: float, note: str) -> bool:
    """Write the preferred strength into the metadata of a .safetensors that velatura wrote.

    Returns:
        False for a file of another program, which is left as it is.
    """
    from velatura.tensors import open_tensors, write_safetensors

    if weights.suffix != ".safetensors":
        return False
    contents = open_tensors(weights)
    if CARD_KEY not in contents.metadata:
        return False
    hint = f"strength {strength:g}"
    added = {METADATA_STRENGTH: f"{strength:g}", METADATA_NOTE: note, USAGE_HINT: hint}
    metadata = {**contents.metadata, **added}
    tensors = {key: tensor.clone() for key, tensor in contents.tensors.items()}  # the file is replaced below them
    write_safetensors(weights, tensors, metadata)
    return True


def _read_fields(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SIDECAR_BYTES + 1).decode("utf-8-sig")
        fields = parse_json(text) if len(text) <= MAX_SIDECAR_BYTES else None
    except (OSError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadFile(f"{path} is not a JSON object of notes, so no strength is written into it: rename or remove it")
    return cast("dict[str, object]", fields)
