"""Convert a ComfyUI workflow, as its editor saves it, into the graph that its server runs (the API format)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from velatura.sampling.recipe.comfyui.graph import Link, as_object, graph_error
from velatura.sampling.recipe.comfyui.node_inputs import NODE_INPUTS
from velatura.sampling.recipe.programs.settings import JsonObject

MUTED, BYPASSED = 2, 4  # values of a node's mode
MAX_SUBGRAPH_DEPTH = 10
MAX_NODES = 20_000  # with those of all subgraphs: one that is used seven times counts seven times
MAX_STEPS = 200_000  # nodes, connections and inputs that are looked at; a graph of 10,000 nodes takes about half
LETTERS_PER_STEP = 100  # of a node's key
MAX_HOPS = 1_000  # nodes between two ends of a connection that are left out of the graph
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"  # stand for the ends of a subgraph in its links
SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize", "")  # follow the value of a seed
IGNORED_KINDS = frozenset({"Note", "MarkdownNote", "PrimitiveNode", "SetNode", "GetNode"})


@dataclass
class Editor:
    """Nodes of a workflow and the connections of their inputs, with those of its subgraphs.

    Attributes:
        nodes: Nodes by their keys; a node of a subgraph has the key of the subgraph's node before its own.
        origins: Where an input comes from, by the key of the node and the number of the input.
        inner_outputs: Where the outputs of subgraphs come from, by the key of the subgraph's node and the output.
        set_nodes: Keys of the nodes that set a value, by the value's name.
    """

    nodes: dict[str, JsonObject] = field(default_factory=dict[str, JsonObject])
    origins: dict[tuple[str, int], Link] = field(default_factory=dict[tuple[str, int], Link])
    inner_outputs: dict[Link, Link] = field(default_factory=dict[Link, Link])
    set_nodes: dict[str, str] = field(default_factory=dict[str, str])
    _steps: int = 0

    def add_node(self, key: str, node: JsonObject) -> None:
        """Add a node.

        Raises:
            BadRecipe: The workflow has more than MAX_NODES.
        """
        self.count_steps(1 + len(key) // LETTERS_PER_STEP)
        self.nodes[key] = node
        if len(self.nodes) > MAX_NODES:
            raise graph_error(f"it is too large: with its subgraphs it has more than {MAX_NODES:,} nodes")
        if node.get("type") == "SetNode":
            self.set_nodes.setdefault(_value_name(node), key)

    def count_steps(self, count: int) -> None:
        """Count steps of work.

        Raises:
            BadRecipe: There are more than MAX_STEPS.
        """
        self._steps += count
        if self._steps > MAX_STEPS:
            raise graph_error("it is too large: it has too many connections")


def is_workflow(values: JsonObject) -> bool:
    """Return True for the JSON of ComfyUI's editor."""
    return isinstance(values.get("nodes"), list) and isinstance(values.get("links"), list)


def graph_from_workflow(workflow: JsonObject) -> dict[str, object]:
    """Return the graph of a workflow in ComfyUI's API format.

    Muted nodes are left out, and bypassed ones are stepped over. A node whose values have no known names keeps its
    connections alone.

    Args:
        workflow: The JSON of the editor.

    Raises:
        BadRecipe: Subgraphs are inside each other without end, or the workflow is too large.
    """
    editor = Editor()
    definitions = as_object(workflow.get("definitions")) or {}
    subgraphs = {str(entry.get("id")): entry for entry in _objects(definitions.get("subgraphs"))}
    _add_nodes(editor, workflow, subgraphs)
    graph: dict[str, object] = {}
    for key, node in editor.nodes.items():
        kind = str(node.get("type"))
        if kind in IGNORED_KINDS or kind in subgraphs or node.get("mode") in (MUTED, BYPASSED):
            continue
        inputs = _widget_values(node, kind)
        for number, entry in enumerate(_objects(node.get("inputs"))):
            origin = _resolve(editor, editor.origins.get((key, number)))
            if origin is not None:
                inputs[str(entry.get("name") or "any")] = _value_of(editor, origin)
        graph[key] = {"class_type": kind, "inputs": inputs}
    return graph


