"""The table of the formats in which overlays are stored: one row for each format of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from velatura.errors import BadFile
from velatura.formats import difference, native
from velatura.formats.embeddings import aesthetic, read_embedding, write_embedding
from velatura.formats.hypernetworks import a1111
from velatura.formats.inspect.detectors import describe_other_model
from velatura.formats.loras import read_lora, write_diffusers, write_kohya, write_peft
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents


@dataclass(frozen=True)
class Dialect:
    """One format in which overlays of one kind are stored.

    Attributes:
        name: Name of the program or library that defined the format.
        kind: Kind of overlay, as `Overlay.kind` has it; "" means any kind.
        suffix: Ending of its files; "" means a folder.
        sniff: Return True for contents of this format.
        read: Build the overlay from contents that `sniff` accepted.
        write: Write an overlay of this kind to a path.
    """

    name: str
    kind: str
    suffix: str
    sniff: Callable[[Contents], bool]
    read: Callable[[Contents], Overlay]
    write: Callable[[Overlay, Path], None]


def _sniff_nothing(_: Contents) -> bool:
    """Return False: an earlier row for the same kind reads these files too."""
    return False


# Where `save` is given no dialect, it writes the first row of the overlay's kind that has the path's ending.
DIALECTS = (
    Dialect("velatura", "difference", ".safetensors", difference.sniff, difference.read, native.write),
    Dialect("kohya", "difference", ".safetensors", _sniff_nothing, read_lora.read, write_kohya.write),  # read as a LoRA
    Dialect("kohya", "lora", ".safetensors", read_lora.sniff, read_lora.read, write_kohya.write),
    Dialect("velatura", "lora", ".safetensors", _sniff_nothing, read_lora.read, write_kohya.write),
    Dialect("diffusers", "lora", ".safetensors", _sniff_nothing, read_lora.read, write_diffusers.write),
    Dialect("peft", "lora", "", _sniff_nothing, read_lora.read, write_peft.write),
    Dialect("velatura", "", ".safetensors", native.sniff, native.read, native.write),
    Dialect("a1111", "hypernet", ".pt", a1111.sniff, a1111.read, a1111.write),
    Dialect("a1111", "aesthetic", ".pt", aesthetic.sniff, aesthetic.read, aesthetic.write),
    Dialect("a1111", "embedding", ".pt", read_embedding.sniff_a1111, read_embedding.read, write_embedding.write_a1111),
    Dialect("kohya", "embedding", ".safetensors", read_embedding.sniff_kohya, read_embedding.read, native.write),
    Dialect(
        "diffusers",
        "embedding",
        ".bin",
        read_embedding.sniff_diffusers,
        read_embedding.read,
        write_embedding.write_diffusers,
    ),
    Dialect(
        "picture", "embedding", ".png", read_embedding.sniff_picture, read_embedding.read, write_embedding.write_png
    ),
)

HYPERNETWORK_SUFFIXES = list(
    dict.fromkeys(dialect.suffix for dialect in DIALECTS if dialect.kind in {"", Hypernetwork.kind})
)


def find_dialect(contents: Contents) -> Dialect:
    """Return the first dialect that recognises a file.

    Raises:
        BadFile: No dialect recognises the file; the message says what it is where that is known.
    """
    dialect = next((candidate for candidate in DIALECTS if candidate.sniff(contents)), None)
    if dialect is not None:
        return dialect
    if description := describe_other_model(contents):
        message = f"{contents.path.name} {description}"
        raise BadFile(message)
    names = ", ".join(dict.fromkeys(candidate.name for candidate in DIALECTS))
    raise BadFile(f"{contents.path.name} is not an overlay in a known format ({names}): check where it is from")
