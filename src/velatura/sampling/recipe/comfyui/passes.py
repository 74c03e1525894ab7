"""Find the samplers that a picture has come through, and what lies between: sizes, upscaling, init images, masks."""

from __future__ import annotations

from dataclasses import dataclass, field

from velatura.errors import BadRecipe
from velatura.sampling.recipe.comfyui.graph import Graph, GraphNode, Link, graph_error
from velatura.sampling.recipe.comfyui.nodes import INPUT_NAMES, LOADERS_WITH_TEXTS
from velatura.sampling.recipe.comfyui.prompts import file_stem
from velatura.sampling.recipe.comfyui.samplers import LATENT_NAMES, SamplerCall, is_sampler, read_call
from velatura.sampling.recipe.comfyui.values import read_integer, read_number, read_word

MAX_PASSES = 100
SAVES_IMAGE = ("save", "preview", "output", "websocket", "civitai", "image saver")
LATENT_UPSCALERS = {
    "nearest-exact": "Latent (nearest-exact)",
    "bilinear": "Latent",
    "bicubic": "Latent (bicubic)",
}
UNNAMED_MODEL = "a model"  # an upscaler that the graph does not name
IMAGE_UPSCALERS = {"lanczos": "Lanczos", "nearest-exact": "Nearest"}
HARMLESS_IMAGE_NODES = frozenset({"PreviewImage", "SaveImage", "ImageFromBatch"})
ENCODES_IMAGE = frozenset({"VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "InpaintModelConditioning"})
MASKS_LATENTS = frozenset({"VAEEncodeForInpaint", "SetLatentNoiseMask", "InpaintModelConditioning"})

Size = tuple[int, int]


@dataclass
class Between:
    """Nodes before a sampler, up to the sampler or the source before it.

    Attributes:
        scale: Factor by which a size grows, or None.
        size: A new size in pixels, where a side of 0 follows from the other, or None.
        upscaler: A1111's name of the upscaler, or None.
        is_by_model: True if a model upscales, by a factor that the graph does not say.
        crops: False if another aspect ratio stretches what it is applied to.
        has_mask: True if only a part of the latents changes.
        image: The node with the init image, if there is one.
        empty: The node with the empty latents, if there is one.
        nodes: Nodes that decode, encode or resize.
    """

    scale: float | None = None
    size: Size | None = None
    upscaler: str | None = None
    crops: bool = True
    is_by_model: bool = False
    has_mask: bool = False
    image: GraphNode | None = None
    empty: GraphNode | None = None
    nodes: list[GraphNode] = field(default_factory=list[GraphNode])

    @property
    def resizes(self) -> bool:
        """True if the size changes."""
        return self.scale is not None or self.size is not None


@dataclass
class Passes:
    """Samplers of one picture from the first to the last, with the nodes before each and after the last."""

    calls: list[SamplerCall]
    before: list[Between]
    after: Between
    decoder: GraphNode | None


def find_outputs(graph: Graph) -> list[GraphNode]:
    """Return the nodes that end the graph with a picture: those that save one, else that show one, else samplers.

    Raises:
        BadRecipe: Such a node is missing.
    """
    images = [
        node
        for node in graph.nodes.values()
        if any(node.link(name) for name in INPUT_NAMES["image"])
        and any(word in node.kind.lower() for word in SAVES_IMAGE)
    ]
    saving = [node for node in images if "preview" not in node.kind.lower()]
    if saving or images:
        return saving or images
    used = {link.key for node in graph.nodes.values() for link in node.links.values()}
    samplers = [node for node in graph.nodes.values() if is_sampler(node)]
    ends = [node for node in graph.nodes.values() if node.key not in used and _leads_to_picture(node)]
    found = ends or [node for node in samplers if node.key not in used] or samplers
    if not found:
        kinds = ", ".join(list(dict.fromkeys(node.kind[:40] for node in graph.nodes.values()))[:8])
        raise graph_error(f"none of its nodes samples or saves a picture ({kinds or 'it has no nodes'})")
    return found


def find_passes(graph: Graph, output: GraphNode) -> Passes:
    """Return the samplers that the picture of an output node has come through.

    Raises:
        BadRecipe: No sampler leads to it, or a link leads nowhere or in a circle.
    """
    after = Between()
    if is_sampler(output):
        sampler, decoder = output, None
    else:
        sampler, decoder = _find_last_sampler(graph, output, after)
    calls, before = [read_call(graph, sampler)], list[Between]()
    seen = {sampler.key}
    while True:
        between = Between()
        previous = _find_previous_sampler(graph, calls[0], between)
        before.insert(0, between)
        if previous is None:
            return Passes(calls, before, after, decoder)
        if previous.key in seen or len(calls) == MAX_PASSES:
            raise graph_error(f"its samplers form a circle at {previous}")
        seen.add(previous.key)
        calls.insert(0, read_call(graph, previous))


def comes_from_sampler(graph: Graph, output: GraphNode) -> bool:
    """Return True if the picture of an output node was sampled: others save masks, depth maps and the like."""
    if is_sampler(output):
        return True
    try:
        _find_last_sampler(graph, output, Between())
    except BadRecipe:
        return False
    return True


def latent_size(graph: Graph, between: Between) -> Size | None:
    """Return the size in pixels of empty latents, or None if the graph does not say it plainly."""
    node = between.empty
    if node is None:
        return None
    names = ("empty_latent_width", "empty_latent_height") if node.kind in LOADERS_WITH_TEXTS else ("width", "height")
    size = [read_integer(graph, node, name) for name in names]
    if node.kind not in LOADERS_WITH_TEXTS and any(side is None or side <= 0 for side in size):
        return None
    if size[0] is None or size[1] is None:
        return None
    return size[0], size[1]


def _leads_to_picture(node: GraphNode) -> bool:
    return any(node.link(name) for name in (*INPUT_NAMES["image"], "samples")) and "Save" not in node.kind


def _find_last_sampler(graph: Graph, output: GraphNode, after: Between) -> tuple[GraphNode, GraphNode | None]:
    """Walk from an output node to the sampler behind it, and return that with the node that decodes its latents."""
    name = next(name for name in (*INPUT_NAMES["image"], "samples") if output.link(name))
    owner, link = output, output.link(name)
    while True:
        node, link = _walk_image(graph, link, owner, after)
        if node is not None and is_sampler(node):
            return node, None
        if node is None or link is None:
            raise graph_error(f"the picture of {output} does not come from a sampler")
        decoder = node
        source, _ = _walk_latent(graph, link, node, after)
        if is_sampler(source):
            return source, decoder
        raise graph_error(f"the picture of {output} comes from {source}, and not from a sampler")


def _walk_image(
    graph: Graph, link: Link | None, owner: GraphNode, between: Between
) -> tuple[GraphNode | None, Link | None]:
    """Walk over images to the node that decodes latents, and return it with its latents.

    Returns:
        A sampler that gives an image with None; a decoder with the link to its latents; an image that is loaded with
        None; and None with None for anything else.
    """
    seen: set[str] = set()
    while link is not None:
        source = graph.source(link, "image", owner)
        node = source.node
        if node.key in seen:
            raise graph_error(f"its nodes form a circle at {node}")
        seen.add(node.key)
        if is_sampler(node):
            return node, None
        latent = node.link("samples") or node.link("latent")
        if latent is not None:
            if "decode" not in node.kind.lower():
                graph.report.pass_over(node)
            return node, latent
        owner, link = node, next((node.link(name) for name in INPUT_NAMES["image"] if node.link(name)), None)
        if link is None:
            between.image = node
            return node, None
        _read_image_change(graph, node, between)
    return None, None


def _read_image_change(graph: Graph, node: GraphNode, between: Between) -> None:
    """Read how a node resizes an image."""
    between.nodes.append(node)
    if node.kind == "ImageUpscaleWithModel":
        model = node.link("upscale_model")
        name = read_word(graph, graph.visit(model, node), "model_name") if model else None
        between.upscaler = file_stem(name) if name else UNNAMED_MODEL
        between.is_by_model = True
        return
    if node.kind == "RepeatImageBatch":
        _read_repeats(graph, node)
        return
    if node.kind not in {"ImageScale", "ImageScaleBy"}:
        if node.kind not in HARMLESS_IMAGE_NODES:
            graph.report.pass_over(node)
        return
    method = read_word(graph, node, "upscale_method") or ""
    between.upscaler = between.upscaler or IMAGE_UPSCALERS.get(method, method)
    _read_resizing(graph, node, between)


def _read_resizing(graph: Graph, node: GraphNode, between: Between) -> None:
    """Read a new size or a factor. The node that is nearest to the next sampler decides the size."""
    if between.resizes:
        return
    scale = read_number(graph, node, "scale_by")
    if scale is not None:
        between.scale = scale
        return
    width, height = read_integer(graph, node, "width"), read_integer(graph, node, "height")
    if width is None or height is None:
        raise graph_error(f"{node} has no width and height")
    between.size = width, height
    between.crops = node.inputs.get("crop") == "center" or 0 in between.size


def _find_previous_sampler(graph: Graph, call: SamplerCall, between: Between) -> GraphNode | None:
    """Walk from the latents that a sampler starts from to the sampler before it, or to their source."""
    link, owner = call.links.get("latent"), call.node
    if link is None:
        raise graph_error(f"{owner} has no latents to start from")
    while True:
        node, slot = _walk_latent(graph, link, owner, between)
        if is_sampler(node):
            return node
        _read_latent_source(graph, node, between)
        if between.empty is not None:
            return None
        image, latent = _walk_image(graph, node.link("pixels") or node.link("image"), node, between)
        if image is None:
            raise graph_error(f"{node} (output {slot}) has no image")
        if is_sampler(image):
            return image
        if latent is None:
            return None
        link, owner = latent, image


def _read_latent_source(graph: Graph, node: GraphNode, between: Between) -> None:
    """Read a node that creates empty latents, or encodes an image."""
    kind = node.kind.lower()
    if node.kind not in ENCODES_IMAGE and not node.link("pixels"):
        between.empty = node
        is_plain = "latent" in kind or "width" in node.inputs or node.kind in LOADERS_WITH_TEXTS
    else:
        between.nodes.append(node)
        between.has_mask = between.has_mask or node.kind in MASKS_LATENTS
        is_plain = node.kind in ENCODES_IMAGE or "encode" in kind
    if not is_plain:
        graph.report.pass_over(node)


def _walk_latent(graph: Graph, link: Link, owner: GraphNode, between: Between) -> tuple[GraphNode, int]:
    """Walk over latents to the node that samples, encodes or creates them."""
    seen: set[str] = set()
    while True:
        node, slot = graph.source(link, "latent", owner)
        if node.key in seen:
            raise graph_error(f"its nodes form a circle at {node}")
        seen.add(node.key)
        following = next((node.link(name) for name in LATENT_NAMES if node.link(name)), None)
        if is_sampler(node) or node.kind in ENCODES_IMAGE or following is None:
            return node, slot
        _read_latent_change(graph, node, between)
        owner, link = node, following


def _read_latent_change(graph: Graph, node: GraphNode, between: Between) -> None:
    """Read how a node resizes or masks latents."""
    between.nodes.append(node)
    if node.kind in MASKS_LATENTS:
        between.has_mask = True
    elif node.kind in {"LatentUpscale", "LatentUpscaleBy"}:
        method = read_word(graph, node, "upscale_method") or ""
        between.upscaler = LATENT_UPSCALERS.get(method, f"Latent ({method})")
        if method not in LATENT_UPSCALERS:
            graph.report.remark(f"{node} upscales latents by {method[:40]!r}: velatura takes 'Latent' instead")
            between.upscaler = "Latent"
        _read_resizing(graph, node, between)
    elif node.kind in {"RepeatLatentBatch", "LatentFromBatch"}:
        _read_repeats(graph, node)
    else:
        graph.report.pass_over(node)


def _read_repeats(graph: Graph, node: GraphNode) -> None:
    """Remark on a node by which one seed makes several pictures."""
    if (read_integer(graph, node, "amount", "batch_index") or 0) != (1 if "amount" in node.inputs else 0):
        graph.report.remark(f"{node} makes several pictures from one seed: only the first of them can be repeated")
