"""Read sampler nodes: steps, guidance, seed, sampler, noise schedule, and the part of the steps that they take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from velatura.sampling.recipe.comfyui.graph import Graph, GraphNode, Link, graph_error
from velatura.sampling.recipe.comfyui.nodes import SAMPLER_OPTIONS
from velatura.sampling.recipe.comfyui.values import read_integer, read_number, read_word
from velatura.sampling.recipe.sampler_names import (
    NEAREST_SAMPLERS,
    NEAREST_SCHEDULERS,
    SCHEDULER_NAMES,
    find_sampler_name,
    find_scheduler_name,
    name_key,
    nearest,
)

SEED_NAMES = ("seed", "noise_seed")
LATENT_NAMES = ("latent_image", "latent", "samples", "optional_latent")
SAMPLER_KINDS = frozenset(
    {
        "KSampler",
        "KSamplerAdvanced",
        "KSampler (Efficient)",
        "KSampler Adv. (Efficient)",
        "SamplerCustom",
        "SamplerCustomAdvanced",
        "easy kSampler",
        "easy fullkSampler",
    }
)
DRAWS_NOISE = re.compile(r"ancestral|sde|lcm|ddpm|restart|_a$")
SD_SIGMAS = {"sigma_max": 14.614642, "sigma_min": 0.0291675}  # defaults of ComfyUI's nodes: the ends of SD's own levels
SIGMA_TOLERANCE = 1e-4
KARRAS_RHO = 7.0
BETA_PARAMETERS = (0.6, 0.6)


@dataclass
class SamplerCall:
    """Settings of one sampler node.

    Attributes:
        node: The node.
        steps: Steps of the whole schedule, or None if the node does not say.
        cfg: Guidance.
        seed: Seed of the noise.
        sampler, scheduler: ComfyUI's words.
        denoise: Share of the noise levels that is taken, the cleanest ones; the steps are all spent on it.
        start, end: First step and the step after the last.
        adds_noise: False if the latents come with noise.
        keeps_noise: True if the latents go on with the noise that is left.
        fields: Further fields of infotext.
        links: What is connected: "model", "positive", "negative" and "latent".
    """

    node: GraphNode
    steps: int | None = None
    cfg: float | None = None
    seed: int | None = None
    sampler: str = "euler"
    scheduler: str = "normal"
    denoise: float = 1.0
    start: int = 0
    end: int | None = None
    adds_noise: bool = True
    keeps_noise: bool = False
    fields: dict[str, object] = field(default_factory=dict[str, object])
    links: dict[str, Link | None] = field(default_factory=dict[str, "Link | None"])

    @property
    def draws_noise(self) -> bool:
        """True if the sampler draws noise at its steps."""
        return bool(DRAWS_NOISE.search(name_key(self.sampler))) and self.fields.get("Eta") != 0

    def is_same_sampling(self, other: SamplerCall) -> bool:
        """Return True if another call samples with the same model, prompts and settings."""
        names = ("steps", "cfg", "sampler", "scheduler")
        sides = ("model", "positive", "negative")
        return all(getattr(self, name) == getattr(other, name) for name in names) and all(
            self.links.get(side) == other.links.get(side) for side in sides
        )


def is_sampler(node: GraphNode) -> bool:
    """Return True for a node that samples latents: one of ComfyUI's, or one with the inputs of a sampler."""
    if node.kind in SAMPLER_KINDS:
        return True
    inputs = node.inputs
    has_latents = any(node.link(name) for name in LATENT_NAMES)
    has_settings = "steps" in inputs and ("cfg" in inputs or "sampler_name" in inputs)
    return has_latents and has_settings and "image" not in inputs


def read_call(graph: Graph, node: GraphNode) -> SamplerCall:
    """Return what a sampler node does.

    Raises:
        BadRecipe: A setting is missing or not plain.
    """
    if node.kind == "SamplerCustomAdvanced":
        call = _read_advanced_custom(graph, node)
    elif node.kind == "SamplerCustom":
        call = _read_custom(graph, node)
    elif node.kind.startswith("easy "):
        call = _read_easy(graph, node)
    else:
        call = _read_plain(graph, node)
    latent = next((link for name in LATENT_NAMES if (link := node.link(name))), None)
    call.links.setdefault("latent", latent)
    if call.steps is None or call.steps < 1:
        raise graph_error(f"{node} has no steps")
    if call.cfg is None:
        raise graph_error(f"{node} has no cfg")
    if call.links.get("positive") is None:
        raise graph_error(f"{node} has no positive prompt")
    if call.links.get("negative") is None and call.cfg != 1:
        raise graph_error(f"{node} has no negative prompt")
    return call


