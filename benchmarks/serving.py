"""The server that benchmarks measure: in a thread of their own process, on the loopback device."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from velatura.server.app import create_app
from velatura.server.settings import ServerSettings

READY_SECONDS = 300


@contextmanager
def running_server(folder: Path, max_queued_jobs: int | None = None) -> Generator[str]:
    """Serve the tiny base in a thread of this process, and yield its address.

    Args:
        folder: The library; pictures are written to "output" in it.
        max_queued_jobs: How many jobs may wait; None: as many as usual.
    """
    limits = {} if max_queued_jobs is None else {"max_queued_jobs": max_queued_jobs}
    settings = ServerSettings.of(library=(folder,), out=folder / "output", **limits)
    config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    [socket] = server.servers[0].sockets
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(READY_SECONDS)
