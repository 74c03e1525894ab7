"""Translate a ComfyUI graph into infotext."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from velatura.errors import warn
from velatura.sampling.recipe.comfyui.conditioning import (
    Side,
    all_texts,
    choose_emphasis,
    read_side,
    remark_on_sizes,
    write_side,
)
from velatura.sampling.recipe.comfyui.graph import Graph, as_object, graph_error
from velatura.sampling.recipe.comfyui.nodes import NODE_KINDS
from velatura.sampling.recipe.comfyui.overlays import Chain, read_chain, read_vae, write_tags
from velatura.sampling.recipe.comfyui.passes import (
    IMAGE_UPSCALERS,
    LATENT_UPSCALERS,
    UNNAMED_MODEL,
    Between,
    Passes,
    Size,
    comes_from_sampler,
    find_outputs,
    find_passes,
    latent_size,
)
from velatura.sampling.recipe.comfyui.samplers import SamplerCall, sampler_fields, starts_at_sigma_max
from velatura.sampling.recipe.comfyui.values import read_integer
from velatura.sampling.recipe.comfyui.workflow import graph_from_workflow, is_workflow
from velatura.sampling.recipe.infotext import NEGATIVE_PREFIX, write_infotext
from velatura.sampling.recipe.programs.settings import JsonObject, parse_object

EXIF_PREFIX = re.compile(r"\s*(prompt|workflow)\s*:\s*(?=\{)", re.IGNORECASE)
KNOWN_UPSCALERS = frozenset({*LATENT_UPSCALERS.values(), *IMAGE_UPSCALERS.values()})
MAX_OUTPUTS = 100  # nodes of one graph that save a picture
FULL_DENOISE = 0.9999  # above it, ComfyUI takes all steps
OTHER_LATENTS = re.compile(r"SD3|Cascade|Video|Audio|Flux|Hunyuan|Qwen|Chroma")


class Translation(NamedTuple):
    """Result of one output of a graph.

    Attributes:
        infotext: The infotext.
        graph: The graph, with the report of what cannot be repeated.
        output: The key of the node that saves the picture.
        samplers: The keys of the samplers that the picture has come through.
        size: The size of the picture, as far as the graph says it.
    """

    infotext: str
    graph: Graph
    output: str
    samplers: frozenset[str]
    size: Size | None


def infotext_from_comfyui(chunks: Mapping[Any, object], size: tuple[int, int]) -> str | None:
    """Translate the graph that ComfyUI writes into its pictures.

    Warns of everything in the graph that velatura does not repeat.

    Args:
        chunks: The texts of the picture by name. "prompt" holds the graph that made it, and "workflow" what the editor
            saves, which counts where the former is missing. In EXIF, both stand in other tags behind their names.
        size: Width and height of the picture; 0 and 0 for a graph in a file of its own.

    Returns:
        The infotext, or None if the chunks hold no graph.

    Raises:
        BadRecipe: The prompt or the sampler cannot be found in the graph.
    """
    for values in _find_graphs(chunks):
        graph = graph_from_workflow(values) if is_workflow(values) else values
        if any("class_type" in (as_object(node) or {}) for node in graph.values()):
            return translate_graph(graph, size if all(size) else None)
    return None


def _find_graphs(chunks: Mapping[Any, object]) -> Iterator[JsonObject]:
    """Yield what may be a graph, that of the server before that of the editor."""
    texts = {str(name).lower(): text for name, text in chunks.items() if isinstance(text, str)}
    for text in list(texts.values()):
        match = EXIF_PREFIX.match(text)
        if match:
            texts.setdefault(match[1].lower(), text[match.end() :])
    for name in ("prompt", "workflow"):
        values = parse_object(texts.get(name))
        if values is None:
            continue
        inner = as_object(values.get(name))  # a request to the server holds the graph
        yield values if inner is None else inner


def translate_graph(prompt: JsonObject, size: Size | None) -> str:
    """Translate a graph in ComfyUI's API format into infotext, and warn of what cannot be repeated.

    Args:
        prompt: The nodes by their keys.
        size: Width and height of the picture, if there is one.

    Raises:
        BadRecipe: The prompt or the sampler cannot be found in the graph, or it is too large.
    """
    translations: dict[str, Translation] = {}
    whole = Graph.parse(prompt)
    outputs = find_outputs(whole)
    sampled = [output for output in outputs if comes_from_sampler(whole.with_own_report(), output)] or outputs
    if len(sampled) > MAX_OUTPUTS:
        raise graph_error(f"it makes {len(sampled):,} pictures, and at most {MAX_OUTPUTS} are read")
    for output in sampled:
        graph = whole.with_own_report()
        translation = _translate(graph, output.key, find_passes(graph, output), size)
        translations.setdefault(translation.infotext, translation)
    chosen = _choose(list(translations.values()), size)
    for message in chosen.graph.report.warnings():
        warn(message)
    return chosen.infotext


def _choose(translations: Sequence[Translation], size: Size | None) -> Translation:
    """Choose the output of a graph that a picture came from: by its size, else the last pass over the others.

    Raises:
        BadRecipe: Several outputs are possible.
    """
    if len(translations) == 1:
        return translations[0]
    fitting = [translation for translation in translations if size is not None and translation.size == size]
    if len(fitting) == 1:
        return fitting[0]
    everything = frozenset[str]().union(*(translation.samplers for translation in translations))
    last = [translation for translation in translations if translation.samplers == everything]
    if len(last) == 1:
        last[0].graph.report.remark(f"it saves pictures of several passes: that of the last, {last[0].output}, is read")
        return last[0]
    keys = ", ".join(translation.output for translation in translations[:8])
    raise graph_error(f"it makes {len(translations)} different pictures, at the nodes {keys}")


def _translate(graph: Graph, output: str, passes: Passes, size: Size | None) -> Translation:
    first = passes.calls[0]
    samplers = frozenset(call.node.key for call in passes.calls)
    positive = read_side(graph, first.links["positive"], "positive", first.node)
    negative = _read_negative(graph, first)
    model = read_chain(graph, first.links["model"], "model", first.node)
    clip = _read_clip(graph, positive, negative)
    texts = [*all_texts(positive), *all_texts(negative)]
    fields = _sampling_fields(graph, passes, size)
    prompt = write_side(positive) + write_tags(graph, model, clip)
    _remark_on_encoders(graph, model, clip)
    fields |= {
        "Model": model.model,
        "VAE": _vae(graph, passes),
        "Clip skip": clip.clip_skip if clip.clip_skip > 1 else None,
        "RNG": "CPU",
        "Emphasis": choose_emphasis(graph, texts),
    }
    remark_on_sizes(graph, texts, fields["Size"])
    graph.report.pass_over_inputs([graph.nodes[output], *graph.visited.values()])
    infotext = write_infotext(_check_lines(prompt), _check_lines(write_side(negative)), fields)
    return Translation(infotext, graph, output, samplers, _final_size(fields))


def _final_size(fields: Mapping[str, object]) -> Size | None:
    """Return the size of the picture after all passes, if the fields say it."""
    size = re.fullmatch(r"(\d+)x(\d+)", str(fields.get("Hires resize") or fields.get("Size")))
    scale = fields.get("Hires upscale")
    factor = scale if isinstance(scale, int | float) else 1.0
    return None if size is None else (int(int(size[1]) * factor), int(int(size[2]) * factor))


def _read_negative(graph: Graph, call: SamplerCall) -> Side:
    link = call.links.get("negative")
    return [] if link is None else read_side(graph, link, "negative", call.node)


def _read_clip(graph: Graph, positive: Side, negative: Side) -> Chain:
    """Return what the text encoder has come through, and remark if it is not one for all texts."""
    chains: list[Chain] = []
    seen: set[object] = set()
    for encoded in [*all_texts(positive), *all_texts(negative)]:
        if encoded.clip is not None and encoded.clip not in seen:
            seen.add(encoded.clip)
            chains.append(read_chain(graph, encoded.clip, "clip", encoded.owner))
    if not chains:
        return Chain()
    if any((chain.loras, chain.clip_skip) != (chains[0].loras, chains[0].clip_skip) for chain in chains):
        graph.report.remark("its texts go through different LoRAs or clip skips: those of the first text are used")
    return chains[0]


def _remark_on_encoders(graph: Graph, model: Chain, clip: Chain) -> None:
    if clip.encoders:
        graph.report.remark(f"its text encoders come from other files: {', '.join(clip.encoders)[:120]}")
    elif clip.model and model.model and clip.model != model.model:
        graph.report.remark(f"its text encoder comes from {clip.model[:80]!r}, and its UNet from {model.model[:80]!r}")


def _vae(graph: Graph, passes: Passes) -> str | None:
    if passes.decoder is None:
        return None
    return read_vae(graph, passes.decoder.link("vae"), passes.decoder)


def _check_lines(prompt: str) -> str:
    """Join lines that infotext would read as the negative prompt with the line before them."""
    lines = prompt.split("\n")
    joined = lines[0]
    for line in lines[1:]:
        joined += (" " if line.strip().startswith(NEGATIVE_PREFIX) else "\n") + line
    if joined.strip().startswith(NEGATIVE_PREFIX):
        raise graph_error(f"its prompt begins with {NEGATIVE_PREFIX!r}")
    return joined


def _sampling_fields(graph: Graph, passes: Passes, size: Size | None) -> dict[str, object]:
    """Return the fields of the passes: the first, and a second one of hires fix where the graph is plainly that."""
    calls, before = list(passes.calls), list(passes.before)
    while len(calls) > 1 and _continues(calls[0], calls[1], before[1]):
        calls[0].end, calls[0].keeps_noise = calls[1].end, calls[1].keeps_noise
        del calls[1], before[1]
    first = calls[0]
    fields: dict[str, object] = {"Steps": first.steps} | sampler_fields(graph, first)
    fields |= {"CFG scale": first.cfg, "Seed": _seed(graph, first)}
    resized_after = passes.after.resizes or passes.after.upscaler is not None
    if resized_after:
        names = ", ".join(dict.fromkeys(node.kind for node in passes.after.nodes))
        graph.report.remark(f"the picture was resized after sampling ({names}): velatura makes it as it was before")
    first_size = latent_size(graph, before[0]) or _guess_size(graph, passes, size, is_resized=resized_after)
    fields["Size"] = None if first_size is None else f"{first_size[0]}x{first_size[1]}"
    _read_batch(graph, before[0])
    fields |= _first_pass_fields(graph, first, before[0])
    if len(calls) == 2 and before[1].is_by_model and before[1].size is None:
        before[1].scale, before[1].size = None, None if resized_after else size
    if len(calls) > 1 and _is_hires(calls[1], before[1]):
        fields |= _hires_fields(graph, calls, before[1], first_size)
        del calls[1], before[1]
    for call in calls[1:]:
        graph.report.remark(f"the picture was sampled again by {call.node}, which is left out: it will be different")
    _check_size(graph, fields, size, is_resized=resized_after or len(calls) > 1)
    return fields


def _continues(first: SamplerCall, second: SamplerCall, between: Between) -> bool:
    """Return True if a second sampler only takes the steps that the first has left."""
    return (
        first.is_same_sampling(second)
        and first.keeps_noise
        and not second.adds_noise
        and second.start == first.end
        and not between.nodes
    )


def _seed(graph: Graph, call: SamplerCall) -> int | None:
    if call.seed is None or call.seed < 0:
        graph.report.remark(f"{call.node} does not say which seed it used: each picture gets a new one")
        return None
    return call.seed


def _guess_size(graph: Graph, passes: Passes, size: Size | None, *, is_resized: bool) -> Size | None:
    """Return the picture's own size, if nothing on the way changes it."""
    if passes.before[0].image is not None and size is None:
        graph.report.remark("its size is that of the image that it starts from: give width and height yourself")
        return None
    if size is None or is_resized or any(between.resizes for between in passes.before[1:]):
        graph.report.remark("it does not say the size of its first latents plainly: give width and height yourself")
        return None
    empty = passes.before[0].empty
    if empty is not None and empty.kind in NODE_KINDS:
        graph.report.remark(f"{empty} has no width and height: the size of the picture is used")
    return size


