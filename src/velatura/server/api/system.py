"""Routes of the system: that the server is here, its versions, device, memory and queue."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from pydantic import BaseModel

from velatura.server.cluster.messages import WorkerInfo
from velatura.server.jobs.job import JobState
from velatura.server.state import State

router = APIRouter(tags=["system"])

PACKAGES = ("velatura", "torch", "diffusers", "transformers", "fastapi", "pydantic", "pillow")


class DeviceInfo(BaseModel):
    """Device on which the base computes, and its memory in bytes, where that is known."""

    name: str
    memory_total: int | None = None
    memory_used: int | None = None


class SystemInfo(BaseModel):
    """Versions and state of the server.

    Attributes:
        versions: Of velatura and what it stands on.
        base: Name of the open base; None while it is opening.
        device: The device of the open base.
        memory_total, memory_available, memory_used: Bytes of the machine, and those of this process.
        jobs: How many jobs there are by state.
        workers: What each worker on the cluster does; None without one.
        uptime: Seconds since the start.
    """

    versions: dict[str, str]
    base: str | None
    device: DeviceInfo | None
    memory_total: int
    memory_available: int
    memory_used: int
    jobs: dict[JobState, int]
    workers: list[WorkerInfo] | None = None
    uptime: float


@router.get("/internal/ping")
def ping() -> dict[str, str]:
    """Answer that the server is here."""
    return {}


@router.get("/api/system")
def get_system(state: State) -> SystemInfo:
    """Return versions, device, memory and queue."""
    import psutil

    memory = psutil.virtual_memory()
    return SystemInfo(
        versions=_versions(),
        base=state.models.open_base_name,
        device=_device(state.models.device),
        memory_total=memory.total,
        memory_available=memory.available,
        memory_used=psutil.Process().memory_info().rss,
        jobs=state.jobs.queue.count(),
        workers=state.pool and [worker.info for worker in state.pool.workers],
        uptime=time.time() - state.started,
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device(name: str | None) -> DeviceInfo | None:
    """Return a device and its memory; torch is imported already where a base is open."""
    if name is None:
        return None
    if not name.startswith("cuda"):
        return DeviceInfo(name=name)
    import torch

    free, total = torch.cuda.mem_get_info(name)
    return DeviceInfo(name=name, memory_total=total, memory_used=total - free)