def sampler_fields(graph: Graph, call: SamplerCall) -> dict[str, object]:
    """Return the fields of infotext for the sampler and its noise schedule.

    A name that velatura does not know stays as it is, so that it is refused only when a picture is made with it.
    """
    key = name_key(call.sampler)
    _remark_on_unknown_names(graph, call)
    sampler = find_sampler_name(call.sampler) or call.sampler
    scheduler = find_scheduler_name(call.scheduler) or call.scheduler
    fields: dict[str, object] = {}
    if key == "ddim":
        sampler = "Euler"  # ComfyUI's ddim is Euler on any noise levels
    if key in {"uni_pc", "uni_pc_bh2"}:
        sampler = "UniPC"
        fields["UniPC variant"] = "bh2" if key == "uni_pc_bh2" else None
        graph.report.remark(f"ComfyUI runs UniPC on the noise levels of {scheduler}, and velatura on its own")
        return {"Sampler": sampler, **fields}
    if key in {"dpm_fast", "dpm_adaptive"}:
        fields["Eta"] = 0  # ComfyUI's default, and A1111's is 1
    if call.draws_noise:
        device = "the GPU" if key.endswith("_gpu") else "another generator"
        graph.report.remark(f"ComfyUI draws the noise of {sampler}'s steps on {device}: details will be different")
    return {"Sampler": sampler, "Schedule type": scheduler, **fields, **call.fields}


def _remark_on_unknown_names(graph: Graph, call: SamplerCall) -> None:
    """Remark on a sampler or a noise schedule that velatura does not have."""
    words = {"sampler": call.sampler, "scheduler": call.scheduler}
    known = {"sampler": find_sampler_name(call.sampler), "scheduler": find_scheduler_name(call.scheduler)}
    tables = {"sampler": NEAREST_SAMPLERS, "scheduler": NEAREST_SCHEDULERS}
    if name_key(call.sampler) == "uni_pc_bh2":
        known["sampler"] = "UniPC"
    for what, word in words.items():
        if known[what] is None:
            nearest_name = nearest(word, tables[what])
            advice = f"the nearest that it has is {nearest_name}" if nearest_name else "choose another"
            graph.report.remark(f"velatura does not have its {what} {word[:60]!r}: {advice}")


def starts_at_sigma_max(call: SamplerCall) -> bool:
    """Return True if the first noise level is the highest of the model, for which ComfyUI scales noise another way."""
    has_highest = (find_scheduler_name(call.scheduler) or "") not in {"DDIM", ""} and not name_key(
        call.sampler
    ).startswith("uni_pc")
    return has_highest and call.denoise > 0.9999 and call.start == 0 and call.adds_noise


def _read_plain(graph: Graph, node: GraphNode) -> SamplerCall:
    call = SamplerCall(
        node,
        read_integer(graph, node, "steps", "steps_total"),
        read_number(graph, node, "cfg", "guidance"),
        read_integer(graph, node, *SEED_NAMES),
        _need_word(graph, node, "sampler_name", "sampler"),
        _need_word(graph, node, "scheduler"),
    )
    denoise = read_number(graph, node, "denoise")
    if denoise is None and node.kind == "KSampler":
        raise graph_error(f"{node} has no denoise")
    call.denoise = 1.0 if denoise is None else denoise
    call.start = read_integer(graph, node, "start_at_step") or 0
    call.end = read_integer(graph, node, "end_at_step")
    if node.kind not in SAMPLER_KINDS and not node.kind.startswith("easy "):
        graph.report.pass_over(node)
    call.adds_noise = node.inputs.get("add_noise", "enable") in {"enable", True}
    call.keeps_noise = node.inputs.get("return_with_leftover_noise", "disable") in {"enable", True}
    call.links = {side: node.link(side) for side in ("model", "positive", "negative")}
    return call


def _need_word(graph: Graph, node: GraphNode, *names: str) -> str:
    """Return the name of a sampler or of a noise schedule.

    Raises:
        BadRecipe: The node has none.
    """
    word = read_word(graph, node, *names)
    if word is None:
        raise graph_error(f"{node} has no {names[0]}")
    return word


def _read_custom(graph: Graph, node: GraphNode) -> SamplerCall:
    seed = read_integer(graph, node, *SEED_NAMES)
    call = SamplerCall(node, cfg=read_number(graph, node, "cfg"), seed=seed)
    call.adds_noise = node.inputs.get("add_noise", True) is True
    call.links = {side: node.link(side) for side in ("model", "positive", "negative")}
    return _read_sigmas(graph, node, _read_sampler(graph, node, call))