def _read_batch(graph: Graph, between: Between) -> None:
    """Remark on empty latents that make several pictures, or pictures of another family."""
    if between.empty is None:
        return
    if OTHER_LATENTS.search(between.empty.kind):
        graph.report.remark(f"{between.empty} makes latents of a family that velatura does not run")
    count = read_integer(graph, between.empty, "batch_size")
    if count is not None and count > 1:
        graph.report.remark(f"the picture is one of {count} of the same seed: only the first of them can be repeated")


def _first_pass_fields(graph: Graph, call: SamplerCall, between: Between) -> dict[str, object]:
    """Return the fields that depend on where the first pass starts, and how many of its steps it takes."""
    assert call.steps is not None
    end = call.steps if call.end is None else min(call.end, call.steps)
    if end < call.steps or call.keeps_noise:
        graph.report.remark(f"{call.node} stops after step {end} of {call.steps}: velatura takes all steps")
    if not call.adds_noise:
        graph.report.remark(f"{call.node} adds no noise to what it starts from, and velatura does")
    fields: dict[str, object] = {}
    if between.has_mask:
        graph.report.remark("only a part was made new, by a mask that it does not contain: pass it with --mask")
        fields["Mask blur"] = 0
    if between.image is None:
        if call.denoise <= FULL_DENOISE or call.start > 0:
            graph.report.remark(
                f"{call.node} starts in the middle of its steps from no image: velatura takes all steps"
            )
        return fields | ({"SGM noise multiplier": True} if starts_at_sigma_max(call) else {})
    name = str(between.image.inputs.get("image", "an image"))
    graph.report.remark(
        f"the picture starts from the image {name[:80]!r}, which it does not contain: pass it with --image"
    )
    return fields | _img2img_fields(graph, call)


