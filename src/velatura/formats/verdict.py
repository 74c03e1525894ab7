"""What can be said of an overlay's file without a base: what it is, how it is called, and which programs open it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import file_digest
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.formats import dialect_of
from velatura.formats.programs import Answer, answers
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card
from velatura.tensors import Contents, as_dict, as_list, open_tensors

CONTAINERS = {
    "safetensors": "safetensors",
    "zip": "a zip as torch writes since 1.6",
    "legacy": "pickles as torch wrote before 1.6",
    "picture": "a picture with tensors in it",
}


class Verdict(BaseModel):
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
    opens: dict[str, Answer]

    @property
    def short_hash(self) -> str:
        """The first ten digits, by which A1111 tells files apart."""
        return self.hash[:10]


def examine(path: str | PathLike[str]) -> Verdict:
    """Open an overlay's file and say what it is; what is wrong with it is raised or warned of as when it is used."""
    path = Path(path).expanduser()
    contents = open_tensors(path)
    dialect = dialect_of(contents)
    overlay = dialect.read(contents)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return Verdict(
        card=overlay.card,
        dialect=dialect.name,
        container=CONTAINERS[contents.container],
        trigger=f"<{overlay.kind}:{path.stem}:1>",
        hash=digest,
        parameters=sum(each.numel() for each in overlay.parameters()),
        file_bytes=path.stat().st_size,
        precisions=tuple(sorted({str(each.dtype).removeprefix("torch.") for each in _tensors(contents)})),
        opens=answers(contents, overlay) if isinstance(overlay, Hypernetwork) else {},
    )


def _tensors(contents: Contents) -> Iterator[Tensor]:
    yield from contents.tensors.values()
    yield from _within(contents.payload)


def _within(found: object) -> Iterator[Tensor]:
    """The tensors in a tree of dicts and lists."""
    if isinstance(found, Tensor):
        yield found
    inside: Mapping[object, object] = as_dict(found) or dict(enumerate(as_list(found) or ()))
    for each in inside.values():
        yield from _within(each)
