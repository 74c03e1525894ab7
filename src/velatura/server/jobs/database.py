"""SQLite file of the server: jobs, events, pictures and options, which survive a crash at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from velatura.errors import BadFile

SCHEMA_VERSION = 2
LOCK_TIMEOUT_SECONDS = 30
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, lane TEXT NOT NULL,
    state TEXT NOT NULL, priority INTEGER NOT NULL, request TEXT NOT NULL, created REAL NOT NULL, started REAL,
    ended REAL, starts INTEGER NOT NULL DEFAULT 0, is_cancelled INTEGER NOT NULL DEFAULT 0,
    progress TEXT NOT NULL DEFAULT '{}', warnings TEXT NOT NULL DEFAULT '[]', result TEXT NOT NULL DEFAULT '{}',
    error TEXT);
CREATE INDEX jobs_by_state ON jobs (state, lane, priority DESC, number);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT, type TEXT NOT NULL, time REAL NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_by_job ON events (job, id);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, position INTEGER NOT NULL, file TEXT NOT NULL,
    created REAL NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, seed INTEGER, prompt TEXT NOT NULL,
    base TEXT, recipe TEXT NOT NULL, effects TEXT NOT NULL DEFAULT '[]', UNIQUE (job, position));
CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
# What brings the tables of an earlier version to the next one
UPGRADES = {1: "ALTER TABLE pictures ADD COLUMN effects TEXT NOT NULL DEFAULT '[]';"}

QueryParameters = Sequence[str | int | float | None]


class Database:
    """One connection to the file, which threads use one after another.

    Args:
        path: The file; it is created if it is not there.

    Raises:
        BadFile: The file cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = RLock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, check_same_thread=False, isolation_level=None
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # a crash of the process loses nothing
            self._create_tables(path)
        except sqlite3.DatabaseError as error:
            raise BadFile(f"{path} cannot be used ({error}): move it away, or choose another --out") from None

    def _create_tables(self, path: Path) -> None:
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise BadFile(f"{path} was written by a newer velatura: update velatura, or choose another --out")
        if version == 0:
            self._connection.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
            return
        for earlier in range(version, SCHEMA_VERSION):
            self._connection.executescript(f"BEGIN;{UPGRADES[earlier]}PRAGMA user_version = {earlier + 1};COMMIT;")

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Run a block of changes that happen together or not at all."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, query: str, parameters: QueryParameters = ()) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    def change(self, statement: str, parameters: QueryParameters = ()) -> int:
        """Run one change and return how many rows it met."""
        with self._lock:
            return self._connection.execute(statement, parameters).rowcount

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