def _img2img_fields(graph: Graph, call: SamplerCall) -> dict[str, object]:
    """Return the steps and the denoising that take the same noise levels as ComfyUI, which spends all steps on them."""
    assert call.steps is not None
    if call.start > 0 and call.denoise > FULL_DENOISE:
        taken, total = max(call.steps - call.start, 1), call.steps
    elif call.denoise > FULL_DENOISE:
        return {"Denoising strength": 1}
    elif call.denoise <= 0:
        return {"Denoising strength": 0}
    else:
        taken, total = call.steps, int(call.steps / call.denoise)
    denoising = round(call.denoise if call.denoise <= FULL_DENOISE else taken / total, 4)
    if int(min(denoising, 0.999) * total) != taken - 1:
        denoising = round((taken - 0.5) / total, 4)
    if total != call.steps:
        graph.report.remark(
            f"ComfyUI takes all {call.steps} steps at a denoising of {call.denoise:g}: here that is steps={total}"
        )
    return {"Steps": total, "Denoising strength": denoising}


def _is_hires(second: SamplerCall, between: Between) -> bool:
    """Return True for a second pass over larger latents, as hires fix makes it."""
    return between.resizes and between.image is None and 0 < second.denoise <= FULL_DENOISE and second.adds_noise


def _hires_fields(
    graph: Graph, calls: Sequence[SamplerCall], between: Between, first_size: Size | None
) -> dict[str, object]:
    """Return the fields of a second pass, and remark on what A1111's hires fix does not let differ."""
    first, second = calls[:2]
    fields: dict[str, object] = {"Denoising strength": second.denoise, "Hires steps": second.steps}
    if between.size is not None:
        fields["Hires resize"] = f"{between.size[0]}x{between.size[1]}"
        if not between.crops and first_size and first_size[0] * between.size[1] != first_size[1] * between.size[0]:
            graph.report.remark(f"its second pass stretches {first_size[0]}x{first_size[1]}, and velatura crops it")
    else:
        fields["Hires upscale"] = between.scale
    fields["Hires upscaler"] = between.upscaler
    _remark_on_second_pass(graph, first, second, between)
    second_fields, first_fields = sampler_fields(graph, second), sampler_fields(graph, first)
    if second_fields["Sampler"] != first_fields["Sampler"]:
        fields["Hires sampler"] = second_fields["Sampler"]
    for side, key in (("positive", "Hires prompt"), ("negative", "Hires negative prompt")):
        if second.links.get(side) != first.links.get(side) and second.links.get(side) is not None:
            text = write_side(read_side(graph, second.links[side], side, second.node))
            if text != write_side(read_side(graph, first.links[side], side, first.node)):
                fields[key] = _check_lines(text) or None
    return fields


