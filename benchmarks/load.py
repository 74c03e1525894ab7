"""Many clients at once for some minutes: no failure of the server, flat memory, pictures equal to their recipes alone.

    python benchmarks/load.py --minutes 10 --clients 64

The server is a process of its own at a free port of the loopback device, with the tiny base. Each client repeats a mix
of requests of A1111's API and of our own, drawn by chance, and waits for each answer. Afterwards some pictures of the
history are painted again by `velatura.generate` and must be equal. It ends with status 1 if something is not as it
should be.
"""

import argparse
import base64
import collections
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
from PIL import Image, ImageChops

import velatura

READY_SECONDS = 600
MIB = 2**20
MAX_GROWTH = 1.15  # memory at the end against that after a tenth of the time, when all kinds of requests have been made
COMPARED_PICTURES = 20
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M", "DDIM")
PROMPTS = ("a red house on the beach", "a blue boat in the snow", "a green fish underwater")


@contextmanager
def server_process(folder: Path) -> Generator[tuple[psutil.Process, str]]:
    """Start a server, and yield its process and its address."""
    command = [sys.executable, "-m", "velatura", "serve", "--port", "0", "--library", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        if match is None:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield psutil.Process(process.pid), match[0]
        finally:
            process.terminate()


class Load:
    """What the clients ask, and what they were answered.

    Attributes:
        counts: Answers by route and status.
        faults: What was not as it should be, one line each.
    """

    def __init__(self, address: str, seconds: float) -> None:
        self._address, self._end = address, time.monotonic() + seconds
        self._lock = threading.Lock()
        self.counts: collections.Counter[tuple[str, int]] = collections.Counter()
        self.faults: list[str] = []

    def run_client(self, number: int) -> None:
        """Ask until the time is up."""
        chance = random.Random(number)
        with httpx2.Client(base_url=self._address, timeout=READY_SECONDS) as client:
            while time.monotonic() < self._end:
                method, route, body = self._draw(chance)
                try:
                    answer = client.request(method, route, json=body)
                except httpx2.HTTPError as error:
                    self._note(route, 0, f"{method} {route}: {error!r}")
                    continue
                is_fault = answer.status_code >= 500
                self._note(route, answer.status_code, f"{method} {route}: {answer.text[:200]}" if is_fault else "")
                if answer.status_code == 429:
                    time.sleep(chance.uniform(0.5, 2))

    def _note(self, route: str, status: int, fault: str) -> None:
        with self._lock:
            self.counts[route.partition("?")[0], status] += 1
            if fault:
                self.faults.append(fault)

    @staticmethod
    def _draw(chance: random.Random) -> tuple[str, str, dict[str, object] | None]:
        """Return a request: method, route, body."""
        fields = {
            "prompt": chance.choice(PROMPTS),
            "seed": chance.randrange(2**31),
            "steps": chance.randint(1, 4),
            "sampler_name": chance.choice(SAMPLERS),
            "width": 64,
            "height": 64,
        }
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (chance.randrange(256), 80, 160)).save(buffer, "PNG")
        image = base64.b64encode(buffer.getvalue()).decode()
        requests: list[tuple[str, str, dict[str, object] | None]] = [
            ("POST", "/sdapi/v1/txt2img", {**fields, "save_images": True}),
            ("POST", "/sdapi/v1/txt2img", {**fields, "batch_size": 2, "save_images": True}),
            ("POST", "/sdapi/v1/img2img", {**fields, "init_images": [image], "denoising_strength": 0.6}),
            ("POST", "/sdapi/v1/png-info", {"image": image}),
            ("POST", "/sdapi/v1/extra-single-image", {"image": image, "upscaling_resize": 2, "upscaler_1": "Lanczos"}),
            ("POST", "/api/jobs", {"kind": "paint", "recipe": {"prompt": fields["prompt"], "steps": 2}}),
            ("POST", "/sdapi/v1/txt2img", {**fields, "sampler_name": "no such sampler"}),
            *(("GET", route, None) for route in GET_ROUTES),
        ]
        return chance.choice(requests)


GET_ROUTES = (
    "/sdapi/v1/samplers",
    "/sdapi/v1/progress",
    "/sdapi/v1/options",
    "/sdapi/v1/loras",
    "/sdapi/v1/sd-models",
    "/api/pictures?limit=20",
    "/api/jobs",
    "/api/system",
)


def compare_pictures(client: httpx2.Client, chance: random.Random) -> list[str]:
    """Return a line for each of some pictures of the history that is not what its recipe paints alone."""
    pictures = client.get("/api/pictures", params={"limit": 500}).json()["pictures"]
    pictures = [picture for picture in pictures if not picture["recipe"].get("image_hash")]
    base, faults = velatura.tiny(), list[str]()
    chosen = chance.sample(pictures, min(COMPARED_PICTURES, len(pictures)))
    for picture in chosen:
        image = Image.open(io.BytesIO(client.get(f"/api/pictures/{picture['id']}/file").content))
        alone = velatura.generate(base, velatura.Recipe(**picture["recipe"])).image
        if ImageChops.difference(image.convert("RGB"), alone).getbbox():
            faults.append(f"picture {picture['id']} differs from its recipe painted alone")
    print(json.dumps({"pictures compared": len(chosen), "different": len(faults)}), flush=True)
    return faults or ([] if chosen else ["the history has no picture to compare"])


def main() -> None:
    """Ask, measure and compare; exit with status 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    seconds, memory = 60 * options.minutes, list[float]()
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(Path(folder)) as (process, address),
        httpx2.Client(base_url=address, timeout=READY_SECONDS) as client,
    ):
        client.post("/sdapi/v1/txt2img", json={"prompt": PROMPTS[0], "steps": 1}).raise_for_status()
        load = Load(address, seconds)
        threads = [threading.Thread(target=load.run_client, args=(number,)) for number in range(options.clients)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            time.sleep(seconds / 10)
            memory.append(process.memory_info().rss / MIB)
            print(json.dumps({"requests": load.counts.total(), "MiB": round(memory[-1])}), flush=True)
        for thread in threads:
            thread.join()
        faults = load.faults + compare_pictures(client, random.Random(0))
    if memory[-1] > MAX_GROWTH * memory[0]:
        faults.append(f"memory grew from {memory[0]:.0f} to {memory[-1]:.0f} MiB")
    statuses = collections.Counter[int]()
    for (_, status), count in load.counts.items():
        statuses[status] += count
    print(json.dumps({"clients": options.clients, "minutes": options.minutes, "answers by status": statuses}))
    print(*faults[:20], sep="\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
