"""What `make bench` prints of the time until a command answers: each beside `python -c pass` and `import torch`.

The commands take turns with these two floors, so that a slow moment of the machine strikes all of them: what counts is
the ratio of the shortest times.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import velatura

ROUNDS = 5
FLOORS = {"python -c pass": ["-c", "pass"], "import torch": ["-c", "import torch"]}
# What is typed behind `velatura`, in a folder with photos/, net.safetensors and lora.safetensors
COMMANDS = (
    "--help",
    "list",
    "show net.safetensors",
    "show lora.safetensors",
    "dataset check photos",
    "train hypernet nowhere",
    "generate x --base nowhere",
    "convert nowhere.pt x.safetensors",
    "pull nonsense",
    "train hypernet photos --dry-run --out dry",
    "generate house --seed 7 --out picture.png --overwrite",  # the first picture of a new user
)


def main() -> None:
    """Measure all commands and print a line for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = velatura.tiny()
        velatura.save(velatura.Hypernetwork.for_base(base, name="net"), folder / "net.safetensors")
        velatura.save(velatura.Lora.for_base(base, name="lora"), folder / "lora.safetensors")
        (folder / "photos").symlink_to(velatura.tiny_pictures("neon"))
        programs = {label: [sys.executable, *words] for label, words in FLOORS.items()}
        programs |= {f"velatura {words}": [sys.executable, "-m", "velatura", *words.split()] for words in COMMANDS}
        shortest = measure(programs, folder)
    pass_time, torch_time = (shortest[label] for label in FLOORS)
    print(f"{'until it has answered':62}{'python -c pass':>16}{'import torch':>16}")
    for label, seconds in shortest.items():
        print(f"{label:62}{seconds / pass_time:15.1f}x{seconds / torch_time:15.2f}x")


def measure(programs: dict[str, list[str]], folder: Path) -> dict[str, float]:
    """Return the shortest time of each program, after one round that is not measured."""
    shortest = dict.fromkeys(programs, float("inf"))
    for round_number in range(ROUNDS + 1):
        for label, words in programs.items():
            start = time.perf_counter()
            subprocess.run(words, cwd=folder, capture_output=True, check=False)
            if round_number:
                shortest[label] = min(shortest[label], time.perf_counter() - start)
    return shortest


if __name__ == "__main__":
    main()