def _remark_on_second_pass(graph: Graph, first: SamplerCall, second: SamplerCall, between: Between) -> None:
    """Remark on what differs in the second pass, and cannot differ in hires fix."""
    upscaler = str(between.upscaler)[:60]
    if between.is_by_model and between.upscaler != UNNAMED_MODEL:
        graph.report.remark(f"its second pass enlarges by the network {upscaler!r}: have its file in the library")
    elif between.upscaler not in KNOWN_UPSCALERS:
        graph.report.remark(f"velatura does not have the upscaler {upscaler!r} of its second pass: choose another")
    for name in ("cfg", "seed", "scheduler"):
        value = getattr(second, name)
        if value != getattr(first, name):
            graph.report.remark(f"its second pass has another {name} ({value}): both take the first one's")
    if second.links.get("model") != first.links.get("model"):
        graph.report.remark("its second pass has other LoRAs, or another model: those of the first pass are used")


def _check_size(graph: Graph, fields: Mapping[str, object], size: Size | None, *, is_resized: bool) -> None:
    """Remark if the picture has another size than the graph samples."""
    if (
        size is None
        or is_resized
        or not fields.get("Size")
        or fields.get("Hires upscale")
        or fields.get("Hires resize")
    ):
        return
    actual = f"{size[0]}x{size[1]}"
    if fields["Size"] != actual:
        graph.report.remark(f"the picture is {actual}, and its graph makes {fields['Size']}: the latter is used")