def _add_nodes(
    editor: Editor, graph: JsonObject, subgraphs: Mapping[str, JsonObject], prefix: str = "", depth: int = 0
) -> None:
    """Add the nodes and connections of a workflow or of a subgraph."""
    if depth > MAX_SUBGRAPH_DEPTH:
        raise graph_error("its subgraphs are inside each other without end")
    for link in _links(graph.get("links")):
        origin_key, origin_slot, target_key, target_slot = link
        editor.count_steps(1 + (len(prefix) + len(origin_key) + len(target_key)) // LETTERS_PER_STEP)
        owner = prefix.removesuffix(":")
        if origin_key == SUBGRAPH_INPUT and prefix:
            origin = Link(owner, -1 - origin_slot)  # an input of the subgraph's node
        else:
            origin = Link(prefix + origin_key, origin_slot)
        if target_key == SUBGRAPH_OUTPUT and prefix:
            editor.inner_outputs[Link(owner, target_slot)] = origin
        else:
            editor.origins[prefix + target_key, target_slot] = origin
    for node in _objects(graph.get("nodes")):
        key = f"{prefix}{node.get('id')}"
        editor.add_node(key, node)
        subgraph = subgraphs.get(str(node.get("type")))
        if subgraph is not None and node.get("mode") not in (MUTED, BYPASSED):
            _add_nodes(editor, subgraph, subgraphs, f"{key}:", depth + 1)


def _resolve(editor: Editor, link: Link | None) -> Link | None:
    """Follow a connection past bypassed nodes, the ends of subgraphs, and pairs of set and get nodes."""
    for _ in range(MAX_HOPS):
        if link is None or link.key not in editor.nodes:
            return None
        editor.count_steps(1)
        node = editor.nodes[link.key]
        kind = str(node.get("type"))
        if link.slot < 0:
            link = editor.origins.get((link.key, -1 - link.slot))
        elif node.get("mode") == MUTED:
            return None
        elif node.get("mode") == BYPASSED:
            link = _around(editor, node, link)
        elif link in editor.inner_outputs:
            link = editor.inner_outputs[link]
        elif kind == "GetNode":
            link = _set_by_name(editor, node)
        elif kind == "SetNode":
            link = editor.origins.get((link.key, 0))
        else:
            return link
    raise graph_error("its connections form a circle")


def _around(editor: Editor, node: JsonObject, link: Link) -> Link | None:
    """Return where a bypassed node takes the value that it passes on: its first input of the same type."""
    outputs, inputs = _objects(node.get("outputs")), _objects(node.get("inputs"))
    editor.count_steps(len(outputs) + len(inputs))
    if link.slot >= len(outputs):
        return None
    kind = outputs[link.slot].get("type")
    numbers = [number for number, entry in enumerate(inputs) if entry.get("type") == kind]
    number = link.slot if link.slot in numbers else next(iter(numbers), None)
    return None if number is None else editor.origins.get((link.key, number))


def _set_by_name(editor: Editor, node: JsonObject) -> Link | None:
    key = editor.set_nodes.get(_value_name(node))
    return None if key is None else editor.origins.get((key, 0))


def _value_name(node: JsonObject) -> str:
    """Return the name under which a node sets or gets a value."""
    return str(_list(node.get("widgets_values"))[:1])


def _value_of(editor: Editor, origin: Link) -> object:
    """Return the value of a primitive node, or the link to any other node."""
    node = editor.nodes[origin.key]
    values = _list(node.get("widgets_values"))
    if node.get("type") == "PrimitiveNode" and values:
        return values[0]
    return [origin.key, origin.slot]


def _widget_values(node: JsonObject, kind: str) -> dict[str, object]:
    """Return the values of a node by their names, as far as the names are known."""
    saved = node.get("widgets_values")
    named = as_object(saved)
    if named is not None:
        return {name: value for name, value in named.items() if not isinstance(value, list)}
    values = _list(saved)
    rows = [row for value in values if (row := as_object(value)) and "lora" in row]
    if rows:  # rgthree's loader
        return {f"lora_{number}": row for number, row in enumerate(rows, 1)}
    names = _widget_names(node, kind)
    result: dict[str, object] = {}
    remaining = list(values)
    for name in names:
        if not remaining:
            break
        result[name] = remaining.pop(0)
        if name in {"seed", "noise_seed"} and remaining and _is_seed_control(remaining[0]):
            remaining.pop(0)
    if kind in NODE_INPUTS:  # of a newer version, or of an extension
        result |= {
            f"value {number}": value
            for number, value in enumerate(remaining, 1 + len(values) - len(remaining))
            if not _is_seed_control(value)
        }
    return {name: value for name, value in result.items() if not isinstance(value, list)}


def _is_seed_control(value: object) -> bool:
    """Return True for what the editor saves behind a seed: what becomes of it afterwards."""
    return value is None or isinstance(value, bool) or value in SEED_CONTROLS


def _widget_names(node: JsonObject, kind: str) -> list[str]:
    """Return the names of a node's values: those of its kind, else those that newer editors save with its inputs."""
    if kind in NODE_INPUTS:
        return NODE_INPUTS[kind].widgets.split()
    widgets = [as_object(entry.get("widget")) for entry in _objects(node.get("inputs"))]
    return [str(widget.get("name")) for widget in widgets if widget is not None]


def _links(links: object) -> Iterator[tuple[str, int, str, int]]:
    """Yield the connections of a workflow: node and output at their start, node and input at their end."""
    for link in _list(links):
        entry = as_object(link)
        if entry is not None:
            ends = [entry.get(name) for name in ("origin_id", "origin_slot", "target_id", "target_slot")]
        else:
            ends = _list(link)[1:5]
        if len(ends) == 4 and isinstance(ends[1], int) and isinstance(ends[3], int) and min(ends[1], ends[3]) >= 0:
            yield str(ends[0]), ends[1], str(ends[2]), ends[3]


def _objects(values: object) -> list[JsonObject]:
    """Return the objects of a list; anything else is an empty one, so that the numbers of the others stay."""
    return [as_object(value) or {} for value in _list(values)]


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
