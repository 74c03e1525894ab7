"""One training loop for every part: a rate on a cosine, AdamW, EMA, snapshots that any stop can be resumed from.

On a GPU it is one process in bf16. On a CPU it is one single-threaded process a core, each with its share of the
batch and compiled: gradients are averaged. That is nearly twice as fast as one process with as many threads.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """steps of `batch` pictures each; the rate climbs over `warmup` steps and falls on a cosine to a hundredth."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200
    decay: float = 0.01
    ema: float = 0.999

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item()))


class Job(Protocol):
    """What is trained: its modules (averaged by EMA and kept), and the loss of one share of a batch."""

    model: nn.Module

    def loss(self, generator: torch.Generator, count: int, step: int) -> Tensor:
        """The mean loss over `count` examples drawn with the generator."""
        ...


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def process_count() -> int:
    """One process on a GPU, one a core without; OMP_NUM_THREADS asks for fewer."""
    cores = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    return 1 if torch.cuda.is_available() else min(cores, 8)


def run(make_job: Callable[[Path], Job], schedule: Schedule, name: str, work: Path) -> None:
    """Train from the last snapshot to the end; afterwards `work/name.pt` holds the EMA weights under "ema"."""
    count = process_count()
    if count == 1:
        _train(0, 1, make_job, schedule, name, work)
        return
    make_job(work)  # what is drawn and kept once must not be made by all processes at once
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29531")
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(_train, args=(count, make_job, schedule, name, work), nprocs=count)


def _train(rank: int, world: int, make_job: Callable[[Path], Job], schedule: Schedule, name: str, work: Path) -> None:
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    job = make_job(work)
    parameters = [p for p in job.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.decay, fused=True)
    averages = {key: value.detach().clone() for key, value in job.model.state_dict().items()}
    step = _resume(work / f"{name}.pt", job.model, optimizer, averages)
    started, losses, first = time.time(), 0.0, step
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        generator = torch.Generator().manual_seed(step * world + rank)
        loss = job.loss(generator, schedule.batch // world, step)
        loss.backward()
        _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        _average(averages, job.model, min(schedule.ema, (1 + step) / (10 + step)))
        losses += loss.item()
        if step % 50 == 0 and rank == 0:
            seconds = (time.time() - started) / (step - first)
            print(f"{name} {step}/{schedule.steps} loss {losses / 50:.4f} {seconds:.3f} s/step", flush=True)
            losses = 0.0
        if rank == 0 and (step % 250 == 0 or step == schedule.steps):
            _snapshot(work / f"{name}.pt", step, job.model, optimizer, averages)
    if world > 1:
        dist.destroy_process_group()


def _average_gradients(parameters: Iterable[Tensor], world: int) -> None:
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


@torch.no_grad()
def _average(averages: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    state = model.state_dict()
    floats = [key for key, value in averages.items() if value.is_floating_point()]
    torch._foreach_lerp_([averages[key] for key in floats], [state[key] for key in floats], 1 - keep)


def _snapshot(
    path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, averages: dict[str, Tensor]
) -> None:
    beside = path.with_suffix(".part")
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": averages}
    torch.save(state, beside)
    beside.replace(path)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, averages: dict[str, Tensor]) -> int:
    if not path.exists():
        return 0
    kept = torch.load(path, map_location=device(), weights_only=True)
    model.load_state_dict(kept["model"])
    if "optimizer" in kept:
        optimizer.load_state_dict(kept["optimizer"])
    averages.update(kept["ema"])
    return kept["step"]
