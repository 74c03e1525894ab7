"""Routes of jobs: submit, list, look, cancel, skip."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel

from velatura.server.jobs.job import JobState, ServerJob
from velatura.server.jobs.kinds import AnyJobRequest
from velatura.server.state import State

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

MAX_PAGE = 500


class JobList(BaseModel):
    """Jobs, the newest first; `next` is the `before` of the next page, if there is one."""

    jobs: list[ServerJob]
    next: int | None = None


@router.post("", status_code=202)
def submit_job(state: State, request: Annotated[AnyJobRequest, Body()]) -> ServerJob:
    """Put a job into the queue and return it; its `kind` says what is to be done."""
    return state.submit(request)


@router.get("")
def list_jobs(
    state: State,
    *,
    job_state: Annotated[list[JobState] | None, Query(alias="state")] = None,
    kind: str | None = None,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> JobList:
    """List jobs, the newest first."""
    jobs = state.jobs.queue.list(states=job_state or (), kind=kind, before=before, limit=limit)
    return JobList(jobs=jobs, next=jobs[-1].number if len(jobs) == limit else None)


@router.get("/{job_id}")
def get_job(state: State, job_id: str) -> ServerJob:
    """Return a job."""
    return state.jobs.get(job_id)


@router.post("/{job_id}/cancel")
def cancel_job(state: State, job_id: str) -> ServerJob:
    """Cancel a job: a waiting one at once, a running one after its current step. What it made stays."""
    return state.jobs.cancel(job_id)


@router.post("/{job_id}/skip")
def skip_picture(state: State, job_id: str) -> ServerJob:
    """Leave out the pictures that a job paints at this moment, and go on with its next ones."""
    return state.jobs.skip(job_id)
