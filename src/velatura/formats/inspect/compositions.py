"""What can be said of a composition's file (.hns) without a base: its tree, and the hypernetworks that it names."""

from __future__ import annotations

from hashlib import sha256
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from velatura.card import Card
from velatura.errors import VelaturaError
from velatura.formats import HYPERNETWORK_SUFFIXES
from velatura.formats.hypernetworks import hns
from velatura.formats.inspect.overlay import inspect_overlay
from velatura.overlays.composition import Node, leaves
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.structure import HypernetworkStructure


class CompositionMember(BaseModel):
    """A hypernetwork that a composition names: the file that answers to it, or the problem there is with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str = ""
    hash: str = ""
    card: Card | None = None
    problem: str = ""

    @property
    def widths(self) -> tuple[int, ...]:
        """The context widths that it changes."""
        return HypernetworkStructure.from_fields(self.card.structure).widths if self.card else ()


class CompositionInfo(BaseModel):
    """What is known of a composition: hash is of its text, trigger what a prompt says, widths who changes which."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tree: Node
    members: tuple[CompositionMember, ...]
    widths: dict[int, tuple[str, ...]]
    trigger: str
    hash: str
    file_bytes: int

    @property
    def family(self) -> str:
        """What all that were found are made for, or nothing where they differ."""
        families = {member.card.family for member in self.members if member.card}
        return families.pop() if len(families) == 1 else ""


def inspect_composition(path: str | PathLike[str]) -> CompositionInfo:
    """Read a composition and say what it is; the hypernetworks are looked for beside it, as when it is opened."""
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
    """A hypernetwork by its name: what is wrong with one does not hide the others."""
    try:
        file = hns.find_member_file(composition, name, HYPERNETWORK_SUFFIXES)
        info = inspect_overlay(file)
    except VelaturaError as error:
        return CompositionMember(name=name, problem=str(error))
    if info.card.kind != Hypernetwork.kind:
        return CompositionMember(
            name=name, file=file.name, problem=f"{file.name} is a {info.card.kind}: name hypernetworks"
        )
    return CompositionMember(name=name, file=file.name, hash=info.hash, card=info.card)
