"""The training loop, one for every kind of overlay: the base is frozen, the overlay's parameters learn."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from velatura import formats
from velatura.base.base import Base
from velatura.datasets.folder import read_folder
from velatura.errors import BadPlan, Diverged
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.prompts.prompt import Prompt
from velatura.sampling.generate import Picture, generate
from velatura.training.cache import Cache, encode_examples
from velatura.training.chance import draw, seed_of
from velatura.training.objective import denoising_loss
from velatura.training.plan import Plan
from velatura.training.precision import frozen_base, products_in
from velatura.training.run import RunFolder, vacant


@dataclass(frozen=True)
class Step:
    """What a training step came to; `done` counts it in."""

    done: int
    total: int
    loss: float
    rate: float


@dataclass(frozen=True)
class Run:
    """A training that is over: the overlay it made, its file, the loss of every step, and the folder it left."""

    overlay: Overlay
    file: Path
    losses: list[float]
    folder: Path


def train(
    base: Base,
    overlay: Overlay,
    folder: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    out: str | os.PathLike[str],
    on_step: Callable[[Step], None] | None = None,
) -> Run:
    """Train an overlay, in place, on a folder of captioned pictures, and leave a run folder at `out`.

    Without a plan it is the preset for such an overlay on such a base.

    The base comes out as it went in. Two runs of one plan on one machine make the same overlay, bit for bit. However
    the run ends early, by Ctrl-C too, what was learned is kept as a snapshot, and a note of the error says where.
    """
    plan = plan or Plan.preset(overlay.kind, base.family.name)
    rates, out = plan.rates(), vacant(out)
    examples = read_folder(folder)
    prompt = plan.preview_prompt or examples[0].caption
    if plan.preview_every and Prompt.read(prompt).tags:
        raise BadPlan(f'previews of "{prompt}" would call other overlays; name a preview prompt without tags')
    cache = encode_examples(base, examples, plan.pixels or base.family.default_pixels)

    frozen = frozen_base(base, plan.precision)
    optimizer = AdamW(overlay.float().parameters(), weight_decay=plan.weight_decay)
    pupil = _Pupil(frozen, overlay, optimizer, cache, plan)
    before, losses = overlay.card, list[float]()

    with attach(frozen, overlay), _own_chance(base.device):
        kept = RunFolder.create(out, before.name, plan, _beginning(frozen, overlay, folder, len(examples)))
        started = time.perf_counter()
        overlay.train()
        try:
            for done, rate in enumerate(rates, 1):
                loss = pupil.learn(done - 1, rate)
                losses.append(loss)
                overlay.card = before.but(steps=before.steps + done)
                kept.log({"step": done, "loss": loss, "rate": rate, "seconds": time.perf_counter() - started})

                if _due(plan.snapshot_every, done):
                    kept.snapshot(overlay, optimizer, done)
                if _due(plan.preview_every, done):
                    kept.preview(pupil.show(prompt), done)
                if on_step:
                    on_step(Step(done, rates.end, loss, rate))

            formats.save(overlay, kept.overlay)
        except BaseException as error:
            if losses:
                error.add_note(f"what {len(losses)} of {rates.end} steps learned {_rescue(kept, pupil, len(losses))}")
            else:
                kept.discard()
            raise
        finally:
            overlay.eval()

    return Run(overlay, kept.overlay, losses, kept.path)


@dataclass(frozen=True)
class _Pupil:
    """An overlay at its lessons: on the base that it lies over, from the pictures, by the plan."""

    base: Base
    overlay: Overlay
    optimizer: Optimizer
    cache: Cache
    plan: Plan

    def learn(self, done: int, rate: float) -> float:
        """Take a step and return its loss; raises Diverged, with the overlay as it was, where that is no number."""
        torch.manual_seed(seed_of(self.plan.seed, "dropout", done))  # pyright: ignore[reportUnknownMemberType]
        loss = self._loss(done)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        length = clip_grad_norm_(self.overlay.parameters(), self.plan.gradient_norm or math.inf)
        if not (loss.isfinite() and length.isfinite()):
            raise Diverged(f"the loss is no number any more at step {done + 1}, at a rate of {rate:g}; lower the rate")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._move(done, rate)
        return loss.item()

    @torch.no_grad()
    def _move(self, done: int, rate: float) -> None:
        """Let the optimizer take its step, or undo it and raise Diverged where it led to weights that are no numbers.

        A gradient may be finite and the step along it not: a rate can be too large for float32.
        """
        before = [tensor.clone() for tensor in self._tensors()]
        self.optimizer.step()
        if all(weight.isfinite().all() for weight in self.overlay.parameters()):
            return
        for tensor, old in zip(self._tensors(), before, strict=False):  # the first step adds moments
            tensor.copy_(old)
        raise Diverged(f"the weights are no numbers any more at step {done + 1}, at a rate of {rate:g}; lower the rate")

    def _tensors(self) -> list[torch.Tensor]:
        """All that the optimizer changes: the overlay's weights, then its own moments of them."""
        states: Iterable[Mapping[str, torch.Tensor]] = self.optimizer.state.values()
        return [*self.overlay.parameters(), *(tensor for state in states for tensor in state.values())]

    def show(self, prompt: str) -> Picture:
        """Make a picture with what was learned so far, at full strength."""
        self.overlay.eval()
        picture = generate(self.base, prompt, seed=self.plan.seed)
        self.overlay.train()
        return picture

    def _loss(self, done: int) -> torch.Tensor:
        latents = self.cache.latents
        chance = draw(
            self.plan.seed,
            done,
            batch_size=self.plan.batch_size,
            picture_count=len(latents),
            latent_shape=latents.shape[1:],
            timestep_count=len(self.base.schedule),
            caption_dropout=self.plan.caption_dropout,
        )
        chosen, noise = chance.pictures.to(latents.device), chance.noise.to(latents.device)
        captionless = chance.captionless.to(latents.device)
        said = self.cache.said.rows(torch.where(captionless, len(latents), chosen))
        with products_in(self.base):
            return denoising_loss(self.base, latents[chosen], said, noise, chance.timesteps, min_snr=self.plan.min_snr)


def _rescue(kept: RunFolder, pupil: _Pupil, done: int) -> str:
    """Keep what was learned before the run breaks off, and say where; a full disk must not hide why it did."""
    try:
        return f"is kept in {kept.snapshot(pupil.overlay, pupil.optimizer, done)}"
    except OSError as error:
        return f"could not be kept ({error})"


def _beginning(base: Base, overlay: Overlay, folder: str | os.PathLike[str], picture_count: int) -> dict[str, object]:
    """What a run begins with, for its log: all that its plan does not say."""
    return {
        "velatura": version("velatura"),
        "torch": torch.__version__,
        "base": base.name,
        "base_hash": base.hash,
        "dtype": str(base.dtype).removeprefix("torch."),
        "device": str(base.device),
        "overlay": overlay.card.model_dump(),
        "folder": str(Path(folder).absolute()),
        "pictures": picture_count,
    }


def _own_chance(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is seeded inside, the user's own random numbers go on afterwards as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0
