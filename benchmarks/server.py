"""What `make bench` prints of the server: its overhead, requests per second by many clients, memory over many pictures.

Server and `velatura.generate` run in one process and in turns, so that a slow moment of the machine strikes both. The
server answers over a socket of the loopback device. `--short` measures less of everything.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
from serving import READY_SECONDS, running_server

import velatura

CLIENTS = (1, 8, 64)
RECIPE = {"prompt": "a red house on the beach", "steps": 20, "width": 64, "height": 64}
QUICK_STEPS = 2  # where requests are counted: 64 clients wait for one another's pictures
MIB = 2**20
SEED_COUNT = 2**16


def paint(client: httpx2.Client, seed: int, **fields: int) -> None:
    """Ask for one picture as a program that speaks A1111's API does, and wait for it."""
    request = {**RECIPE, "seed": seed, "sampler_name": "Euler", **fields}
    client.post("/sdapi/v1/txt2img", json=request).raise_for_status()


def measure_overhead(client: httpx2.Client, rounds: int) -> dict[str, float]:
    """Return the median seconds of a picture by the server and by `velatura.generate`, painted in turns.

    Seconds of the processor, of the whole process, do not depend on what else the machine does.
    """
    base = velatura.tiny()
    recipe = velatura.Recipe(sampler="Euler", guidance=7.0, **RECIPE)
    seconds: dict[str, list[float]] = {"server": [], "generate": [], "server CPU": [], "generate CPU": []}
    for seed in range(rounds + 1):
        starts = time.perf_counter(), time.process_time()
        paint(client, seed)
        middles = time.perf_counter(), time.process_time()
        velatura.generate(base, recipe, seed=seed)
        ends = time.perf_counter(), time.process_time()
        if seed:  # the first round warms both up
            for clock, suffix in enumerate(("", " CPU")):
                seconds[f"server{suffix}"].append(middles[clock] - starts[clock])
                seconds[f"generate{suffix}"].append(ends[clock] - middles[clock])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {f"{name} seconds": median for name, median in medians.items()} | {
        "overhead percent": 100 * (medians["server"] / medians["generate"] - 1),
        "overhead percent of the processor": 100 * (medians["server CPU"] / medians["generate CPU"] - 1),
    }


def requests_per_second(address: str, clients: int, seconds: float, ask: Callable[[httpx2.Client], object]) -> float:
    """Return how many requests a second so many clients get answered, each with a connection of its own."""
    end = time.perf_counter() + seconds

    def work(_number: int) -> int:
        done = 0
        with httpx2.Client(base_url=address, timeout=READY_SECONDS) as client:
            while time.perf_counter() < end:
                ask(client)
                done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answered = sum(pool.map(work, range(clients)))
    return answered / (time.perf_counter() - start)


def measure_memory(client: httpx2.Client, pictures: int) -> dict[str, float]:
    """Return the memory of the process in MiB before and after so many pictures of one step."""
    process, before = psutil.Process(), psutil.Process().memory_info().rss
    for seed in range(pictures):
        paint(client, seed, steps=1)
    return {"pictures": pictures, "MiB before": before / MIB, "MiB after": process.memory_info().rss / MIB}


def main() -> None:
    """Print all measurements as JSON, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds, seconds and pictures")
    is_short = parser.parse_args().short
    rounds, seconds, pictures = (5, 2.0, 50) if is_short else (30, 10.0, 1000)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), max_queued_jobs=1000) as address,
        httpx2.Client(base_url=address, timeout=READY_SECONDS) as client,
    ):
        paint(client, SEED_COUNT)  # waits until the base is open
        report("one picture of 20 steps", measure_overhead(client, rounds))
        for clients in CLIENTS:
            rate = requests_per_second(address, clients, seconds, lambda client: client.get("/sdapi/v1/samplers"))
            report(f"GET samplers, {clients} clients", {"requests per second": rate})
        for clients in CLIENTS:
            rate = requests_per_second(address, clients, seconds, lambda client: paint(client, -1, steps=QUICK_STEPS))
            report(f"POST txt2img of {QUICK_STEPS} steps, {clients} clients", {"requests per second": rate})
        report("memory", measure_memory(client, pictures))


def report(name: str, values: dict[str, float]) -> None:
    """Print one measurement."""
    print(json.dumps({"what": name, **{key: round(value, 3) for key, value in values.items()}}), flush=True)


if __name__ == "__main__":
    main()
