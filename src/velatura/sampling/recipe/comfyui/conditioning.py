"""Read both sides of a prompt: the texts that reach a sampler, joined by AND and BREAK as their nodes combine them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from velatura.prompts.emphasis import EmphasisMode
from velatura.sampling.recipe.comfyui.graph import MAX_DEPTH, Graph, GraphNode, Link, graph_error
from velatura.sampling.recipe.comfyui.nodes import INSIDE_LOADER, LOADERS_WITH_TEXTS, TAG_LOADERS
from velatura.sampling.recipe.comfyui.prompts import LORA_TAG_PATTERN, TranslatedText, translate_text
from velatura.sampling.recipe.comfyui.values import read_integer, read_number, read_text, read_word

MAX_PARTS = 64  # texts that one side combines
TEXT_INPUTS = ("text", "prompt", "populated_text", "positive", "t5xxl", "text_g", "string")


class EncodedText(NamedTuple):
    """A text that is encoded, as a prompt of ours.

    Attributes:
        text: The translated text.
        clip: The text encoder that reads it.
        owner: The node that encodes it.
    """

    text: TranslatedText
    clip: Link | None
    owner: GraphNode


# Texts that are combined as AND does; each is a sequence of texts that are joined as BREAK does
Side = Sequence[Sequence[EncodedText]]


def read_side(graph: Graph, link: Link | None, side: str, owner: GraphNode, depth: int = 0) -> Side:
    """Return the texts of a conditioning.

    Args:
        graph: The graph.
        link: The conditioning.
        side: "positive" or "negative".
        owner: The node whose input it is, for messages.
        depth: How many conditionings are combined around this one.

    Raises:
        BadRecipe: The texts cannot be found.
    """
    if depth > MAX_DEPTH:
        raise graph_error(f"its conditionings form a circle at {owner}")
    node, slot = graph.source(link, side, owner)
    if node.kind in COMBINATIONS:
        return _combine(graph, node, side, depth + 1)
    if node.kind == "ConditioningZeroOut" and side == "positive":
        raise graph_error(f"{node} replaces the positive prompt by zeros, which no prompt can say")
    if node.kind == "ConditioningZeroOut":
        sides = read_side(graph, node.link("conditioning"), side, node, depth + 1)
        blank = EncodedText(TranslatedText("", has_emphasis=False), sides[0][0].clip, node)
        graph.report.remark(
            f"{node} replaces the {side} prompt by zeros, which is what an empty negative prompt means for SDXL; "
            "for other bases it is read as an empty prompt, and the picture will be different"
        )
        return [[blank]]
    if node.kind in LOADERS_WITH_TEXTS:
        return [[_text_of_loader(graph, node, slot, side)]]
    return [[_encode(graph, node, side)]]


def write_side(side: Side) -> str:
    """Write the texts of a side as one prompt."""
    texts = [" BREAK ".join(encoded.text.prompt.strip() for encoded in sequence) for sequence in side]
    if len(texts) < 2:
        return "".join(texts)
    # ComfyUI averages what the UNet predicts for each text, and AND adds it up
    weight = f"{1 / len(texts):.6f}".rstrip("0")
    return " AND ".join(f"{text} :{weight}" for text in texts)


def all_texts(side: Side) -> list[EncodedText]:
    """Return all texts of a side in their order."""
    return [encoded for sequence in side for encoded in sequence]


def choose_emphasis(graph: Graph, texts: Sequence[EncodedText]) -> EmphasisMode | None:
    """Return how emphasis is applied, or None if no word has one or it is applied as A1111 does."""
    modes: dict[EmphasisMode, None] = {encoded.text.emphasis: None for encoded in texts if encoded.text.has_emphasis}
    mode = next(iter(modes), None)
    if len(modes) > 1:
        graph.report.remark(f"its texts apply emphasis in different ways: {mode!r} is used for all")
    return None if mode == "Original" else mode


def remark_on_sizes(graph: Graph, texts: Sequence[EncodedText], size: object) -> None:
    """Remark on texts that tell SDXL another size than that of the picture.

    Args:
        graph: The graph.
        texts: The texts of both sides.
        size: The size that is sampled, as 512x768, or None.
    """
    for node in {text.owner.key: text.owner for text in texts if text.owner.kind == "CLIPTextEncodeSDXL"}.values():
        for names in (("width", "height"), ("target_width", "target_height")):
            width, height = (read_integer(graph, node, name) for name in names)
            stated = f"{width}x{height}"
            if size is not None and None not in (width, height) and stated != size:
                graph.report.remark(
                    f"{node} tells SDXL of a picture of {stated} ({names[0]}), and velatura of {size}, which is sampled"
                )


def _combine(graph: Graph, node: GraphNode, side: str, depth: int) -> Side:
    first_name, second_name = COMBINATIONS[node.kind]
    first = read_side(graph, node.link(first_name), side, node, depth)
    if node.kind == "ConditioningAverage":
        return _average(graph, node, first, side, depth)
    second = read_side(graph, node.link(second_name), side, node, depth)
    if len(first) + len(second) > MAX_PARTS:
        raise graph_error(f"its {side} prompt combines more than {MAX_PARTS} texts")
    if node.kind == "ConditioningConcat" and len(second) == 1:
        return [[*sequence, *second[0]] for sequence in first]
    if node.kind == "ConditioningConcat" or side == "negative":
        graph.report.remark(
            f"{node} combines texts of the {side} prompt in a way that is read as one text after another"
        )
        return [[*all_texts(first), *all_texts(second)]]
    return [*first, *second]


def _average(graph: Graph, node: GraphNode, first: Side, side: str, depth: int) -> Side:
    """Return the side that counts more in an average of two texts, which prompts cannot say."""
    strength = read_number(graph, node, "conditioning_to_strength")
    strength = 1.0 if strength is None else strength
    if strength == 1:
        return first
    second = read_side(graph, node.link("conditioning_from"), side, node, depth)
    if strength == 0:
        return second
    graph.report.pass_over(node)
    return first if strength >= 0.5 else second


def _encode(graph: Graph, node: GraphNode, side: str) -> EncodedText:
    """Return the text of a node that encodes one."""
    name = next((name for name in (*TEXT_INPUTS, side) if name in node.inputs), None)
    if name is None or (node.kind not in ENCODERS and node.link("clip") is None):
        raise graph_error(f"its {side} prompt comes from {node}, which velatura does not support")
    if node.link("clip") is None:
        raise graph_error(f"{node} has no clip")
    if node.kind not in ENCODERS:
        graph.report.pass_over(node)
    text = read_text(graph, node, name)
    if text is None:
        raise graph_error(f"{node} has no text")
    if node.kind == "CLIPTextEncodeSDXL":
        _check_sdxl_texts(graph, node, text)
    if node.kind in TAG_LOADERS:
        text = LORA_TAG_PATTERN.sub("", text)
    translated = _translate(graph, node, text, ("parser", "weight_interpretation"))
    return EncodedText(translated, node.link("clip"), node)


def _translate(graph: Graph, node: GraphNode, text: str, parser_names: Sequence[str]) -> TranslatedText:
    """Translate a text, unless an extension reads it as A1111 does.

    Args:
        graph: The graph.
        node: The node that encodes the text.
        text: The text.
        parser_names: Inputs that say how emphasis is read.
    """
    parser = (read_word(graph, node, *parser_names) or "comfy").lower()
    if parser == "a1111":
        restores_mean = node.inputs.get("mean_normalization") is not False
        has_emphasis = bool(re.search(r"[()\[\]]", text))
        return TranslatedText(text, has_emphasis, "Original" if restores_mean else "No norm")
    if parser != "comfy":
        graph.report.remark(f"{node} reads emphasis as {parser[:40]!r}, and velatura as ComfyUI does")
    return translate_text(text, graph.report)


def _check_sdxl_texts(graph: Graph, node: GraphNode, text: str) -> None:
    """Remark on what only this node can say: other texts and sizes for SDXL's two encoders."""
    if read_text(graph, node, "text_l") != text:
        graph.report.remark(f"{node} has another text for SDXL's first encoder, text_l: text_g is used for both")
    crop = [read_number(graph, node, name) or 0 for name in ("crop_w", "crop_h")]
    if any(crop):
        graph.report.remark(f"{node} tells SDXL of a crop at {crop[0]:g}, {crop[1]:g}: it is left out")


def _text_of_loader(graph: Graph, node: GraphNode, slot: int, side: str) -> EncodedText:
    """Return the text of a loader that has both prompts."""
    name = LOADERS_WITH_TEXTS[node.kind].outputs.get(slot)
    name = side if name == "" else name
    text = None if name is None else read_text(graph, node, name)
    if name is None or text is None:
        raise graph_error(f"output {slot} of {node} is not a prompt that velatura finds")
    keys = ("weight_interpretation", f"{name}_weight_interpretation")
    return EncodedText(_translate(graph, node, text, keys), Link(node.key, INSIDE_LOADER), node)


COMBINATIONS = {
    "ConditioningCombine": ("conditioning_1", "conditioning_2"),
    "ConditioningConcat": ("conditioning_to", "conditioning_from"),
    "ConditioningAverage": ("conditioning_to", "conditioning_from"),
}
ENCODERS = frozenset(
    {
        "CLIPTextEncode",
        "CLIPTextEncodeSDXL",
        "CLIPTextEncodeSDXLRefiner",
        "BNK_CLIPTextEncodeAdvanced",
        "AdvancedCLIPTextEncode",
        "smZ CLIPTextEncode",
        "ImpactWildcardEncode",
        "Text to Conditioning",
    }
)
