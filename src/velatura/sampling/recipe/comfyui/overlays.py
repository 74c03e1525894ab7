"""Read the overlays and the loaders behind the model and the text encoder of a sampler."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from velatura.sampling.recipe.comfyui.graph import (
    Graph,
    GraphNode,
    Link,
    as_object,
    graph_error,
    looks_like_lora_loader,
)
from velatura.sampling.recipe.comfyui.nodes import INSIDE_LOADER, LOADERS_WITH_TEXTS, TAG_LOADERS
from velatura.sampling.recipe.comfyui.prompts import LORA_TAG_PATTERN, file_stem
from velatura.sampling.recipe.comfyui.values import read_number, read_text, read_word

MODEL_NAMES = ("ckpt_name", "base_ckpt_name", "unet_name", "model_path", "model_name")
NO_FILE = {"none", "", "baked vae"}
ENCODER_NAMES = re.compile(r"clip_name\d*")
STACK_INPUTS = ("lora_stack", "optional_lora_stack")
SD_ENCODER_TYPES = {"stable_diffusion", "sdxl", "default"}


class LoraEntry(NamedTuple):
    """A LoRA as a node loads it.

    Attributes:
        name: Name of its file.
        unet, text: Strengths in the UNet and in the text encoders.
    """

    name: str
    unet: float
    text: float


class LoraInput(NamedTuple):
    """Names of the inputs that hold one LoRA; {} is its number.

    Attributes:
        name: Pattern of the input with the file.
        unet, text: Inputs with the strengths.
        simple: Inputs with one strength for both.
    """

    name: str
    unet: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    simple: tuple[str, ...] = ()


# Of ComfyUI, Efficiency Nodes, Comfyroll, rgthree, Easy Use and WAS
LORA_INPUTS = (
    LoraInput(
        r"lora_name",
        ("strength_model", "model_strength", "lora_model_strength", "model_weight"),
        ("strength_clip", "clip_strength", "lora_clip_strength", "clip_weight"),
        ("strength", "lora_weight", "lora_strength", "weight"),
    ),
    LoraInput(
        r"lora_name_\d+", ("model_weight_{}", "model_str_{}"), ("clip_weight_{}", "clip_str_{}"), ("lora_wt_{}",)
    ),
    LoraInput(r"lora_\d+_name", ("lora_{}_model_strength",), ("lora_{}_clip_strength",), ("lora_{}_strength",)),
    LoraInput(r"(?i)lora_\d+", simple=("strength_{}",)),
)


@dataclass
class Chain:
    """Nodes between a loader and a sampler.

    Attributes:
        loras: LoRAs in the order in which they are applied, by the node and their number in it.
        hypernetworks: Names and strengths, in the order in which they are applied.
        model: Name of the checkpoint's or the UNet's file.
        clip_skip: Layer of the text encoder, from the end.
        encoders: Files of text encoders that do not come from the checkpoint.
    """

    loras: dict[tuple[str, int], LoraEntry] = field(default_factory=dict[tuple[str, int], LoraEntry])
    hypernetworks: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    model: str | None = None
    clip_skip: int = 1
    encoders: list[str] = field(default_factory=list[str])


def read_chain(graph: Graph, link: Link | None, wanted: str, owner: GraphNode) -> Chain:
    """Return what a model or a text encoder has come through.

    Args:
        graph: The graph.
        link: The model or text encoder.
        wanted: "model" or "clip".
        owner: The node whose input it is, for messages.

    Raises:
        BadRecipe: A link leads nowhere or in a circle, or a strength is not a number.
    """
    chain, nodes = Chain(), list(_walk(graph, link, wanted, owner))
    for node in reversed(nodes):  # from the loader to the sampler
        for number, entry in enumerate(_loras_of(graph, node)):
            chain.loras[node.key, number] = entry
        _read_changes(graph, node, chain)
    if nodes:
        _read_loader(graph, nodes[-1], chain)
    return chain


def write_tags(graph: Graph, model: Chain, clip: Chain) -> str:
    """Write the overlays of a model and its text encoder as tags.

    A LoRA that a loader applies to both has one tag, also if only one of the two goes on to the sampler.
    """
    entries: dict[tuple[str, int], LoraEntry] = {}
    for key in _merge_orders(list(model.loras), list(clip.loras)):
        unet = model.loras[key].unet if key in model.loras else 0.0
        text = clip.loras[key].text if key in clip.loras else 0.0
        if unet or text:
            entries[key] = LoraEntry((model.loras.get(key) or clip.loras[key]).name, unet, text)
    stems = [file_stem(entry.name) for entry in entries.values()]
    tags: list[str] = []
    for entry, stem in zip(entries.values(), stems, strict=True):
        files = {other.name for other, other_stem in zip(entries.values(), stems, strict=True) if other_stem == stem}
        if len(files) > 1:
            graph.report.remark(f"two different LoRAs are called {stem!r}: rename one of the files and its tag")
        strengths = f"{entry.text:g}" if entry.text == entry.unet else f"{entry.text:g}:{entry.unet:g}"
        tags.append(_tag(graph, "lora", stem, strengths))
    tags += [_tag(graph, "hypernet", name, f"{strength:g}") for name, strength in model.hypernetworks if strength]
    return "".join(tags)


def read_vae(graph: Graph, link: Link | None, owner: GraphNode) -> str | None:
    """Return the name of a VAE that does not come from the checkpoint, or None."""
    if link is None:
        return None
    node, _ = graph.source(link, "vae", owner)
    name = read_word(graph, node, "vae_name")
    return None if name is None or name.lower() in NO_FILE else file_stem(name)


def _walk(graph: Graph, link: Link | None, wanted: str, owner: GraphNode) -> Iterator[GraphNode]:
    """Yield the nodes that a model or text encoder has come through, from the sampler on."""
    seen: set[str] = set()
    while True:
        if link is not None and link.slot == INSIDE_LOADER:
            node = graph.visit(link, owner)
        else:
            node, _ = graph.source(link, wanted, owner)
        if node.key in seen:
            raise graph_error(f"its nodes form a circle at {node}")
        seen.add(node.key)
        yield node
        link, owner = node.link(wanted), node
        if link is None:
            return


def _read_loader(graph: Graph, node: GraphNode, chain: Chain) -> None:
    """Read the names in the node that a model or text encoder comes from."""
    chain.encoders = [
        name
        for key in node.inputs
        if ENCODER_NAMES.fullmatch(key) and (name := read_word(graph, node, key)) and "ckpt_name" not in node.inputs
    ]
    name = read_word(graph, node, *MODEL_NAMES)
    if name is not None:
        chain.model = file_stem(name)
    elif not chain.encoders:
        graph.report.pass_over(node)
    kind = str(node.inputs.get("type", "default"))
    if chain.encoders and kind not in SD_ENCODER_TYPES:
        graph.report.remark(f"{node} loads text encoders of another family, {kind[:40]!r}, which velatura does not run")


def _read_changes(graph: Graph, node: GraphNode, chain: Chain) -> None:
    """Read what a node changes besides LoRAs: a hypernetwork, the layer of the text encoder, the prediction."""
    if node.kind == "HypernetworkLoader":
        name = read_word(graph, node, "hypernetwork_name")
        strength = read_number(graph, node, "strength")
        if name is None or strength is None:
            raise graph_error(f"{node} has no hypernetwork_name or no strength")
        chain.hypernetworks.append((file_stem(name), strength))
    layer_name = "stop_at_clip_layer" if node.kind == "CLIPSetLastLayer" else "clip_skip"
    if node.kind == "CLIPSetLastLayer" or node.kind in LOADERS_WITH_TEXTS:
        layer = read_number(graph, node, layer_name)
        if layer is None and node.kind == "CLIPSetLastLayer":
            raise graph_error(f"{node} has no {layer_name}")
        if layer is not None and layer >= 0:
            raise graph_error(
                f"the {layer_name} of {node} is {layer:g}, and layers are counted from the end, as -1 or -2"
            )
        chain.clip_skip = chain.clip_skip if layer is None else -int(layer)
    if node.kind == "ModelSamplingDiscrete":
        _remark_on_prediction(graph, node)


def _remark_on_prediction(graph: Graph, node: GraphNode) -> None:
    prediction, zero_snr = node.inputs.get("sampling"), node.inputs.get("zsnr")
    options = ["--prediction v"] * (prediction == "v_prediction") + ["--zero-snr"] * (zero_snr is True)
    if options:
        graph.report.remark(f"{node} changes how the base is sampled: open the base with {' '.join(options)}")
    if prediction not in {"eps", "v_prediction", "lcm"}:
        graph.report.pass_over(node)


def _loras_of(graph: Graph, node: GraphNode) -> list[LoraEntry]:
    """Return the LoRAs that a node applies, with those of the stacks that are connected to it."""
    found: list[LoraEntry] = []
    if not looks_like_lora_loader(node):
        return found
    names = [name for name in STACK_INPUTS if node.link(name)]
    for name in names:
        found += _loras_of_stack(graph, node.link(name), node)
    own = _own_loras(graph, node)
    if own is None and not names:
        graph.report.pass_over(node)
    return [*found, *(own or [])]


def _loras_of_stack(graph: Graph, link: Link | None, owner: GraphNode) -> list[LoraEntry]:
    """Return the LoRAs of a stack and of the stacks before it."""
    found: list[LoraEntry] = []
    seen: set[str] = set()
    while link is not None:
        node = graph.visit(link, owner)
        if node.key in seen:
            raise graph_error(f"its nodes form a circle at {node}")
        seen.add(node.key)
        own = _own_loras(graph, node)
        if own is None:
            graph.report.pass_over(node)
        found = [*(own or []), *found]
        owner, link = node, next((stack for name in STACK_INPUTS if (stack := node.link(name))), None)
    return found


def _own_loras(graph: Graph, node: GraphNode) -> list[LoraEntry] | None:
    """Return the LoRAs that a node names itself, or None if it has no input for them that is known."""
    text = next((name for name in ("populated_text", "text") if name in node.inputs), None)
    if node.kind in TAG_LOADERS and text is not None:
        return _loras_of_tags(graph, read_text(graph, node, text) or "")
    entries: list[LoraEntry] = []
    is_known = False
    for name in list(node.inputs):
        pattern = next((pattern for pattern in LORA_INPUTS if re.fullmatch(pattern.name, name)), None)
        if pattern is None:
            continue
        is_known = True
        entry = _read_entry(graph, node, name, pattern)
        if entry is not None:
            entries.append(entry)
    return entries if is_known else None


def _read_entry(graph: Graph, node: GraphNode, name: str, pattern: LoraInput) -> LoraEntry | None:
    """Return the LoRA of one input, or None if it is switched off."""
    row = as_object(node.inputs[name])
    if row is not None and "lora" in row:
        return _read_row(graph, GraphNode(node.key, node.kind, row))
    digits = re.search(r"\d+", name)
    number = digits[0] if digits else ""
    count = read_number(graph, node, "lora_count", "num_loras") if number else None
    switch = node.inputs.get(f"switch_{number}" if number else "switch", "On")
    if (count is not None and int(number) > count) or switch in ("Off", False) or node.inputs.get("toggle") is False:
        return None
    is_simple = node.inputs.get("input_mode", node.inputs.get("mode")) == "simple"
    unet_names = [template.format(number) for template in pattern.unet]
    text_names = [template.format(number) for template in pattern.text]
    simple_names = [template.format(number) for template in pattern.simple]
    unet = read_number(graph, node, *(simple_names if is_simple else [*unet_names, *simple_names]))
    text = read_number(graph, node, *(simple_names if is_simple else text_names))
    file_name = read_word(graph, node, name)
    if file_name is None:
        raise graph_error(f"{node} has no {name}")
    if file_name.strip().lower() in NO_FILE:
        return None
    if unet is None or (text is None and node.kind == "LoraLoader"):
        raise graph_error(f"{node} has no strength for {name}")
    return LoraEntry(file_name, unet, unet if text is None else text)


def _read_row(graph: Graph, row: GraphNode) -> LoraEntry | None:
    """Return the LoRA of a row of rgthree's loader, or None if it is switched off."""
    unet, text = read_number(graph, row, "strength"), read_number(graph, row, "strengthTwo")
    file_name = read_word(graph, row, "lora") or ""
    if row.inputs.get("on") is not True or unet is None or file_name.strip().lower() in NO_FILE:
        return None
    return LoraEntry(file_name, unet, unet if text is None else text)


