"""Compositions of hypernetworks as text (.hns): a Python literal that is parsed, never evaluated.

A list acts in order; a set or a dict of parts and weights is their mean; ("name", strength), {"name": strength} or
"name" is one hypernetwork, by the name that a prompt would call it.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from velatura.errors import BadFile, BadOverlay, UnknownName
from velatura.files import reading
from velatura.overlays.composition import Blend, Composition, Leaf, Node, Series, leaves
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay

ENDING = ".hns"
MOST_BYTES = 2**14
DEEPEST = 16
MOST_LEAVES = 256
LARGEST = 1e6  # of a strength or a weight


def read(path: str | PathLike[str], find: Callable[[str], Overlay]) -> Composition:
    """Read a composition with its hypernetworks; find opens one by the name that it has in the file."""
    tree = read_hns(path)
    members: dict[str, Hypernetwork] = {}
    for name in dict.fromkeys(leaf.name for leaf in leaves(tree)):
        found = find(name)
        if not isinstance(found, Hypernetwork):
            raise BadFile(f"{Path(path).name} names {name!r}, which is no plain hypernetwork: name those themselves")
        members[name] = found
    return Composition(tree, members, Path(path).stem)


def read_hns(path: str | PathLike[str]) -> Node:
    """Read the composition in a file; the hypernetworks that it names are not looked for."""
    path = Path(path)
    with reading(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BadFile(f"{path.name} is longer than {MOST_BYTES} bytes: it is no composition of hypernetworks")
    try:
        tree = _node(_parsed(data), 0)
        count = sum(1 for _ in leaves(tree))
    except (ValueError, BadOverlay) as error:
        raise BadFile(f"{path.name} is no composition of hypernetworks: {error}") from None
    if count > MOST_LEAVES:
        raise BadFile(f"{path.name} names {count} hypernetworks: {MOST_LEAVES} are the most")
    return tree


def beside(composition: Path, name: str, endings: Sequence[str]) -> Path:
    """The file of the overlay that a composition names, in its folder; of several the one whose ending comes first."""
    for path in (composition.with_name(name + ending) for ending in endings):
        if path.is_file():
            return path
    there = {each.stem for each in composition.parent.iterdir() if each.suffix in endings}
    raise UnknownName.among("overlay", name, there, str(composition.parent))


def _parsed(data: bytes) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of odd escapes in names
            return ast.parse(data.decode("utf-8-sig").strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        place = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"it cannot be read{place}; write lists, dicts, names in quotes and numbers") from None


def _node(found: ast.expr, depth: int) -> Node:
    """The part that an expression stands for."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    match found:
        case ast.Constant(value=str()):
            return Leaf(_name(found))
        case ast.Tuple(elts=[ast.Constant(value=str()) as name, strength]):
            return Leaf(_name(name), _number(strength))
        case ast.Dict(keys=[ast.Constant(value=str()) as name], values=[strength]):
            return Leaf(_name(name), _number(strength))
        case ast.List(elts=[_, *_] as parts):
            return Series(tuple(_node(part, depth + 1) for part in parts))
        case ast.Set(elts=parts):
            return Blend(tuple(_node(part, depth + 1) for part in parts), (1.0,) * len(parts))
        case ast.Dict(keys=[_, *_] as keys, values=weights):
            parts = [key for key in keys if key is not None]
            if len(parts) < len(keys):
                raise ValueError("it unpacks a dict (**), where each part must stand with its weight")
            return Blend(tuple(_node(part, depth + 1) for part in parts), tuple(map(_number, weights)))
        case _:
            place = f"line {found.lineno}, column {found.col_offset + 1}"
            raise ValueError(f'what stands at {place} is neither a list, a dict nor ("name", strength)')


def _name(found: ast.Constant) -> str:
    """The name of a hypernetwork, as a prompt may call it: never a path."""
    name = str(found.value)
    if not name.strip() or not name.isprintable() or set(name) & set("/\\<>:"):
        raise ValueError(f"{name[:40]!r} cannot be the name of a hypernetwork; a path is none")
    return name.strip()


def _number(found: ast.expr) -> float:
    """A strength or a weight."""
    try:
        value: object = ast.literal_eval(found) if isinstance(found, ast.Constant | ast.UnaryOp) else None
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        raise ValueError(f"a plain number must stand in line {found.lineno}, column {found.col_offset + 1}")
    return float(value)
