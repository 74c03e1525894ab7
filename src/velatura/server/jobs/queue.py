"""The queue: jobs as rows in SQLite, taken in the order of priority and arrival."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from secrets import token_hex
from threading import Condition

from velatura.server.errors import ErrorDetail
from velatura.server.jobs.database import Database
from velatura.server.jobs.job import ENDED_STATES, JobProgress, JobState, ServerJob

MAX_STARTS = 5  # of a job of which nothing is stored: it may be what ends the server
POISON = ErrorDetail(
    code="interrupted",
    message=f"the server ended {MAX_STARTS} times while this job ran and had nothing stored: it may need less memory",
)


class JobQueue:
    """Jobs in the database. `changed` is notified when a job can be taken."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changed = Condition()

    def add(
        self, kind: str, lane: str, request: Mapping[str, object], priority: int = 0, warnings: Sequence[str] = ()
    ) -> ServerJob:
        """Add a job.

        Args:
            kind: Its kind.
            lane: The worker that runs it.
            request: What is asked for, as JSON.
            priority: Higher runs first.
            warnings: Warnings that it begins with.
        """
        job_id = token_hex(8)
        self._database.change(
            "INSERT INTO jobs (id, kind, lane, state, priority, request, created, warnings) "
            "VALUES (?, ?, ?, 'queued', ?, ?, ?, ?)",
            (job_id, kind, lane, priority, json.dumps(request), time.time(), json.dumps(list(warnings))),
        )
        job = self.get(job_id)
        assert job is not None
        self.notify()
        return job

    def notify(self) -> None:
        """Wake the workers."""
        with self.changed:
            self.changed.notify_all()

    def get(self, job_id: str) -> ServerJob | None:
        """Return a job, None if there is none with this id."""
        rows = self._database.rows("SELECT * FROM jobs WHERE id = ?", (job_id,))
        return _to_job(rows[0]) if rows else None

    def list(
        self,
        *,
        states: Sequence[JobState] = (),
        kind: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[ServerJob]:
        """List jobs, the newest first.

        Args:
            states: Only jobs in one of these states.
            kind: Only jobs of this kind.
            before: Only jobs with a lower number.
            limit: The most jobs.
        """
        conditions, parameters = ["1"], list[str | int]()
        if states:
            conditions.append(f"state IN ({', '.join('?' * len(states))})")
            parameters += states
        if kind is not None:
            conditions.append("kind = ?")
            parameters.append(kind)
        if before is not None:
            conditions.append("number < ?")
            parameters.append(before)
        query = f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?"
        return [_to_job(row) for row in self._database.rows(query, (*parameters, limit))]

    def waiting(self, lane: str, kind: str, limit: int) -> list[ServerJob]:
        """Return the queued jobs of a kind in the order in which they will run."""
        query = (
            "SELECT * FROM jobs WHERE state = 'queued' AND lane = ? AND kind = ? ORDER BY priority DESC, number LIMIT ?"
        )
        return [_to_job(row) for row in self._database.rows(query, (lane, kind, limit))]

    def has_waiting(self, lane: str, kinds: Sequence[str] = (), other_than: Sequence[str] = ()) -> bool:
        """Return True if a job of a lane waits.

        Args:
            lane: The lane.
            kinds: Only jobs of these kinds.
            other_than: No jobs of these kinds.
        """
        return self._next_id(lane, kinds, other_than) is not None

    def count(self) -> dict[JobState, int]:
        """Return how many jobs there are by state."""
        rows = self._database.rows("SELECT state, count(*) AS count FROM jobs GROUP BY state")
        return {row["state"]: row["count"] for row in rows}

    def take(self, lane: str, kinds: Sequence[str] = (), other_than: Sequence[str] = ()) -> ServerJob | None:
        """Return the next job of a lane, which runs from now on; None if none waits.

        Args:
            lane: The lane.
            kinds: Only jobs of these kinds.
            other_than: No jobs of these kinds.
        """
        while (job_id := self._next_id(lane, kinds, other_than)) is not None:
            job = self.take_job(job_id)
            if job is not None:  # otherwise another worker was faster
                return job
        return None

    def _next_id(self, lane: str, kinds: Sequence[str], other_than: Sequence[str]) -> str | None:
        """Return the id of the job of a lane that is to run next."""
        conditions = ["state = 'queued'", "lane = ?", f"kind NOT IN ({', '.join('?' * len(other_than))})"]
        if kinds:
            conditions.append(f"kind IN ({', '.join('?' * len(kinds))})")
        query = f"SELECT id FROM jobs WHERE {' AND '.join(conditions)} ORDER BY priority DESC, number LIMIT 1"
        rows = self._database.rows(query, (lane, *other_than, *kinds))
        return rows[0]["id"] if rows else None

    def take_job(self, job_id: str) -> ServerJob | None:
        """Return a queued job, which runs from now on; None if it is not queued any more."""
        taken = self._database.change(
            "UPDATE jobs SET state = 'running', started = ?, starts = starts + 1 WHERE id = ? AND state = 'queued'",
            (time.time(), job_id),
        )
        return self.get(job_id) if taken else None

    def cancel(self, job_id: str) -> JobState | None:
        """Cancel a queued job, or mark a running one; return its state, None if it does not exist."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = 'queued'",
                (time.time(), job_id),
            )
            connection.execute("UPDATE jobs SET is_cancelled = 1 WHERE id = ? AND state = 'running'", (job_id,))
        job = self.get(job_id)
        return job and job.state

    def save_progress(self, job_id: str, progress: JobProgress) -> None:
        """Store how far a job is; what it has done is lost all the same if its worker ends."""
        self._database.change("UPDATE jobs SET progress = ? WHERE id = ?", (progress.model_dump_json(), job_id))

    def reset_starts(self, job_id: str) -> None:
        """Count the starts of a job from this one: something of it is stored, which the next one need not make."""
        self._database.change("UPDATE jobs SET starts = 1 WHERE id = ?", (job_id,))

    def save_warnings(self, job_id: str, warnings: Sequence[str]) -> None:
        """Store the warnings of a job."""
        self._database.change("UPDATE jobs SET warnings = ? WHERE id = ?", (json.dumps(list(warnings)), job_id))

    def save_result(self, job_id: str, result: Mapping[str, object]) -> None:
        """Store what came of a job so far."""
        self._database.change("UPDATE jobs SET result = ? WHERE id = ?", (json.dumps(result), job_id))

    def finish(self, job_id: str, state: JobState, error: ErrorDetail | None = None) -> None:
        """End a job."""
        self._database.change(
            "UPDATE jobs SET state = ?, ended = ?, error = ? WHERE id = ?",
            (state, time.time(), error and error.model_dump_json(), job_id),
        )
        self.notify()

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue, where it stands before those that came later."""
        self._database.change("UPDATE jobs SET state = 'queued' WHERE id = ? AND state = 'running'", (job_id,))
        self.notify()

    def put_back(self, job_id: str) -> None:
        """Put a job that was asked to stop back into the queue; this start does not count."""
        self._database.change(
            "UPDATE jobs SET state = 'queued', starts = starts - 1 WHERE id = ? AND state = 'running'", (job_id,)
        )
        self.notify()

    def recover(self) -> tuple[list[ServerJob], list[ServerJob]]:
        """Settle the jobs that ran when the server ended: return those queued again, and those that ended.

        A job that was to be cancelled is; one that was started MAX_STARTS times with nothing stored has failed.
        """
        query = "SELECT id, starts, is_cancelled FROM jobs WHERE state = 'running'"
        requeued, ended = list[ServerJob](), list[ServerJob]()
        for row in self._database.rows(query):
            if row["is_cancelled"]:
                self.finish(row["id"], "cancelled")
            elif row["starts"] >= MAX_STARTS:
                self.finish(row["id"], "failed", POISON)
            else:
                self.requeue(row["id"])
            job = self.get(row["id"])
            assert job is not None
            (ended if job.has_ended else requeued).append(job)
        return requeued, ended

    def open_requests(self) -> str:
        """Return the requests of all jobs that have not ended, as one text."""
        rows = self._database.rows("SELECT request FROM jobs WHERE state IN ('queued', 'running')")
        return "\n".join(row["request"] for row in rows)

    def forget(self, before: float) -> None:
        """Delete jobs that ended before a time, and their events; their pictures stay."""
        states = ", ".join(f"'{state}'" for state in ENDED_STATES)
        with self._database.transaction() as connection:
            connection.execute(
                f"DELETE FROM events WHERE job IN (SELECT id FROM jobs WHERE state IN ({states}) AND ended < ?)",
                (before,),
            )
            connection.execute(f"DELETE FROM jobs WHERE state IN ({states}) AND ended < ?", (before,))


def _to_job(row: sqlite3.Row) -> ServerJob:
    values = {key: row[key] for key in row.keys() if key not in {"lane", "is_cancelled"}}  # noqa: SIM118  # of a Row
    for key in ("request", "progress", "warnings", "result", "error"):
        values[key] = None if values[key] is None else json.loads(values[key])
    return ServerJob.model_validate(values)
