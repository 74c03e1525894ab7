"""Report on a composition's file (.hns) without a base: its tree, and the hypernetworks that it names."""

from __future__ import annotations

from hashlib import sha256
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from velatura.card import Card
from velatura.errors import VelaturaError
from velatura.formats.dialects import HYPERNETWORK_SUFFIXES
from velatura.formats.hypernetworks import hns
from velatura.formats.inspect.overlay import inspect_overlay
from velatura.overlays.composition import Node, leaves
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.structure import HypernetworkStructure


class CompositionMember(BaseModel):
    """Hypernetwork that a composition names.

    Attributes:
        name: Its name in the composition.
        file: Name of its file, if there is one.
        hash: SHA-256 of the file in hex.
        card: What the hypernetwork is.
        problem: Why it cannot be opened; "" if it can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str = ""
    hash: str = ""
    card: Card | None = None
    problem: str = ""

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the context widths that it changes."""
        return HypernetworkStructure.from_fields(self.card.structure).widths if self.card else ()


class CompositionInfo(BaseModel):
    """Report on a composition.

    Attributes:
        tree: The composition.
        members: The hypernetworks that it names.
        widths: Names of the hypernetworks that change contexts of a width, by the width.
        trigger: The tag by which a prompt calls the composition.
        hash: SHA-256 of the text in hex.
        file_bytes: Size of the text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tree: Node
    members: tuple[CompositionMember, ...]
    widths: dict[int, tuple[str, ...]]
    trigger: str
    hash: str
    file_bytes: int

    @property
    def family(self) -> str:
        """Return the family that all hypernetworks are for, or "" if they differ or none was found."""
        families = {member.card.family for member in self.members if member.card}
        return families.pop() if len(families) == 1 else ""


def inspect_composition(path: str | PathLike[str]) -> CompositionInfo:
    """Read a composition and report on it; its hypernetworks are looked for beside it.

    A hypernetwork that cannot be opened is reported as a problem of that member.

    Raises:
        BadFile: The file is not a composition.
    """
    path = Path(path).expanduser()
    tree = hns.read_hns(path)
    members = tuple(_inspect_member(path, name) for name in dict.fromkeys(leaf.name for leaf in leaves(tree)))
    widths = sorted({width for member in members for width in member.widths})
    text = path.read_bytes()
    return CompositionInfo(
        tree=tree,
        members=members,
        widths={width: tuple(member.name for member in members if width in member.widths) for width in widths},
        trigger=f"<{Hypernetwork.kind}:{path.stem}:1>",
        hash=sha256(text).hexdigest(),
        file_bytes=len(text),
    )


def _inspect_member(composition: Path, name: str) -> CompositionMember:
    try:
        file = hns.find_member_file(composition, name, HYPERNETWORK_SUFFIXES)
        info = inspect_overlay(file)
    except VelaturaError as error:
        return CompositionMember(name=name, problem=str(error))
    if info.card.kind != Hypernetwork.kind:
        problem = f"{file.name} is a {info.card.kind}: name hypernetworks only"
        return CompositionMember(name=name, file=file.name, problem=problem)
    return CompositionMember(name=name, file=file.name, hash=info.hash, card=info.card)
