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
from velatura.training.class_pictures import encode_lessons
from velatura.training.objective import denoising_loss
from velatura.training.optimizers import optimizer_for
from velatura.training.precision import frozen_base
from velatura.training.pupil import Pupil

ROUNDS = 5
RATE = 1e-5
CAPTION = "a red house on the beach at night, by a painter of the sea"

Step = Callable[[], object]


def network(base: velatura.Base) -> velatura.Hypernetwork:
    """The hypernetwork that is trained."""
    return velatura.Hypernetwork.for_base(base, layers=(1, 2, 1), activation="relu", seed=0, name="bench")


def photos(folder: Path, count: int, pixels: int) -> Path:
    """Pictures of noise, each with a caption."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        noise = torch.randint(0, 256, (pixels, pixels, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{CAPTION} {number}", "utf-8")
    return folder


@contextmanager
def ours(base: velatura.Base, folder: Path, plan: velatura.Plan) -> Iterator[tuple[Step, Pupil]]:
    """A step as `velatura train` takes it."""
    overlay = network(base)
    frozen = frozen_base(base, plan.precision)
    cache = encode_lessons(frozen, overlay, read_dataset(folder), plan)
    pupil = Pupil(frozen, overlay, optimizer_for(plan, overlay.float()), cache, plan)
    done = iter(range(2**31))
    with velatura.attach(frozen, overlay):
        overlay.train()
        yield lambda: pupil.learn(next(done), RATE), pupil


def floor(pupil: Pupil) -> Step:
    """The bare UNet forth, and back to its input."""
    base, count = pupil.base, pupil.plan.batch_size
    latents = pupil.cache.latents[:1].expand(count, -1, -1, -1).to(base.dtype).clone().requires_grad_()
    latents = latents.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    context = pupil.cache.said.context[:1].expand(count, -1, -1).to(base.dtype)
    timesteps = torch.full((count,), 500)

    def step() -> None:
        predicted: Tensor = base.unet(latents, timesteps, context, return_dict=False)[0]
        torch.autograd.grad(predicted.float().square().mean(), latents)

    return step


@contextmanager
def usual(base: velatura.Base, pupil: Pupil) -> Iterator[Step]:
    """The straightforward loop on the base in float32."""
    overlay, count = network(base).train(), pupil.plan.batch_size
    optimizer = torch.optim.AdamW(overlay.parameters(), lr=RATE, foreach=False, fused=False)
    generator, latents = torch.Generator().manual_seed(1), pupil.cache.latents

    def step() -> None:
        chosen = torch.randint(0, len(latents), (count,), generator=generator)
        said = base.text.encode([CAPTION] * count)
        noise = torch.randn((count, *latents.shape[1:]), generator=generator)
        timesteps = torch.randint(0, 1000, (count,), generator=generator)
        loss = denoising_loss(base, latents[chosen], said, noise, timesteps)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(overlay.parameters(), 1.0)
        optimizer.step()
        loss.item()

    with straightforward(base.unet, overlay):
        yield step


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in each way, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def table(name: str, base: velatura.Base, pixels: int, batch: int, rounds: int) -> None:
    """Print the rows of one base."""
    plan = velatura.Plan(steps=1000, batch_size=batch, pixels=pixels, learning_rate=RATE, cache=False, rescues=0)
    with ExitStack() as ending:
        folder = photos(Path(ending.enter_context(tempfile.TemporaryDirectory())), batch, pixels)
        step, pupil = ending.enter_context(ours(base, folder, plan))
        hung = ending.enter_context(ExitStack())
        bare = frozen_base(base, plan.precision)  # another copy: hooks on a module are paid for by all who call it
        lone = Pupil(bare, pupil.overlay, pupil.optimizer, pupil.cache, plan)
        ways: dict[str, Step] = {"floor": floor(lone), "velatura": step}
        if bare is not base:
            ways["straightforward"] = hung.enter_context(usual(base, pupil))
        for way in ways.values():
            way()  # what is allocated and chosen once is not counted
        seconds = timed(ways, rounds)
    least = {label: min(each) for label, each in seconds.items()}
    precision = str(pupil.base.dtype).removeprefix("torch.")
    print(f"\n{name}, {pixels} px, batch {batch}, {precision}, a hypernetwork 1,2,1 relu")
    print(f"{'':20}{'s/step':>10}{'ratio to the floor':>22}")
    for label, each in least.items():
        print(f"{label:20}{each:10.4f}{each / least['floor']:22.3f}", flush=True)


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