def _loras_of_tags(graph: Graph, text: str) -> list[LoraEntry]:
    """Return the LoRAs of tags as extensions of ComfyUI read them: <lora:name:model:clip>."""
    entries: list[LoraEntry] = []
    for match in LORA_TAG_PATTERN.finditer(text):
        try:
            strengths = [float(strength) for strength in match["strengths"].split(":")[1:3]]
        except ValueError:
            graph.report.remark(f"{match[0]} in its prompt has a strength that velatura does not read: it is left out")
            continue
        unet = strengths[0] if strengths else 1.0
        entries.append(LoraEntry(match["name"], unet, strengths[1] if len(strengths) > 1 else unet))
    return entries


def _merge_orders(first: Sequence[tuple[str, int]], second: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the keys of both lists, each key of the second alone behind its neighbour there."""
    merged = list(first)
    position = 0
    for key in second:
        if key in merged:
            position = merged.index(key) + 1
            continue
        merged.insert(position, key)
        position += 1
    return merged


def _tag(graph: Graph, kind: str, name: str, strengths: str) -> str:
    if re.search(r"[<>:#\n]", name) or not name:
        graph.report.remark(f"{kind} {name!r} has a name that no tag can have: it is left out; rename the file")
        return ""
    return f"<{kind}:{name}:{strengths}>"
