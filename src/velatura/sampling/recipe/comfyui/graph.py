"""A ComfyUI graph: nodes, the links between their slots, and what was found on the way and cannot be repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from velatura.errors import BadRecipe
from velatura.sampling.recipe.comfyui.node_inputs import find_unread_inputs
from velatura.sampling.recipe.comfyui.nodes import CONDITIONING_NAMES, INPUT_NAMES, NODE_KINDS, PIPES, TAG_LOADERS
from velatura.sampling.recipe.programs.settings import JsonObject

MAX_VISITS = 100_000  # nodes visited in one graph; a graph of combined conditionings can have more paths than atoms
MAX_DEPTH = 200  # texts inside texts, or conditionings inside conditionings
MAX_NAMES = 12  # nodes or values that one warning names


class Link(NamedTuple):
    """Output slot of a node that an input is connected to."""

    key: str
    slot: int


class Source(NamedTuple):
    """A node that a link leads to, once the nodes that only pass it on are left out, and the output slot."""

    node: GraphNode
    slot: int


@dataclass(frozen=True)
class GraphNode:
    """A node: its key in the graph, its kind (ComfyUI's class_type), and its inputs, which are values or links."""

    key: str
    kind: str
    inputs: JsonObject

    def __str__(self) -> str:
        return f"{self.kind} (node {self.key})"

    def link(self, name: str) -> Link | None:
        """Return what an input is connected to, or None if it has a value or is absent."""
        return as_link(self.inputs.get(name))

    @property
    def links(self) -> dict[str, Link]:
        """Return all inputs that are connected."""
        return {name: link for name, value in self.inputs.items() if (link := as_link(value)) is not None}


@dataclass
class Report:
    """Things in a graph that cannot be repeated, each once and in the order in which they were found.

    Attributes:
        unsupported: Kinds of nodes that change the picture and are passed over.
        inputs: Inputs of other nodes that are passed over.
        remarks: Whole sentences about other differences.
    """

    unsupported: dict[str, None] = field(default_factory=dict[str, None])
    inputs: dict[str, None] = field(default_factory=dict[str, None])
    remarks: dict[str, None] = field(default_factory=dict[str, None])

    def pass_over(self, node: GraphNode) -> None:
        """Record a node that changes the picture and is passed over."""
        self.unsupported[node.kind] = None

    def pass_over_inputs(self, nodes: Iterable[GraphNode]) -> None:
        """Record the inputs that are not read of nodes that are."""
        for node in nodes:
            if node.kind not in self.unsupported:
                self.inputs |= {f"{name} of {node}": None for name in find_unread_inputs(node.kind, node.inputs)}

    def remark(self, sentence: str) -> None:
        """Record another difference."""
        self.remarks[sentence] = None

    def warnings(self) -> Iterator[str]:
        """Return the warnings: one for all nodes, one for all inputs, and one for every other difference."""
        if self.unsupported:
            yield (
                f"the picture's ComfyUI graph has nodes that velatura does not support: {name_some(self.unsupported)}; "
                "the picture will be different"
            )
        if self.inputs:
            yield (
                f"the picture's ComfyUI graph has inputs that velatura does not support: {name_some(self.inputs)}; "
                "the picture may be different"
            )
        yield from (f"the picture's ComfyUI graph: {sentence}" for sentence in self.remarks)


@dataclass
class VisitCounter:
    """Number of nodes visited in a graph, for all its outputs together."""

    count: int = 0

    def add(self) -> None:
        """Count a visit.

        Raises:
            BadRecipe: There are more than MAX_VISITS.
        """
        self.count += 1
        if self.count > MAX_VISITS:
            raise graph_error("it is too large")


class Graph:
    """Nodes of a graph by their keys, with safe steps from a link to the node that makes its value.

    Attributes:
        nodes: The nodes by their keys.
        report: What was found on the way and cannot be repeated.
        visited: The nodes on the way, by their keys.
    """

    def __init__(self, nodes: Mapping[str, GraphNode], visits: VisitCounter | None = None) -> None:
        self.nodes = nodes
        self.report = Report()
        self.visited: dict[str, GraphNode] = {}
        self._visits = VisitCounter() if visits is None else visits

    @classmethod
    def parse(cls, prompt: JsonObject) -> Graph:
        """Build the graph from ComfyUI's API format: {key: {"class_type": ..., "inputs": {...}}}.

        Args:
            prompt: The parsed JSON. Entries that are not nodes are ignored.
        """
        nodes: dict[str, GraphNode] = {}
        for key, entry in prompt.items():
            node = as_object(entry)
            kind = node.get("class_type") if node is not None else None
            if node is not None and isinstance(kind, str):
                nodes[key] = GraphNode(key, kind, as_object(node.get("inputs")) or {})
        return cls(nodes)

    def with_own_report(self) -> Graph:
        """Return the same graph with an empty report; the visits of both count together."""
        return Graph(self.nodes, self._visits)

    def source(self, link: Link | None, wanted: str, owner: GraphNode) -> Source:
        """Follow a link to the node that makes its value, past nodes that pass the value on.

        Args:
            link: The link.
            wanted: The type of the value in lower case: "model", "clip", "positive", "negative", "latent", "image",
                "text", "number" and others of ComfyUI. Both sides of a prompt are conditionings.
            owner: The node whose input it is, for messages.

        Raises:
            BadRecipe: The link leads nowhere, in a circle, or to a slot of another type.
        """
        seen: set[Link] = set()
        while link is not None:
            if link in seen:
                raise graph_error(f"its nodes form a circle at {owner}")
            seen.add(link)
            node = self.visit(link, owner)
            following = self._passes_on(node, link.slot, wanted)
            if following is None:
                check_slot(node, link.slot, wanted, owner)
                return Source(node, link.slot)
            link, owner = following, node
        raise graph_error(f"{owner} has no {wanted}")

    def visit(self, link: Link, owner: GraphNode) -> GraphNode:
        """Return the node of a link.

        Raises:
            BadRecipe: The node is missing, or the graph has too many paths.
        """
        self._visits.add()
        node = self.nodes.get(link.key)
        if node is None:
            raise graph_error(f"{owner} is connected to node {link.key}, which does not exist")
        self.visited[node.key] = node
        return node

    def _passes_on(self, node: GraphNode, slot: int, wanted: str) -> Link | None:
        """Return the input whose value a node passes on at a slot, or None if the node makes the value itself."""
        if node.kind in PIPES:
            return self._through_pipe(node, slot, wanted)
        if node.kind.startswith("Reroute"):
            return next(iter(node.links.values()), None)
        kind = NODE_KINDS.get(node.kind)
        if kind is None:
            return self._through_unknown(node, slot, wanted)
        passes = kind.passes.split()
        if not passes or slot >= len(passes) or passes[slot] == "-":
            return None
        if not kind.is_harmless:
            self.report.pass_over(node)
        check_slot(node, slot, wanted, node)
        link = node.link(passes[slot])
        if link is None:
            raise graph_error(f"{node} has no {passes[slot]}")
        return link

    def _through_pipe(self, node: GraphNode, slot: int, wanted: str) -> Link | None:
        """Step through a node that bundles several values, at one of them."""
        pipe, fields = PIPES[node.kind]
        names = fields.split()
        if slot >= len(names):
            raise graph_error(f"{node} has no output {slot}")
        name = wanted if names[slot] == "pipe" else names[slot]
        return node.link(name) or next((node.link(other) for other in pipe.split() if node.link(other)), None)

    def _through_unknown(self, node: GraphNode, slot: int, wanted: str) -> Link | None:
        """Step through a node of an unknown kind, if its input for the wanted value is plain from its name."""
        is_lora_loader = wanted in {"model", "clip"} and looks_like_lora_loader(node)
        is_sampler = wanted == "latent" and "steps" in node.inputs
        name = None if is_lora_loader or is_sampler else _plain_input(node, slot, wanted)
        if name is None:
            return None
        self.report.pass_over(node)
        return node.link(name)


def looks_like_lora_loader(node: GraphNode) -> bool:
    """Return True for a node with LoRA in its name or in that of an input, or that reads LoRA tags."""
    if node.kind in TAG_LOADERS or "lora" in node.kind.lower():
        return True
    return any(name.lower().startswith(("lora", "optional_lora")) for name in node.inputs)


def _plain_input(node: GraphNode, slot: int, wanted: str) -> str | None:
    """Return the name of the connected input whose value an unknown node most likely changes and passes on."""
    links = node.links
    if wanted in CONDITIONING_NAMES:
        sides = [name for name in ("positive", "negative") if name in links]
        if len(sides) == 2:
            # The outputs repeat the inputs in their order, so that the side of a prompt is that of its slot
            conditionings = [name for name in links if name in {"model", *sides}]
            return conditionings[slot] if slot < len(conditionings) and conditionings[slot] in sides else None
        return next((name for name in ("conditioning", *CONDITIONING_NAMES) if name in links), None)
    return next((name for name in INPUT_NAMES.get(wanted, ()) if name in links), None)


def check_slot(node: GraphNode, slot: int, wanted: str, owner: GraphNode) -> None:
    """Refuse the slot of a known node whose value has another type than the wanted one.

    Raises:
        BadRecipe: The slot does not exist or has another type.
    """
    kind = NODE_KINDS.get(node.kind)
    if kind is None or not kind.outputs:
        return
    outputs = kind.outputs.lower().split()
    actual = outputs[slot] if slot < len(outputs) else "nothing"
    expected = "conditioning" if wanted in CONDITIONING_NAMES else wanted
    if actual not in {expected, "*"}:
        raise graph_error(
            f"{owner} needs a {expected} and is connected to output {slot} of {node}, which gives {actual}"
        )


def as_link(value: object) -> Link | None:
    """Return a link, if a value of an input is one: [key of a node, number of a slot]."""
    if not isinstance(value, list):
        return None
    parts = cast("list[object]", value)
    if len(parts) != 2 or not isinstance(parts[0], str | int) or isinstance(parts[1], bool):
        return None
    key, slot = parts
    return Link(str(key), int(slot)) if isinstance(slot, int) and slot >= 0 else None


def as_object(value: object) -> JsonObject | None:
    """Return a JSON object, or None for anything else."""
    return cast("JsonObject", value) if isinstance(value, dict) else None


def name_some(names: Mapping[str, object] | list[str]) -> str:
    """Return names for a message, not more than a line can show."""
    shown = list(names)
    rest = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return ", ".join(name[:60] for name in shown[:MAX_NAMES]) + rest


def graph_error(reason: str) -> BadRecipe:
    """Return the error that refuses a graph.

    Args:
        reason: What was found.
    """
    return BadRecipe(f"the picture's ComfyUI graph cannot be read: {reason}; give the prompt and settings yourself")
