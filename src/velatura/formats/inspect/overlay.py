"""What can be said of an overlay's file without a base: what it is, how it is called, and which programs open it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import file_digest
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.formats import find_dialect
from velatura.formats.inspect.compatibility import ProgramSupport, check_programs
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card
from velatura.tensors import Contents, as_dict, as_list, open_tensors

CONTAINERS = {
    "safetensors": "safetensors",
    "zip": "a zip as torch writes since 1.6",
    "legacy": "pickles as torch wrote before 1.6",
    "picture": "a picture with tensors in it",
}


class OverlayInfo(BaseModel):
    """What is known of a file: hash is of all of it, short_hash as A1111 shows it; trigger is what a prompt says."""

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
        """The first ten digits, by which A1111 tells files apart."""
        return self.hash[:10]


def inspect_overlay(path: str | PathLike[str]) -> OverlayInfo:
    """Open an overlay's file and say what it is; what is wrong with it is raised or warned of as when it is used."""
    path = Path(path).expanduser()
    contents = open_tensors(path)
    dialect = find_dialect(contents)
    overlay = dialect.read(contents)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return OverlayInfo(
        card=overlay.card,
        dialect=dialect.name,
        container=CONTAINERS[contents.container],
        trigger=f"<{overlay.kind}:{path.stem}:1>",
        hash=digest,
        parameters=sum(parameter.numel() for parameter in overlay.parameters()),
        file_bytes=path.stat().st_size,
        precisions=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in _all_tensors(contents)})),
        opens=check_programs(contents, overlay) if isinstance(overlay, Hypernetwork) else {},
    )


def _all_tensors(contents: Contents) -> Iterator[Tensor]:
    yield from contents.tensors.values()
    yield from _tensors_within(contents.payload)


def _tensors_within(payload: object) -> Iterator[Tensor]:
    """The tensors in a tree of dicts and lists."""
    if isinstance(payload, Tensor):
        yield payload
    children: Mapping[object, object] = as_dict(payload) or dict(enumerate(as_list(payload) or ()))
    for child in children.values():
        yield from _tensors_within(child)
