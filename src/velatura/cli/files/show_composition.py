"""Print compositions of hypernetworks (.hns) for `velatura show`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from velatura.cli.screen import say, say_json
from velatura.formats.inspect.compositions import CompositionInfo, CompositionMember, inspect_composition
from velatura.overlays.composition import Leaf, Node, Series

INDENT = "  "


def show_composition(file: Path, *, as_json: bool) -> None:
    """Print a composition's tree and the files of the hypernetworks that it names."""
    verdict = inspect_composition(file)
    if as_json:
        say_json(verdict.model_dump_json(indent=2))
        return
    for label, value in _rows(verdict):
        say(f"{label:15}{value}")


def _rows(verdict: CompositionInfo) -> Iterator[tuple[str, str]]:
    """Yield labels and values; a label with several lines stands before the first."""
    unusable_count = sum(bool(member.problem) for member in verdict.members)
    yield (
        "kind",
        "hypernet, a composition"
        + (f" that cannot be used: {unusable_count} of its parts cannot" if unusable_count else ""),
    )
    yield from _label_lines("structure", _outline_lines(verdict.tree))
    yield from _label_lines("members", map(_describe_member, verdict.members))
    yield from _label_lines("widths", (f"{width}: {', '.join(names)}" for width, names in verdict.widths.items()))
    yield "made for", verdict.family or "unknown"
    yield "in a prompt", verdict.trigger
    yield "file", f"text, {verdict.file_bytes:,} bytes"
    yield "hash", f"{verdict.hash[:10]} (SHA-256 {verdict.hash})"
    yield "in A1111", "only with the extension Hypernetwork-MonkeyPatch, which invented this format"


def _label_lines(label: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for index, line in enumerate(lines):
        yield "" if index else label, line


def _outline_lines(node: Node, depth: int = 0, share: str = "") -> Iterator[str]:
    """Yield one line for a node of the tree and an indented line for each node below it."""
    prefix = f"{INDENT * depth}{share}"
    match node:
        case Leaf():
            yield f"{prefix}{node.name} at {node.strength:g}"
        case Series():
            yield f"{prefix}one after the other"
            for part in node.parts:
                yield from _outline_lines(part, depth + 1)
        case _:
            yield f"{prefix}side by side"
            total = sum(node.weights)
            for part, weight in zip(node.parts, node.weights, strict=True):
                yield from _outline_lines(part, depth + 1, f"{weight / total:.0%} of ")


def _describe_member(member: CompositionMember) -> str:
    if member.card is None:
        return f"{member.name}: cannot be used, {member.problem}"
    return f"{member.name}: {member.file} ({member.hash[:10]}), {member.card}"
