"""What `make bench` prints of training: a step of a hypernetwork, beside its floor and beside a straightforward loop.

The floor is the bare UNet in the same precision, forth and then back to its input: what no overlay can be trained
without. The straightforward loop is what trainers usually do: float32, latents encoded before, captions at each step,
networks hung before every to_k and to_v. All ways are measured in turns, so that a slow moment strikes all of them.

A word after the command chooses among tiny and sd15; --once takes one round.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from pictures import sd15
from PIL import Image
from torch import Tensor, nn

import velatura
from overlays import straightforward
from velatura.datasets.folder import read_dataset
from velatura.training.data.cache import encode_dataset
from velatura.training.loss import denoising_errors
from velatura.training.optimizers import create_overlay_optimizer
from velatura.training.precision import frozen_base
from velatura.training.trainer import Trainer

ROUNDS = 5
RATE = 1e-5
CAPTION = "a red house on the beach at night, by a painter of the sea"

Step = Callable[[], object]


def network(base: velatura.Base) -> velatura.Hypernetwork:
    """The hypernetwork that is trained."""
    return velatura.Hypernetwork.for_base(base, layers=(1, 2, 1), activation="relu", seed=0, name="bench")


def write_photos(folder: Path, count: int, pixels: int) -> Path:
    """Pictures of noise, each with a caption."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        noise = torch.randint(0, 256, (pixels, pixels, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{CAPTION} {number}", "utf-8")
    return folder


@contextmanager
def velatura_step(base: velatura.Base, folder: Path, plan: velatura.Plan) -> Iterator[tuple[Step, Trainer]]:
    """A step as `velatura train` takes it."""
    overlay = network(base)
    frozen = frozen_base(base, plan.precision)
    cache = encode_dataset(frozen, overlay, read_dataset(folder), plan)
    trainer = Trainer(frozen, overlay, create_overlay_optimizer(plan, overlay.float()), cache, plan)
    done = iter(range(2**31))
    with velatura.attach(frozen, overlay):
        overlay.train()
        yield lambda: trainer.training_step(next(done), RATE), trainer


def floor_step(trainer: Trainer) -> Step:
    """The bare UNet forth, and back to its input."""
    base, count = trainer.base, trainer.plan.batch_size
    latents = trainer.cache.latents[:1].expand(count, -1, -1, -1).to(base.dtype).clone().requires_grad_()
    latents = latents.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    context = trainer.cache.conditioning.context[:1].expand(count, -1, -1).to(base.dtype)
    timesteps = torch.full((count,), 500)

    def step() -> None:
        predicted: Tensor = base.unet(latents, timesteps, context, return_dict=False)[0]
        torch.autograd.grad(predicted.float().square().mean(), latents)

    return step


@contextmanager
def straightforward_step(base: velatura.Base, trainer: Trainer) -> Iterator[Step]:
    """The straightforward loop on the base in float32."""
    overlay, count = network(base).train(), trainer.plan.batch_size
    optimizer = torch.optim.AdamW(overlay.parameters(), lr=RATE, foreach=False, fused=False)
    generator, latents = torch.Generator().manual_seed(1), trainer.cache.latents

    def step() -> None:
        chosen = torch.randint(0, len(latents), (count,), generator=generator)
        cond = base.text.encode([CAPTION] * count)
        noise = torch.randn((count, *latents.shape[1:]), generator=generator)
        timesteps = torch.randint(0, 1000, (count,), generator=generator)
        loss = denoising_errors(base, latents[chosen], cond, noise, timesteps).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(overlay.parameters(), 1.0)
        optimizer.step()
        loss.item()

    with straightforward(base.unet, overlay):
        yield step


def measure_seconds(step_functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in each way, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in step_functions}
    for _ in range(rounds):
        for name, step in step_functions.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def table(name: str, base: velatura.Base, pixels: int, batch: int, rounds: int) -> None:
    """Print the rows of one base."""
    plan = velatura.Plan(steps=1000, batch_size=batch, pixels=pixels, learning_rate=RATE, cache=False, rescues=0)
    with ExitStack() as stack:
        folder = write_photos(Path(stack.enter_context(tempfile.TemporaryDirectory())), batch, pixels)
        step, trainer = stack.enter_context(velatura_step(base, folder, plan))
        hooks = stack.enter_context(ExitStack())
        bare_base = frozen_base(base, plan.precision)  # another copy: hooks on a module are paid for by all who call it
        bare_trainer = Trainer(bare_base, trainer.overlay, trainer.optimizer, trainer.cache, plan)
        step_functions: dict[str, Step] = {"floor": floor_step(bare_trainer), "velatura": step}
        if bare_base is not base:
            step_functions["straightforward"] = hooks.enter_context(straightforward_step(base, trainer))
        for run_step in step_functions.values():
            run_step()  # what is allocated and chosen once is not counted
        seconds = measure_seconds(step_functions, rounds)
    shortest = {label: min(times) for label, times in seconds.items()}
    precision = str(trainer.base.dtype).removeprefix("torch.")
    print(f"\n{name}, {pixels} px, batch {batch}, {precision}, a hypernetwork 1,2,1 relu")
    print(f"{'':20}{'s/step':>10}{'ratio to the floor':>22}")
    for label, least_seconds in shortest.items():
        print(f"{label:20}{least_seconds:10.4f}{least_seconds / shortest['floor']:22.3f}", flush=True)


def main() -> None:
    """Print the tables of the tiny base and of a base of SD1.5's shape with random weights."""
    words = set(sys.argv[1:])
    rounds = 1 if "--once" in words else ROUNDS
    if words & {"tiny"} or not words & {"sd15"}:
        for batch in (1, 16):
            table("tiny base", velatura.tiny(), 64, batch, rounds * 3)
    if words & {"sd15"} or not words & {"tiny", "--tiny"}:
        table("SD1.5's shape, random weights", sd15(), 512, 1, rounds)


if __name__ == "__main__":
    main()
