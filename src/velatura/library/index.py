"""Cache what is known about files between runs, in SQLite; the cache may be lost at any time, and is rebuilt then."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from velatura.errors import warn
from velatura.library.model_files import FileState

QueryResult = TypeVar("QueryResult")

INDEX_VERSION = 8  # of the table's contents: the rows of another version are dropped
CACHE_VARIABLE = "VELATURA_CACHE"
INDEX_FILE = "library.sqlite"
LOCK_TIMEOUT_SECONDS = 10  # while another process writes
CREATE_TABLE = """CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, node INTEGER, nature TEXT,
    trouble TEXT, notes_state TEXT, notes TEXT, hashes TEXT) WITHOUT ROWID"""
COLUMNS = "path, size, changed, node, nature, trouble, notes_state, notes, hashes"


class IndexRow(NamedTuple):
    """Row of the index: all that is known about a file. Fields that are not known yet are "".

    Attributes:
        state: The file's state when it was read.
        info: The FileInfo as JSON.
        error: The reason why the file cannot be read.
        notes_state: The state of its sidecars when they were read.
        notes: The Notes as JSON.
        hashes: The Hashes as JSON.
    """

    state: FileState
    info: str = ""
    error: str = ""
    notes_state: str = ""
    notes: str = ""
    hashes: str = ""


def cache_folder(folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the index: the given one, that of VELATURA_CACHE, or the system's folder for caches."""
    from platformdirs import user_cache_dir

    chosen = folder or os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(user_cache_dir("velatura"))


class Index:
    """Rows by path, in a folder that several processes may share; in memory only if the folder cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / INDEX_FILE
        self._rows: dict[Path, IndexRow] = {}
        self._is_usable = True

    def rows(self, paths: Iterable[Path]) -> dict[Path, IndexRow]:
        """Return the rows of those files that have one, whatever the state of the files was then."""
        paths = list(paths)
        unread = [path for path in paths if path not in self._rows]
        if unread:
            self._rows |= self._run_query(lambda database: _select_rows(database, unread), {})
        return {path: self._rows[path] for path in paths if path in self._rows}

    def store(self, rows: Mapping[Path, IndexRow]) -> None:
        """Store rows."""
        self._rows |= rows
        if rows:
            self._run_query(lambda database: _insert_rows(database, rows), None, writes=True)

    def forget(self, folder: Path, existing: Iterable[Path]) -> None:
        """Delete the rows of files below a folder that are gone; `existing` files need not be looked for."""
        keys = {_path_bytes(path) for path in existing}
        self._run_query(lambda database: _delete_rows(database, _path_bytes(folder) + os.sep.encode(), keys), None)

    def _run_query(
        self, query: Callable[[sqlite3.Connection], QueryResult], default: QueryResult, *, writes: bool = False
    ) -> QueryResult:
        """Run a query; rebuild a damaged database, and go on without one that cannot be used."""
        try:
            if not self._is_usable or not (writes or self._file.exists()):
                return default
            try:
                with self._connect() as database:
                    return query(database)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # not a database, or a damaged one
                for damaged in (self._file, self._file.with_name(f"{INDEX_FILE}-journal")):
                    damaged.unlink(missing_ok=True)
                with self._connect() as database:
                    return query(database)
        except (OSError, sqlite3.Error) as error:
            self._is_usable = False
            warn(
                f"{self._file} cannot be used ({error}), so all files are read again: "
                f"set {CACHE_VARIABLE} to another folder"
            )
            return default

    @contextmanager
    def _connect(self) -> Generator[sqlite3.Connection]:
        """Connect within one transaction, to a table of this version."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=LOCK_TIMEOUT_SECONDS)) as database, database:
            if database.execute("PRAGMA user_version").fetchone() != (INDEX_VERSION,):
                database.execute("BEGIN IMMEDIATE")
                if database.execute("PRAGMA user_version").fetchone() != (
                    INDEX_VERSION,
                ):  # another process may be faster
                    database.execute("DROP TABLE IF EXISTS files")
                    database.execute(CREATE_TABLE)
                    database.execute(f"PRAGMA user_version = {INDEX_VERSION}")
            yield database


def _select_rows(database: sqlite3.Connection, paths: Iterable[Path]) -> dict[Path, IndexRow]:
    rows: dict[Path, IndexRow] = {}
    for path in paths:
        row = database.execute(f"SELECT {COLUMNS} FROM files WHERE path = ?", (_path_bytes(path),)).fetchone()
        if row is not None:
            _, size, modified, inode, *texts = row
            rows[path] = IndexRow(FileState(size, modified, inode), *texts)
    return rows


def _insert_rows(database: sqlite3.Connection, rows: Mapping[Path, IndexRow]) -> None:
    values = ((_path_bytes(path), *row.state, *row[1:]) for path, row in rows.items())
    database.executemany(f"INSERT OR REPLACE INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _delete_rows(database: sqlite3.Connection, prefix: bytes, existing: set[bytes]) -> None:
    query = "SELECT path FROM files WHERE path >= ? AND path < ?"
    stored: set[bytes] = {path for (path,) in database.execute(query, (prefix, prefix[:-1] + bytes([prefix[-1] + 1])))}
    missing = [(path,) for path in stored - existing if not Path(os.fsdecode(path)).exists()]
    database.executemany("DELETE FROM files WHERE path = ?", missing)


def _path_bytes(path: Path) -> bytes:
    """Return a path as the system stores it, as not every file name is valid text."""
    return os.fsencode(path.absolute())
