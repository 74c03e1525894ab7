"""Compositions of hypernetworks as text (.hns): a Python literal, which is parsed and never evaluated.

A list applies its parts in order. A set or a dict of parts and weights is their mean. ("name", strength),
{"name": strength} or "name" is one hypernetwork, by the name that prompts give it.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from velatura.errors import BadFile, BadOverlay, UnknownName
from velatura.files import open_for_reading
from velatura.formats.check_texts import shorten_text
from velatura.overlays.composition import Blend, Composition, Leaf, Node, Series, leaves
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay

HNS_SUFFIX = ".hns"
# Limits for strangers' files
MAX_FILE_BYTES = 2**14
MAX_DEPTH = 16
MAX_LEAVES = 256
MAX_NUMBER = 1e6  # of a strength or a weight
FORBIDDEN_IN_NAMES = set("/\\<>:")  # characters of paths and of tags


def read(path: str | PathLike[str], find: Callable[[str], Overlay]) -> Composition:
    """Read a composition and open its hypernetworks.

    Args:
        path: The .hns file.
        find: Opens an overlay by the name that the file has for it; called once for every name.

    Raises:
        BadFile: The file is not a composition, or names an overlay that is not a plain hypernetwork.
    """
    tree = read_hns(path)
    members: dict[str, Hypernetwork] = {}
    for name in dict.fromkeys(leaf.name for leaf in leaves(tree)):
        overlay = find(name)
        if not isinstance(overlay, Hypernetwork):
            raise BadFile(
                f"{Path(path).name} names {name!r}, which is not a plain hypernetwork: name hypernetworks only"
            )
        members[name] = overlay
    return Composition(tree, members, Path(path).stem)


def read_hns(path: str | PathLike[str]) -> Node:
    """Read a composition without opening the hypernetworks that it names.

    Raises:
        BadFile: The file is not a composition, or exceeds a limit of size, depth or number.
    """
    path = Path(path)
    with open_for_reading(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadFile(f"{path.name} is longer than {MAX_FILE_BYTES} bytes: it is not a composition of hypernetworks")
    try:
        tree = _to_node(_parse(data), 0)
        count = sum(1 for _ in leaves(tree))
    except (ValueError, BadOverlay) as error:
        raise BadFile(f"{path.name} is not a composition of hypernetworks: {error}") from None
    if count > MAX_LEAVES:
        raise BadFile(f"{path.name} names {count} hypernetworks: use at most {MAX_LEAVES}")
    return tree


def find_member_file(composition: Path, name: str, suffixes: Sequence[str]) -> Path:
    """Find the file of a hypernetwork beside the composition that names it.

    Args:
        composition: The .hns file.
        name: Name of the hypernetwork.
        suffixes: Endings to look for, the preferred one first.

    Raises:
        UnknownName: No file has this name; the message suggests similar names.
    """
    for suffix in suffixes:
        path = composition.with_name(name + suffix)
        if path.is_file():
            return path
    available = {file.stem for file in composition.parent.iterdir() if file.suffix in suffixes}
    raise UnknownName.with_suggestions("overlay", name, available, str(composition.parent))


def _parse(data: bytes) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of unknown escapes in names
            return ast.parse(data.decode("utf-8-sig").strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"it cannot be read{where}; write lists, dicts, names in quotes and numbers") from None


def _to_node(expression: ast.expr, depth: int) -> Node:
    """Convert an expression to the part of the composition that it describes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    match expression:
        case ast.Constant(value=str()):
            return Leaf(_read_name(expression))
        case ast.Tuple(elts=[ast.Constant(value=str()) as name, strength]):
            return Leaf(_read_name(name), _read_number(strength))
        case ast.Dict(keys=[ast.Constant(value=str()) as name], values=[strength]):
            return Leaf(_read_name(name), _read_number(strength))
        case ast.List(elts=[_, *_] as parts):
            return Series(tuple(_to_node(part, depth + 1) for part in parts))
        case ast.Set(elts=parts):
            return Blend(tuple(_to_node(part, depth + 1) for part in parts), (1.0,) * len(parts))
        case ast.Dict(keys=[_, *_] as keys, values=weights):
            parts = [key for key in keys if key is not None]
            if len(parts) < len(keys):
                raise ValueError("it unpacks a dict (**); write every part with its weight instead")
            return Blend(tuple(_to_node(part, depth + 1) for part in parts), tuple(map(_read_number, weights)))
        case _:
            raise ValueError(f'{_describe(expression)} is neither a list, a dict nor ("name", strength)')


def _read_name(constant: ast.Constant) -> str:
    """Return the name of a hypernetwork, as prompts give it; a path is refused."""
    name = str(constant.value)
    if not name.strip() or not name.isprintable() or set(name) & FORBIDDEN_IN_NAMES:
        raise ValueError(f"{name[:40]!r} is not a name that a hypernetwork can have; paths are not allowed")
    return name.strip()


def _read_number(expression: ast.expr) -> float:
    """Return a strength or a weight."""
    try:
        value: object = ast.literal_eval(expression) if isinstance(expression, ast.Constant | ast.UnaryOp) else None
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_NUMBER < value < MAX_NUMBER:
        raise ValueError(f"{_describe(expression)} is not a plain number below {MAX_NUMBER:.0e}")
    return float(value)


def _describe(expression: ast.expr) -> str:
    """Return the place of an expression, with what it is where that is a name or a value."""
    match expression:
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            shown = f" {shorten_text(name)!r}"
        case ast.Constant(value=value):
            shown = f" {shorten_text(str(value))!r}"
        case _:
            shown = ""
    return f"the expression{shown} at line {expression.lineno}, column {expression.col_offset + 1}"
