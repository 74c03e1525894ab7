"""A base at work under its overlays: which contexts its attention reads, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.errors import BadRecipe
from velatura.merging.chain import PARTS, Chain, K, source_of
from velatura.merging.moments import Moments
from velatura.merging.prompts import built_in
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.overlays.seams import record_contexts
from velatura.overlays.strength import Strength

Split = Literal["fit", "choose", "held out"]

SPLITS: tuple[Split, ...] = ("fit", "fit", "choose", "held out")  # of four prompts in a row
PROMPTS = 16  # painted, unless others are given
TEXTS = 240  # more that are only read: a text costs little, and cross-attention reads nothing else
AT_ONCE = 4  # pictures in a batch; the UNet sees each twice
GUIDANCE = 7.5

OnStep = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class Step:
    """One step of a picture that nothing is fitted to: what the UNet read and what it made of it."""

    latents: Tensor
    timestep: Tensor
    said: Conditioning
    prediction: Tensor
    prompts: tuple[str, ...]


@dataclass
class Record:
    """What was heard: moments by source of contexts, part and split, and the steps of the held-out prompts."""

    moments: dict[tuple[str, int, Split], Moments] = field(default_factory=dict[tuple[str, int, Split], Moments])
    steps: list[Step] = field(default_factory=list[Step])
    prompts: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def hear(self, source: str, chain: Chain, context: Tensor, split: Split) -> None:
        """Count a context in, with what the chain makes of it."""
        for part in PARTS:
            known = self.moments.setdefault((source, part, split), Moments.none(context.shape[-1], context.device))
            known.add(context, chain.change(context.float(), part), centred=part == K)

    def knows(self, source: str) -> bool:
        """Whether contexts of a source were heard."""
        return (source, K, "held out") in self.moments

    def of(self, source: str, part: int) -> tuple[Moments, Moments, Moments]:
        """The moments to fit to, to choose by, and to judge by."""
        fit, choose, held = (self.moments[source, part, split] for split in ("fit", "choose", "held out"))
        return fit, choose, held


class _Ears:
    """Hears the contexts of a base, each constant one once."""

    def __init__(self, record: Record, chains: Mapping[int, Chain]) -> None:
        self._record, self._chains = record, chains
        self._text: Tensor | None = None
        self.split: Split = "fit"

    def hear(self, name: str, layer: nn.Module, context: Tensor) -> None:
        chain = self._chains.get(context.shape[-1])
        if chain is None or context is self._text:
            return
        source = source_of(name, layer)
        if source != name:
            self._text = context  # the same in every layer and at every step
        self._record.hear(source, chain, context, self.split)


@torch.no_grad()
def record(
    base: Base,
    laid: Sequence[tuple[Overlay, float | Strength]],
    chains: Mapping[int, Chain],
    *,
    prompts: Sequence[str] | None,
    steps: int,
    on_step: OnStep | None = None,
    speaker: Base | None = None,
) -> Record:
    """Let the base paint under its overlays, and keep moments of the contexts of the chains given.

    Of four prompts in a row two are fitted to, one chooses the fit, and one judges it. Without chains there is nothing
    to fit, and only the last are painted. speaker: whose text towers say what the base's do under the overlays.
    """
    batches = list(_batches(built_in(PROMPTS) if prompts is None else prompts, only_judge=not chains))
    made, done = Record(), 0
    ears = _Ears(made, chains)
    with ExitStack() as undos:
        for overlay, strength in laid:
            undos.enter_context(attach(base, overlay, strength))
        for undo in record_contexts(base.unet, ears.hear):
            undos.callback(undo)
        for seed, (split, batch) in enumerate(batches):
            ears.split = split
            made.prompts[split] += len(batch)
            for step in _walk(base, batch, steps, seed):
                if split == "held out":
                    made.steps.append(step)
                done += 1
                if on_step:
                    on_step(done, steps * len(batches))
    _hear_texts(speaker or base, chains, made)
    return made


def _batches(prompts: Iterable[str], *, only_judge: bool) -> Iterator[tuple[Split, list[str]]]:
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for index, prompt in enumerate(prompts):
        by_split[SPLITS[index % len(SPLITS)]].append(prompt)
    if not all(by_split.values()):
        raise BadRecipe(f"fewer than {len(SPLITS)} prompts leave none to judge the fit by: give more, or none at all")
    for split, listed in by_split.items():
        if only_judge and split != "held out":
            continue
        for start in range(0, len(listed), AT_ONCE):
            yield split, listed[start : start + AT_ONCE]


def _hear_texts(base: Base, chains: Mapping[int, Chain], made: Record) -> None:
    """Fit to the contexts of many more texts, which need not be painted."""
    if chain := chains.get(base.text.width):
        for start in range(0, TEXTS, AT_ONCE):
            context = base.text.encode(built_in(AT_ONCE, PROMPTS + start)).to(base.device, base.dtype)
            made.hear(f"text {base.text.width}", chain, context, "fit")


def _walk(base: Base, prompts: Sequence[str], steps: int, seed: int) -> Iterator[Step]:
    """Paint prompts with guidance by DDIM without noise (Song et al. 2020, eq. 12, sigma 0), giving each step."""
    said = said_of(base, prompts)
    side = base.family.default_pixels // base.family.latent_factor
    shape = len(prompts), int(base.unet.config["in_channels"]), side, side
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(base.device)
    alphas = base.schedule.alphas_cumprod
    timesteps = torch.linspace(len(alphas) - 1, 0, steps + 1).long()
    for now, then in pairwise(timesteps):
        doubled = torch.cat([latents, latents])
        prediction = base.predict(doubled, now, said)
        yield Step(doubled, now, said, prediction, tuple(prompts))
        unwanted, wanted = prediction.chunk(2)
        guided = unwanted + GUIDANCE * (wanted - unwanted)
        latents = ddim(latents, guided, alphas[now].item(), alphas[then].item(), base.family.prediction)


def said_of(base: Base, prompts: Sequence[str]) -> Conditioning:
    """What a base says of empty negative prompts and of prompts, as guidance has the UNet read them."""
    said = Conditioning.joined([_nothing(base, len(prompts)), base.text.conditioning(prompts)])
    return said.to(base.device, base.dtype)


def _nothing(base: Base, count: int) -> Conditioning:
    """What empty negative prompts say, which is nothing at all to an SDXL."""
    said = base.text.conditioning([""] * count)
    return said.silenced() if base.reads_pooled else said


def ddim(latents: Tensor, predicted: Tensor, alpha: float, next_alpha: float, kind: str) -> Tensor:
    """From one level of noise to the next; a velocity gives clean latents and noise too (Salimans and Ho 2022, D)."""
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if kind == "v_prediction":
        clean, dirt = signal * latents - noise * predicted, noise * latents + signal * predicted
    else:
        clean, dirt = (latents - noise * predicted) / signal, predicted
    return next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * dirt