def _read_advanced_custom(graph: Graph, node: GraphNode) -> SamplerCall:
    guider, _ = graph.source(node.link("guider"), "guider", node)
    noise, _ = graph.source(node.link("noise"), "noise", node)
    call = SamplerCall(node, seed=read_integer(graph, noise, *SEED_NAMES), adds_noise=noise.kind != "DisableNoise")
    if guider.kind == "BasicGuider":
        call.cfg = 1.0
        call.links = {"model": guider.link("model"), "positive": guider.link("conditioning"), "negative": None}
    else:
        if guider.kind != "CFGGuider":
            graph.report.pass_over(guider)
        call.cfg = read_number(graph, guider, "cfg", "cfg_conds")
        positive = guider.link("positive") or guider.link("cond1") or guider.link("conditioning")
        call.links = {"model": guider.link("model"), "positive": positive, "negative": guider.link("negative")}
    return _read_sigmas(graph, node, _read_sampler(graph, node, call))


def _read_sampler(graph: Graph, node: GraphNode, call: SamplerCall) -> SamplerCall:
    """Read the node of the sampler's algorithm."""
    sampler, _ = graph.source(node.link("sampler"), "sampler", node)
    if sampler.kind == "KSamplerSelect":
        return replace(call, sampler=_need_word(graph, sampler, "sampler_name"))
    options = SAMPLER_OPTIONS.get(sampler.kind)
    if options is None:
        return replace(call, sampler=read_word(graph, sampler, "sampler_name", "sampler") or sampler.kind)
    name = options
    if sampler.inputs.get("solver_type") == "heun":
        name += "_heun"
    if sampler.inputs.get("noise_device") == "gpu":
        name += "_gpu"
    eta, s_noise = read_number(graph, sampler, "eta"), read_number(graph, sampler, "s_noise")
    fields = {"Eta": None if eta == 1 else eta, "Sigma noise": None if s_noise == 1 else s_noise}
    return replace(call, sampler=name, fields={**call.fields, **fields})


def _read_sigmas(graph: Graph, node: GraphNode, call: SamplerCall) -> SamplerCall:
    """Read the node of the noise levels."""
    sigmas, _ = graph.source(node.link("sigmas"), "sigmas", node)
    denoise = read_number(graph, sigmas, "denoise")
    call.steps = read_integer(graph, sigmas, "steps")
    call.denoise = 1.0 if denoise is None else denoise
    if sigmas.kind == "BasicScheduler":
        call.scheduler = _need_word(graph, sigmas, "scheduler")
        return call
    name = read_word(graph, sigmas, "scheduler") or re.sub(r"(Sampling)?Scheduler$", "", sigmas.kind)
    name = name_key(re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=SD)(?=[A-Z])", " ", name))
    call.scheduler = find_scheduler_name(name) or name
    if name == "sd_turbo" and call.steps == 1:
        call.scheduler = "SGM Uniform"  # of which one step is the same
    if call.scheduler not in SCHEDULER_NAMES and call.steps is None:
        raise graph_error(f"its noise levels come from {sigmas}, which velatura does not support")
    call.fields |= _sigma_fields(graph, sigmas)
    return call


def _sigma_fields(graph: Graph, sigmas: GraphNode) -> dict[str, object]:
    """Return the limits of noise levels where they are not those of the model."""
    fields: dict[str, object] = {}
    for name, key in (("sigma_max", "Schedule max sigma"), ("sigma_min", "Schedule min sigma")):
        sigma = read_number(graph, sigmas, name)
        if sigma is not None and abs(sigma - SD_SIGMAS[name]) > SIGMA_TOLERANCE:
            fields[key] = sigma
    rho = read_number(graph, sigmas, "rho")
    if rho is not None and rho != (KARRAS_RHO if sigmas.kind == "KarrasScheduler" else 1.0):
        fields["Schedule rho"] = rho
    parameters = tuple(read_number(graph, sigmas, name) for name in ("alpha", "beta"))
    if sigmas.kind == "BetaSamplingScheduler" and parameters != BETA_PARAMETERS:
        graph.report.remark(f"{sigmas} has other parameters than 0.6 and 0.6: the picture will be different")
    return fields


def _read_easy(graph: Graph, node: GraphNode) -> SamplerCall:
    """Read a sampler of Easy Use, whose settings may stand in a node before it."""
    settings, seen = node, set[str]()
    pipe = node.link("pipe")
    if pipe is None:
        raise graph_error(f"{node} has no pipe")
    while "steps" not in settings.inputs:
        link = settings.link("pipe")
        if link is None or settings.key in seen:
            raise graph_error(f"{node} has no steps")
        seen.add(settings.key)
        settings = graph.visit(link, settings)
    call = _read_plain(graph, settings)
    call.node = node
    call.links = dict.fromkeys(("model", "positive", "negative", "latent"), pipe)
    return call
