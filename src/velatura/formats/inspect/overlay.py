"""Report on an overlay's file without a base: what it is, how prompts call it, and which programs open it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from velatura.files import SHORT_HASH_LENGTH, hash_file
from velatura.formats.dialects import find_dialect
from velatura.formats.inspect.compatibility import ProgramSupport, check_programs
from velatura.formats.inspect.detectors import flatten_payload
from velatura.formats.open import read_overlay
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card
from velatura.tensors import Contents, open_tensors

CONTAINERS = {
    "safetensors": "safetensors",
    "zip": "a zip as torch writes since 1.6",
    "legacy": "pickles as torch wrote before 1.6",
    "picture": "a picture with tensors in it",
}


class OverlayInfo(BaseModel):
    """Report on an overlay's file.

    Attributes:
        card: What the overlay is.
        dialect: Name of the format, as in DIALECTS.
        container: How the tensors are packed, in words.
        trigger: The tag by which a prompt calls the overlay.
        hash: SHA-256 of the file in hex.
        parameters: Number of values in all its tensors.
        file_bytes: Size of the file.
        precisions: Data types of its tensors.
        opens: Which programs open it, by their names; for hypernetworks only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: Card
    dialect: str
    container: str
    trigger: str
    hash: str
    parameters: int
    file_bytes: int
    precisions: tuple[str, ...]
    opens: dict[str, ProgramSupport]

    @property
    def short_hash(self) -> str:
        """Return the first ten digits of the hash, by which A1111 tells files apart."""
        return self.hash[:SHORT_HASH_LENGTH]


def inspect_overlay(path: str | PathLike[str]) -> OverlayInfo:
    """Open an overlay's file and report on it; the warnings are those of opening it for use.

    Raises:
        BadFile: The file cannot be opened as an overlay.
    """
    path = Path(path).expanduser()
    contents = open_tensors(path)
    dialect = find_dialect(contents)
    overlay = read_overlay(contents)
    return OverlayInfo(
        card=overlay.card,
        dialect=dialect.name,
        container=CONTAINERS[contents.container],
        trigger=f"<{overlay.kind}:{path.stem}:1>",
        hash=hash_file(path),
        parameters=sum(parameter.numel() for parameter in overlay.parameters()),
        file_bytes=path.stat().st_size,
        precisions=_precisions(contents),
        opens=check_programs(contents, overlay) if isinstance(overlay, Hypernetwork) else {},
    )


def _precisions(contents: Contents) -> tuple[str, ...]:
    tensors = [*contents.tensors.values(), *flatten_payload(contents.payload).values()]
    return tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
