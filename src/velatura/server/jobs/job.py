"""A job as a value: what was asked for, how far it is, and what came of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from velatura.server.errors import ErrorDetail

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
EndState = Literal["done", "failed", "cancelled"]
ENDED_STATES: tuple[EndState, ...] = ("done", "failed", "cancelled")


class JobProgress(BaseModel):
    """Progress of a job.

    Attributes:
        done: Steps taken.
        total: Steps in all; None where that is not known.
        stage: What is being done, as "painting".
    """

    model_config = ConfigDict(frozen=True)

    done: int = 0
    total: int | None = None
    stage: str = ""


class ServerJob(BaseModel):
    """A job of the queue.

    Attributes:
        id: Its name in URLs.
        number: Its place in the order in which jobs came.
        kind: What is to be done, as "paint".
        state: Where it stands. A job that was interrupted by the server's end is queued again.
        priority: Jobs of higher priority run first.
        request: What was asked for, with nothing left to chance: missing seeds are drawn.
        created, started, ended: Seconds since 1970.
        starts: How often it was started since something of it was stored, without those that the server stopped.
        warnings: What velatura warned of.
        result: What came of it, by kind; pictures so far while it runs.
        error: Why it failed.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    number: int
    kind: str
    state: JobState
    priority: int = 0
    request: dict[str, Any]
    created: float
    started: float | None = None
    ended: float | None = None
    starts: int = 0
    progress: JobProgress = Field(default_factory=JobProgress)
    warnings: tuple[str, ...] = ()
    result: dict[str, Any] = Field(default_factory=dict)
    error: ErrorDetail | None = None

    @property
    def has_ended(self) -> bool:
        """Return True if nothing more will happen to it."""
        return self.state in ENDED_STATES


class JobStopped(KeyboardInterrupt):
    """A job was cancelled, or the server ends: like Ctrl-C on the command line, so that trainings keep a snapshot."""
