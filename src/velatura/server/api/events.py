"""Routes of events: Server-Sent Events with ids, which a reconnect continues from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from velatura.server.jobs.events import JobEvent
from velatura.server.state import State

router = APIRouter(prefix="/api", tags=["events"])

RETRY_MILLISECONDS = 1000


def last_event_id(
    header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    query: Annotated[str | None, Query(alias="last_id", description="instead of the header")] = None,
) -> int | None:
    """Return the id of the last event that a client has, None if it has none or says nothing we know."""
    text = (header or query or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


LastId = Annotated[int | None, Depends(last_event_id)]


@router.get("/events", response_class=EventSourceResponse)
async def follow_events(state: State, last_id: LastId) -> AsyncIterator[ServerSentEvent]:
    """Stream the events of all jobs: those after Last-Event-ID, or from now on without it."""
    newest = state.jobs.events.last_id  # a client of another output folder may know of more events than there are
    start = newest if last_id is None else min(last_id, newest)
    yield ServerSentEvent(comment="velatura", retry=RETRY_MILLISECONDS)
    async for event in state.jobs.events.follow(start):
        yield _to_server_sent_event(event)


def check_followed_job(state: State, job_id: str, last_id: LastId) -> None:
    """Refuse a job that does not exist, and end a client's reconnects with 204 if it has all events of a job.

    Raises:
        ApiError: The job does not exist.
        HTTPException: Nothing more will come.
    """
    job = state.jobs.get(job_id)
    if job.has_ended and last_id is not None and not state.jobs.events.after(last_id, job_id):
        raise HTTPException(204)


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, dependencies=[Depends(check_followed_job)])
async def follow_job(state: State, job_id: str, last_id: LastId) -> AsyncIterator[ServerSentEvent]:
    """Stream the events of one job: those after Last-Event-ID, or all of them; it ends with the job."""
    yield ServerSentEvent(comment="velatura", retry=RETRY_MILLISECONDS)
    has_ended = state.jobs.get(job_id).has_ended  # before its events are read: then the last one is among them
    events = state.jobs.events
    async for event in events.stored(last_id or 0, job_id) if has_ended else events.follow(last_id or 0, job_id):
        yield _to_server_sent_event(event)


def _to_server_sent_event(event: JobEvent) -> ServerSentEvent:
    return ServerSentEvent(
        id=str(event.id),
        event=event.type,
        data={"job": event.job, "type": event.type, "time": event.time, **event.data},
    )
