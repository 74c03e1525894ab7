"""Read numbers and texts of a ComfyUI graph, which stand in a node or come from other nodes through links."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from velatura.sampling.recipe.comfyui.graph import MAX_DEPTH, Graph, GraphNode, Link, as_object, graph_error
from velatura.sampling.recipe.comfyui.nodes import NODE_KINDS, TAG_LOADERS
from velatura.sampling.recipe.comfyui.prompts import LORA_TAG_PATTERN

InputValue = TypeVar("InputValue")

MAX_TEXT_LENGTH = 100_000  # characters; joined texts can double at every node

# Names under which a node holds the one value that it gives
VALUE_NAMES = (
    "value",
    "seed",
    "noise_seed",
    "int",
    "Number",
    "number",
    "float",
    "string",
    "String",
    "text",
    "Text",
    "prompt",
    "positive",
    "negative",
    "populated_text",
    "multiline",
    "input",
)
# Nodes that join texts: names of the texts in their order, and of what is put between them
TEXT_JOINS = {
    "StringConcatenate": (r"string_[ab]", "delimiter", ""),
    "Text Concatenate": (r"text_[a-z]", "delimiter", " "),
    "JoinStrings": (r"string\d+", "delimiter", " "),
    "JoinStringMulti": (r"string_\d+", "delimiter", " "),
    "CR Text Concatenate": (r"text\d+", "separator", ""),
    "StringFunction|pysssss": (r"text_[a-c]", "", ", "),
    "easy promptConcat": (r"prompt\d+", "separator", ""),
}
ONE_OUTPUT = frozenset({"StringConcatenate", "Text Concatenate", "Text Multiline", "Int Literal", "String Literal"})
SHOWS_TEXT = ("ShowText", "Reroute", "PreviewAny", "Display", "easy showAnything", "CR Text", "Text Multiline")
SKIPS_EMPTY = frozenset({"Text Concatenate", "StringFunction|pysssss"})
# Nodes that make a text anew each time, or by a template that the picture does not contain
UNREPEATABLE_TEXTS = frozenset({"DPRandomGenerator", "SDXLPromptStyler", "SDXLPromptStylerAdvanced", "OneButtonPrompt"})
STYLER_OUTPUTS = {0: "text_positive", 1: "text_negative"}


def read_number(graph: Graph, node: GraphNode, *names: str) -> float | None:
    """Return the number of an input, or None if the node does not have it.

    Args:
        graph: The graph.
        node: The node with the input.
        names: Names of the input; the first that is there counts.

    Raises:
        BadRecipe: The value is not a number, or comes from a node whose number is not plain.
    """
    return _read_value(graph, node, names, _to_number, "a number")


def read_integer(graph: Graph, node: GraphNode, *names: str) -> int | None:
    """Return the whole number of an input, or None if the node does not have it (see read_number)."""
    number = read_number(graph, node, *names)
    return None if number is None else int(number)


def read_word(graph: Graph, node: GraphNode, *names: str) -> str | None:
    """Return the text of an input that is a name or a choice, or None if the node does not have it.

    Raises:
        BadRecipe: The value is not a text, or comes from a node whose text is not plain.
    """
    return _read_value(graph, node, names, _to_word, "a name")


def read_text(graph: Graph, node: GraphNode, name: str, depth: int = 0) -> str | None:
    """Return the text of an input with all that is joined into it, or None if the node does not have it.

    Args:
        graph: The graph.
        node: The node with the input.
        name: Name of the input.
        depth: How many nodes the text has come through.

    Raises:
        BadRecipe: The text is not plain, too long, or comes through a circle.
    """
    value = node.inputs.get(name)
    if isinstance(value, str):
        return value
    link = node.link(name)
    if link is None:
        if value is not None:
            raise graph_error(f"the {name} of {node} is {str(value)[:60]!r}, which is not a text")
        return None
    if depth > MAX_DEPTH:
        raise graph_error(f"its texts form a circle at {node}")
    text = _text_of(graph, graph.visit(link, node), link.slot, depth + 1)
    if len(text) > MAX_TEXT_LENGTH:
        raise graph_error(f"the text of {node} is longer than {MAX_TEXT_LENGTH:,} characters")
    return text


def _text_of(graph: Graph, node: GraphNode, slot: int, depth: int) -> str:
    """Return the text that a node gives."""
    _check_value_node(node, slot)
    if node.kind in UNREPEATABLE_TEXTS:
        graph.report.remark(f"{node.kind} changed the prompt in a way that the picture does not contain")
        name = STYLER_OUTPUTS.get(slot, "text")
        return read_text(graph, node, name if name in node.inputs else "text", depth) or ""
    if node.kind in TEXT_JOINS:
        return _join_texts(graph, node, depth)
    if node.kind in {"ImpactWildcardProcessor", "ImpactWildcardEncode"}:
        return read_text(graph, node, "populated_text", depth) or read_text(graph, node, "wildcard_text", depth) or ""
    if node.kind in TAG_LOADERS:
        return LORA_TAG_PATTERN.sub("", read_text(graph, node, "text", depth) or "")
    return _plain_text(graph, node, depth)


def _check_value_node(node: GraphNode, slot: int) -> None:
    """Refuse a node that gives neither a text nor a number, or nothing at this output.

    Raises:
        BadRecipe: The node is known for other outputs.
    """
    kind = NODE_KINDS.get(node.kind)
    types = kind.outputs.split() if kind else []
    has_one_output = node.kind.startswith("Primitive") or node.kind in ONE_OUTPUT
    if (types and (slot >= len(types) or types[slot] != "*")) or (has_one_output and slot > 0):
        raise graph_error(f"output {slot} of {node} is neither a text nor a number")


def _join_texts(graph: Graph, node: GraphNode, depth: int) -> str:
    pattern, separator_name, default = TEXT_JOINS[node.kind]
    given = (name for name, value in node.inputs.items() if value is not None and re.fullmatch(pattern, name))
    names = sorted(given, key=_natural_key)
    texts = [read_text(graph, node, name, depth) or "" for name in names]
    if len(names) < 2:
        graph.report.pass_over(node)
    separator = read_text(graph, node, separator_name, depth) if separator_name else default
    if node.inputs.get("linebreak_addition") == "true":  # of an older version of Text Concatenate
        separator = "\n"
    if separator is None:
        separator = default
        graph.report.pass_over(node)
    if node.inputs.get("action", "append") != "append":
        raise graph_error(f"its prompt comes from {node}, which replaces parts of a text")
    if node.kind in SKIPS_EMPTY:
        cleans = node.inputs.get("clean_whitespace", "true") in ("true", True)
        texts = [text.strip() if cleans else text for text in texts]
        texts = [text for text in texts if text]
    return separator.replace("\\n", "\n").join(texts)


def _plain_text(graph: Graph, node: GraphNode, depth: int) -> str:
    """Return the one text of a node that holds or shows a text."""
    names = [name for name, value in node.inputs.items() if isinstance(value, str) or as_text_link(node, name)]
    known = [name for name in VALUE_NAMES if name in names]
    candidates = known or names
    if not candidates or (len(candidates) != 1 and not known):
        raise graph_error(f"its prompt comes from {node}, which velatura does not support")
    is_plain = known and (len(names) == 1 or not node.links)
    if not is_plain or (node.links and not node.kind.startswith(SHOWS_TEXT)):
        graph.report.pass_over(node)
    return read_text(graph, node, candidates[0], depth) or ""


def as_text_link(node: GraphNode, name: str) -> Link | None:
    """Return the link of an input that may be a text: any that is not a model, an image or the like."""
    return None if name in {"model", "clip", "vae", "image", "images", "seed", "latent"} else node.link(name)


def _read_value(
    graph: Graph,
    node: GraphNode,
    names: Sequence[str],
    convert: Callable[[object], InputValue | None],
    expected: str,
) -> InputValue | None:
    """Return the value of the first input of these names that is there, or None if there is none.

    Raises:
        BadRecipe: It is not what was expected, or not plain.
    """
    name = next((name for name in names if node.inputs.get(name) is not None), None)
    if name is None:
        return None
    value = _literal(graph, node, name, convert)
    if value is None:
        raise graph_error(f"the {name} of {node} is {str(node.inputs[name])[:60]!r}, which is not {expected}")
    return value


def _literal(
    graph: Graph, node: GraphNode, name: str, convert: Callable[[object], InputValue | None]
) -> InputValue | None:
    """Return the value of an input, through the nodes that hold it; the first is asked for a value of that name."""
    seen: set[str] = set()
    value: object = node.inputs.get(name)
    while (link := node.link(name)) is not None:
        node = graph.visit(link, node)
        if node.key in seen:
            raise graph_error(f"its values form a circle at {node}")
        seen.add(node.key)
        _check_value_node(node, link.slot)
        if node.links and not node.kind.startswith("Reroute"):
            graph.report.pass_over(node)
        named: list[str] = [name, *VALUE_NAMES] if name in node.inputs else list(VALUE_NAMES)
        plain: list[str] = [
            other for other, held in node.inputs.items() if convert(held) is not None or node.link(other)
        ]
        found: str | None = next((other for other in named if other in plain), None)
        if found is None and len(plain) == 1:
            found = plain[0]
        if found is None:
            raise graph_error(f"the {name} comes from {node}, whose value is not plain")
        name, value = found, node.inputs[found]
    return convert(value)


def _to_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value  # seeds are longer than the digits of a float
    try:
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _to_word(value: object) -> str | None:
    if isinstance(value, str):
        return value
    content = (as_object(value) or {}).get("content")  # some extensions show a picture beside the name
    return content if isinstance(content, str) else None


def _natural_key(name: str) -> tuple[str, int]:
    """Return the key by which text2 comes before text10."""
    digits = re.search(r"\d+$", name)
    return (name[: digits.start()], int(digits[0])) if digits else (name, 0)
