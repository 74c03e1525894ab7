"""Train a tiny overlay in two processes that are forked from this one, in each of the ways named, and print what came.

JSON by way: for each process how it ended, and a hash of the weights that it ended with; None where it was killed.
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
from velatura.training import trainer as lessons
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
)
WAYS = {
    "plain": {},
    "stopped": {},
    "failing": {},
    "killed": {},
    "buckets": {"shape": "buckets", "pixels": 32},
    "rescued": {"learning_rate": "1e4", "rescues": 3, "rescue_factor": 1e-7, "snapshot_every": 1, "ema": None},
}

LORA = {"learning_rate": "1e-3:2, 5e-4", "template": "style_filewords"}
WAYS |= {"lora": LORA, "stopped lora": LORA}
RESUMED = {"resumed": "stopped", "resumed lora": "stopped lora"}


def disturb(way: str, rank: int) -> None:
    """Let something happen in the second process, in its third batch."""
    learned, loss = [], lessons.denoising_loss

    def disturbed(*given: object, **options: object) -> torch.Tensor:
        learned.append(1)
        if rank == 1 and len(learned) == 3 and way == "failing":
            raise MemoryError("no room for 7 pictures")
        if rank == 1 and len(learned) == 3 and way in {"stopped", "stopped lora", "killed"}:
            os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGTERM)
        return loss(*given, **options)

    lessons.denoising_loss = disturbed


def of_two_shapes(photos: Path, folder: Path) -> Path:
    """Copies of the pictures, the first one wide and the others high."""
    folder.mkdir()
    for number, path in enumerate(sorted(photos.glob("*.png"))):
        with Image.open(path) as image:
            image.resize((40, 24) if number == 0 else (24, 40)).save(folder / path.name)
    return folder


def learn(base: velatura.Base, photos: Path, out: Path, way: str, rank: int) -> dict[str, str]:
    disturb(way, rank)
    overlay = velatura.Hypernetwork.for_base(base, activation="relu", seed=3 + rank, name="inca")
    if way.endswith("lora"):  # with a word, as the kind whose structure its card tells least of
        word = velatura.Embedding.for_base(base, name="inca", seed=rank)
        overlay = PivotalLora.from_lora(velatura.Lora.for_base(base, rank=2, seed=rank, name="inca"), word)
    said = ""
    try:
        if way in RESUMED:
            overlay = velatura.resume(base, out).overlay
        else:
            pictures = of_two_shapes(photos, out.with_suffix(f".shapes{rank}")) if way == "buckets" else photos
            velatura.train(base, overlay, pictures, PLAN.replace(**WAYS[way]), out=out)
    except BaseException as error:  # noqa: BLE001 - told to who asked
        said = f"{type(error).__name__}: {error}"
    numbers = b"".join(weight.detach().numpy().tobytes() for weight in overlay.trainable_parameters.values())
    return {"said": said, "weights": hashlib.sha256(numbers).hexdigest()}


def child(base: velatura.Base, photos: Path, out: Path, way: str, rank: int) -> int:
    process = os.fork()
    if process:
        return process
    try:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        came = learn(base, photos, out, way, rank)
        out.with_suffix(f".{rank}").write_text(json.dumps(came))
    finally:
        os._exit(0)


def both(base: velatura.Base, photos: Path, out: Path, way: str) -> list[dict[str, str] | None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    for process in [child(base, photos, out, way, rank) for rank in range(2)]:
        os.waitpid(process, 0)
    files = [out.with_suffix(f".{rank}") for rank in range(2)]
    return [json.loads(each.read_text()) if each.exists() else None for each in files]


def main(photos: Path, folder: Path, ways: list[str]) -> None:
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", velatura.VelaturaWarning)
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    base = velatura.tiny()
    came = {way: both(base, photos, folder / way, way) for way in ways}
    resumed = {way: stopped for way, stopped in RESUMED.items() if stopped in ways}
    came |= {way: both(base, photos, folder / stopped, way) for way, stopped in resumed.items()}
    sys.stdout.write(json.dumps(came) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
