"""Train a tiny overlay in two processes that are forked from this one, in every scenario named, and print the results.

JSON by scenario: for each process its error, its losses and a hash of its final weights; null where it was killed.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image

import velatura
from velatura.training import trainer
from velatura.training.kinds.pivotal import PivotalLora

PLAN = velatura.Plan(
    steps=4,
    batch_size=2,
    pixels=16,
    learning_rate="2e-5:2, 1e-5",
    snapshot_every=2,
    validation_pictures=2,
    precision="float32",
    latents="draw",
    shuffle_tags=True,
    caption_dropout=0.2,
    noise_offset=0.05,
    ema=0.9,
    rescues=0,
    end_sheet=False,
    tune=False,
)
LORA = {"learning_rate": "1e-3:2, 5e-4", "template": "style_filewords"}
SCENARIOS = {
    "plain": {},
    "stopped": {},
    "main fails": {},
    "other fails": {},
    "killed": {},
    "buckets": {"shape": "buckets", "pixels": 32},
    "rescued": {"learning_rate": "1", "rescues": 3, "rescue_factor": 1e-3, "snapshot_every": 1, "ema": None},
    "lora": LORA,
    "stopped lora": LORA,
}
RESUMED = {"resumed": "stopped", "resumed lora": "stopped lora"}
FAILING_RANK = {"main fails": 0, "other fails": 1}
SIGNALS = {"stopped": signal.SIGTERM, "stopped lora": signal.SIGTERM, "killed": signal.SIGKILL}  # to the second process


def disturb(scenario: str, rank: int) -> None:
    """Make something happen in the third batch of one of the processes."""
    batches, loss = [], trainer.denoising_errors

    def disturbed_loss(*arguments: object, **options: object) -> torch.Tensor:
        batches.append(1)
        if len(batches) == 3 and FAILING_RANK.get(scenario) == rank:
            raise MemoryError("no room for 7 pictures")
        if len(batches) == 3 and rank == 1 and scenario in SIGNALS:
            os.kill(os.getpid(), SIGNALS[scenario])
        return loss(*arguments, **options)

    trainer.denoising_errors = disturbed_loss


def copy_in_two_shapes(photos: Path, folder: Path) -> Path:
    """Copy the pictures, the first one wide and the others high."""
    folder.mkdir()
    for number, path in enumerate(sorted(photos.glob("*.png"))):
        with Image.open(path) as image:
            image.resize((40, 24) if number == 0 else (24, 40)).save(folder / path.name)
    return folder


def make_overlay(base: velatura.Base, scenario: str, rank: int) -> velatura.Overlay:
    """Make an overlay whose weights differ between the processes."""
    if not scenario.endswith("lora"):
        return velatura.Hypernetwork.for_base(base, activation="relu", seed=3 + rank, name="inca")
    # with a word, as the kind whose structure its card tells least of
    word = velatura.Embedding.for_base(base, name="inca", seed=rank)
    return PivotalLora.from_lora(velatura.Lora.for_base(base, rank=2, seed=rank, name="inca"), word)


def train(base: velatura.Base, photos: Path, out: Path, scenario: str, rank: int) -> dict[str, object]:
    disturb(scenario, rank)
    overlay, error, losses = make_overlay(base, scenario, rank), "", []
    try:
        if scenario in RESUMED:
            run = velatura.resume(base, out)
        else:
            with_shapes = out.with_suffix(f".shapes{rank}")
            pictures = copy_in_two_shapes(photos, with_shapes) if scenario == "buckets" else photos
            run = velatura.train(base, overlay, pictures, PLAN.replace(**SCENARIOS[scenario]), out=out)
        overlay, losses = run.overlay, run.losses
    except BaseException as failure:  # noqa: BLE001 - reported to the test
        error = f"{type(failure).__name__}: {failure}"
    weights = b"".join(weight.detach().numpy().tobytes() for weight in overlay.trainable_parameters.values())
    return {"error": error, "losses": losses, "weights": hashlib.sha256(weights).hexdigest()}


def fork(base: velatura.Base, photos: Path, out: Path, scenario: str, rank: int) -> int:
    process = os.fork()
    if process:
        return process
    try:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        result = train(base, photos, out, scenario, rank)
        out.with_suffix(f".{rank}").write_text(json.dumps(result))
    finally:
        os._exit(0)


def run_scenario(base: velatura.Base, photos: Path, out: Path, scenario: str) -> list[dict[str, object] | None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    for process in [fork(base, photos, out, scenario, rank) for rank in range(2)]:
        os.waitpid(process, 0)
    files = [out.with_suffix(f".{rank}") for rank in range(2)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def main(photos: Path, folder: Path, scenarios: list[str]) -> None:
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", velatura.VelaturaWarning)
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    base = velatura.tiny()
    results = {scenario: run_scenario(base, photos, folder / scenario, scenario) for scenario in scenarios}
    for resumed, stopped in RESUMED.items():
        if stopped in scenarios:
            results[resumed] = run_scenario(base, photos, folder / stopped, resumed)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
