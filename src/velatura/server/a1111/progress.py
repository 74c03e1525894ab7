"""Routes that watch and steer what is running: progress with a preview, interrupt, skip, and A1111's task ids."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from velatura.server.a1111.answers import encode_image
from velatura.server.a1111.schemas import A1111Request
from velatura.server.errors import ApiError
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.kinds import JOB_KINDS
from velatura.server.state import ServerState, State

router = APIRouter(tags=["a1111"])

MAX_TASKS = 1000  # whose ids are remembered
PAINT_KINDS = {"paint", "grid"}


class ProgressAnswer(BaseModel):
    """How far the running job is; `progress` is 0 if nothing runs."""

    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None = None
    textinfo: str | None = None


class TaskQuestion(A1111Request):
    """Which task a client asks for, and the preview that it has."""

    id_task: str | None = None
    id_live_preview: int = -1
    live_preview: bool = True


class TaskAnswer(BaseModel):
    """How far a task is."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int | None = None
    textinfo: str | None = None


@router.get("/sdapi/v1/progress")
def get_progress(state: State, skip_current_image: bool = False) -> ProgressAnswer:
    """Return how far the running job is."""
    job = _running_job(state)
    if job is None:
        return ProgressAnswer(progress=0, eta_relative=0, state=_job_state(state, None))
    share, eta = _share(job), _eta(job)
    image = None
    if not skip_current_image:
        preview = _preview(state, job)
        image = preview and _to_png(preview[1])
    return ProgressAnswer(
        progress=share, eta_relative=eta, state=_job_state(state, job), current_image=image, textinfo=None
    )


@router.post("/sdapi/v1/interrupt")
def interrupt(state: State) -> dict[str, str]:
    """End the running job after its current step; what it made stays."""
    for job in _running_jobs(state):
        state.jobs.cancel(job.id)
    return {}


@router.post("/sdapi/v1/skip")
def skip(state: State) -> None:
    """Leave out the pictures that are painted at this moment."""
    for job in _running_jobs(state):
        if job.kind != "paint":
            continue
        try:
            state.jobs.skip(job.id)
        except ApiError:  # it has ended meanwhile
            continue


@router.post("/internal/progress")
def get_task_progress(state: State, question: TaskQuestion) -> TaskAnswer:
    """Return how far the task of an id is, the `force_task_id` of its request."""
    jobs = [job for job_id in state.tasks.get(question.id_task or "", ()) if (job := state.jobs.queue.get(job_id))]
    running = next((job for job in jobs if job.state == "running"), None)
    if running is None:
        is_queued = any(job.state == "queued" for job in jobs)
        is_over = bool(jobs) and all(job.has_ended for job in jobs)
        text = "In queue..." if is_queued else "Waiting..."
        return TaskAnswer(active=False, queued=is_queued, completed=is_over, id_live_preview=-1, textinfo=text)
    answer = TaskAnswer(active=True, queued=False, completed=False, progress=_share(running), eta=_eta(running))
    preview = _preview(state, running) if question.live_preview else None
    if preview is None:
        return answer.model_copy(update={"id_live_preview": question.id_live_preview})
    is_new = preview[0] != question.id_live_preview
    return answer.model_copy(update={"live_preview": preview[1] if is_new else None, "id_live_preview": preview[0]})


@router.get("/internal/pending-tasks")
def list_pending_tasks(state: State) -> dict[str, object]:
    """List the ids of tasks that wait."""
    waiting = {job.id for job in state.jobs.queue.list(states=("queued",))}
    tasks = [task for task, jobs in list(state.tasks.items()) if waiting.intersection(jobs)]
    return {"size": len(tasks), "tasks": tasks}


def remember_task(state: ServerState, task: str, jobs: Sequence[ServerJob]) -> None:
    """Remember which jobs a client calls by an id of its own."""
    state.tasks.pop(task, None)
    state.tasks[task[:200]] = tuple(job.id for job in jobs)
    while len(state.tasks) > MAX_TASKS:
        state.tasks.pop(next(iter(state.tasks)), None)


def _running_jobs(state: ServerState) -> list[ServerJob]:
    """Return the jobs that run on the base: several if they paint in one batch."""
    return [job for job in state.jobs.queue.list(states=("running",)) if JOB_KINDS[job.kind].lane == "device"]


def _running_job(state: ServerState) -> ServerJob | None:
    jobs = _running_jobs(state)
    return min(jobs, key=lambda job: job.number) if jobs else None


def _share(job: ServerJob) -> float:
    """Return how much of a job is done, from 0.01, as A1111 says it of a job that has just begun, to 1."""
    total = job.progress.total
    return min(1.0, max(0.01, job.progress.done / total)) if total else 0.01


def _eta(job: ServerJob) -> float:
    """Return the seconds that a job probably takes from now on."""
    share = _share(job)
    elapsed = time.time() - (job.started or time.time())
    return elapsed / share - elapsed


def _job_state(state: ServerState, job: ServerJob | None) -> dict[str, Any]:
    """Return A1111's account of what it does."""
    recipes: Sequence[Mapping[str, Any]] = job.request.get("recipes", [{}]) if job else []
    steps = int(recipes[0].get("steps", 20)) if recipes else 0
    done = job.progress.done if job else 0
    started = datetime.fromtimestamp(job.started, UTC).astimezone() if job and job.started else None
    return {
        "skipped": False,
        "interrupted": bool(job) and state.jobs.is_cancelled(job.id),
        "stopping_generation": False,
        "job": _job_title(job, len(recipes), done, steps),
        "job_count": len(recipes) if job else 0,
        "job_timestamp": started.strftime("%Y%m%d%H%M%S") if started else "0",
        "job_no": min(done // steps, max(0, len(recipes) - 1)) if steps else 0,
        "sampling_step": done % steps if steps else 0,
        "sampling_steps": steps,
    }


def _job_title(job: ServerJob | None, count: int, done: int, steps: int) -> str:
    if job is None:
        return ""
    if job.kind not in PAINT_KINDS:
        return job.kind
    return f"Batch {min(done // steps + 1, count)} out of {count}" if steps else job.kind


def _preview(state: ServerState, job: ServerJob) -> tuple[int, str] | None:
    """Return the id of the last preview of a job, and the preview as a data URL."""
    event = state.jobs.events.latest(job.id, "step")
    previews: Mapping[str, str] = event.data.get("previews", {}) if event else {}
    return (event.id, next(iter(previews.values()))) if event and previews else None


def _to_png(data_url: str) -> str:
    """Return a data URL of an image as base64 of a PNG."""
    from PIL import Image

    data = base64.b64decode(data_url.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        return encode_image(image.convert("RGB"))
