"""Configurations in JSON files: read up to a size, and refused in one line where they are not JSON objects."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from velatura.errors import BadFile
from velatura.files import open_for_reading, parse_json

MAX_CONFIG_BYTES = 2**20  # the longest config.json has a few thousand


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Read a JSON file whose top level is an object, such as config.json or model_index.json.

    Args:
        path: The file, in a folder that was downloaded as a whole.
        max_bytes: Files above this size are refused, so that a stranger's file takes little time and memory.

    Returns:
        The object, whose values nobody has checked yet.

    Raises:
        BadFile: The file is missing, not a plain file, larger than max_bytes, or not a JSON object.
    """
    if not path.exists():
        raise BadFile(f"{path.parent} has no {path.name}: download the whole folder again")
    with open_for_reading(path) as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise BadFile(f"{path} cannot be read: it has more than {max_bytes:,} bytes; download the whole folder again")
    try:
        parsed = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path} cannot be read ({error}): download the whole folder again") from None
    if not isinstance(parsed, dict):
        raise BadFile(f"{path} is not a JSON object of settings: download the whole folder again")
    return cast("dict[str, object]", parsed)
