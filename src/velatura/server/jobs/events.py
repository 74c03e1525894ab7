"""Events of jobs: stored with ids, so that a client that was away gets what it missed, and followed live."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice
from threading import Lock
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from velatura.server.jobs.database import Database

RECENT_EVENTS = 2000  # kept in memory, so that followers need not ask the database
PAGE_EVENTS = 500  # read at once
EventType = Literal[
    "queued", "started", "step", "picture", "log", "warning", "interrupted", "done", "failed", "cancelled"
]
LAST_EVENTS: tuple[EventType, ...] = ("done", "failed", "cancelled")


class JobEvent(BaseModel):
    """Something that happened to a job.

    Attributes:
        id: Increases from event to event, over all jobs.
        job: The job's id.
        type: What happened.
        time: Seconds since 1970.
        data: More about it, by type.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    job: str
    type: EventType
    time: float
    data: dict[str, Any]


class EventLog:
    """Events in the database, and those who follow them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = Lock()
        self._recent: deque[JobEvent] = deque(maxlen=RECENT_EVENTS)
        self._followers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        [row] = database.rows("SELECT coalesce(max(id), 0) AS last FROM events")
        self.last_id: int = row["last"]
        self._is_closed = False

    def publish(self, job: str, kind: EventType, /, **data: object) -> JobEvent:
        """Store an event and tell those who follow; any thread may call it."""
        with self._lock:
            now = time.time()
            with self._database.transaction() as connection:
                cursor = connection.execute(
                    "INSERT INTO events (job, type, time, data) VALUES (?, ?, ?, ?)", (job, kind, now, json.dumps(data))
                )
            assert cursor.lastrowid is not None
            event = JobEvent(id=cursor.lastrowid, job=job, type=kind, time=now, data=data)
            self._recent.append(event)
            self.last_id = event.id
        self._wake_followers()
        return event

    def after(self, last_id: int, job: str | None = None) -> list[JobEvent]:
        """Return the events after one, the oldest first, PAGE_EVENTS at most.

        Args:
            last_id: The id of the last event that is known.
            job: Only events of this job.
        """
        with self._lock:
            if self._recent and last_id >= self._recent[0].id - 1:  # ids have no gaps
                recent = islice(self._recent, last_id + 1 - self._recent[0].id, None)
                return list(islice((event for event in recent if job in {None, event.job}), PAGE_EVENTS))
        which, parameters = (
            ("", (last_id, PAGE_EVENTS)) if job is None else ("AND job = ?", (last_id, job, PAGE_EVENTS))
        )
        rows = self._database.rows(f"SELECT * FROM events WHERE id > ? {which} ORDER BY id LIMIT ?", parameters)
        return [_to_event(row) for row in rows]

    def latest(self, job: str, kind: EventType) -> JobEvent | None:
        """Return the last event of a type that a job has."""
        query = "SELECT * FROM events WHERE job = ? AND type = ? ORDER BY id DESC LIMIT 1"
        rows = self._database.rows(query, (job, kind))
        return _to_event(rows[0]) if rows else None

    async def follow(self, last_id: int, job: str | None = None) -> AsyncIterator[JobEvent]:
        """Yield events after one as they come, until the server ends, or the job if only one is followed.

        Args:
            last_id: The id of the last event that is known.
            job: Only events of this job.
        """
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            self._followers[wake] = loop
        try:
            while True:
                wake.clear()
                newest = self.last_id
                events = self.after(last_id, job)
                for event in events:
                    yield event
                    last_id = event.id
                    if job is not None and event.type in LAST_EVENTS:
                        return
                if len(events) == PAGE_EVENTS:
                    continue
                last_id = max(last_id, newest)
                if self._is_closed:
                    return
                await wake.wait()
        finally:
            with self._lock:
                self._followers.pop(wake, None)

    async def stored(self, last_id: int, job: str) -> AsyncIterator[JobEvent]:
        """Yield the events of a job after one, and do not wait for more: a crash may have kept its last one back."""
        while events := self.after(last_id, job):
            for event in events:
                yield event
            last_id = events[-1].id

    def forget_steps(self, job: str) -> None:
        """Delete the steps of a job that is over from the database: they were for those who watched it."""
        self._database.change("DELETE FROM events WHERE job = ? AND type = 'step'", (job,))

    def close(self) -> None:
        """Let all who follow come to their end."""
        self._is_closed = True
        self._wake_followers()

    def _wake_followers(self) -> None:
        with self._lock:
            followers = list(self._followers.items())
        for wake, loop in followers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake.set)


def _to_event(row: sqlite3.Row) -> JobEvent:
    return JobEvent(id=row["id"], job=row["job"], type=row["type"], time=row["time"], data=json.loads(row["data"]))
