"""What is known of files, kept between runs: a cache in SQLite that may be lost at any time, and is then built anew."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from velatura.errors import VelaturaWarning
from velatura.library.places import State

Answer = TypeVar("Answer")

VERSION = 1  # of what the rows hold: another one's are dropped
VARIABLE = "VELATURA_CACHE"
FILE = "library.sqlite"
PATIENCE = 10  # seconds that another process may write
TABLE = """CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, node INTEGER, nature TEXT,
    trouble TEXT, notes_state TEXT, notes TEXT, hashes TEXT) WITHOUT ROWID"""
COLUMNS = "path, size, changed, node, nature, trouble, notes_state, notes, hashes"


class Row(NamedTuple):
    """What is known of a file in a state: nature, notes and hashes as JSON, "" where not yet known."""

    state: State
    nature: str = ""
    trouble: str = ""
    notes_state: str = ""
    notes: str = ""
    hashes: str = ""


def cache_folder(given: str | os.PathLike[str] | None) -> Path:
    """Where the index lies: in the given folder, that of VELATURA_CACHE, or where a user's caches are."""
    from platformdirs import user_cache_dir

    wanted = given or os.environ.get(VARIABLE)
    return Path(wanted).expanduser() if wanted else Path(user_cache_dir("velatura"))


class Index:
    """Rows by path, in a folder that several processes may share; where it cannot be used, in memory alone."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._rows: dict[Path, Row] = {}
        self._is_kept = True

    def rows(self, paths: Iterable[Path]) -> dict[Path, Row]:
        """What is known of these files, whatever their state was then."""
        paths = list(paths)
        if unread := [path for path in paths if path not in self._rows]:
            self._rows |= self._asked(lambda database: _selected(database, unread), {})
        return {path: self._rows[path] for path in paths if path in self._rows}

    def keep(self, rows: Mapping[Path, Row]) -> None:
        """Know these from now on."""
        self._rows |= rows
        if rows:
            self._asked(lambda database: _inserted(database, rows), None, writes=True)

    def forget(self, below: Path, but: Iterable[Path]) -> None:
        """Forget the files below a folder that are no more; these are there."""
        kept = {_key(path) for path in but}
        self._asked(lambda database: _deleted(database, _key(below) + os.sep.encode(), kept), None)

    def _asked(
        self, question: Callable[[sqlite3.Connection], Answer], otherwise: Answer, *, writes: bool = False
    ) -> Answer:
        """Ask the database; a broken one is built anew, and one that cannot be used is done without."""
        try:
            if not self._is_kept or not (writes or self._file.exists()):
                return otherwise
            try:
                with self._opened() as database:
                    return question(database)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # no database, or a damaged one
                for spoilt in (self._file, self._file.with_name(f"{FILE}-journal")):
                    spoilt.unlink(missing_ok=True)
                with self._opened() as database:
                    return question(database)
        except (OSError, sqlite3.Error) as error:
            self._is_kept = False
            said = (
                f"{self._file} cannot be used ({error}): files are looked into anew; set {VARIABLE} to another folder"
            )
            warnings.warn(said, VelaturaWarning, stacklevel=2)
            return otherwise

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        """A connection within one transaction, to a table of this version."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=PATIENCE)) as database, database:
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                database.execute("BEGIN IMMEDIATE")
                if database.execute("PRAGMA user_version").fetchone() != (VERSION,):  # nobody else was faster
                    database.execute("DROP TABLE IF EXISTS files")
                    database.execute(TABLE)
                    database.execute(f"PRAGMA user_version = {VERSION}")
            yield database


def _selected(database: sqlite3.Connection, paths: Iterable[Path]) -> dict[Path, Row]:
    found: dict[Path, Row] = {}
    for path in paths:
        row = database.execute(f"SELECT {COLUMNS} FROM files WHERE path = ?", (_key(path),)).fetchone()
        if row is not None:
            _, size, changed, node, *texts = row
            found[path] = Row(State(size, changed, node), *texts)
    return found


def _inserted(database: sqlite3.Connection, rows: Mapping[Path, Row]) -> None:
    values = ((_key(path), *row.state, *row[1:]) for path, row in rows.items())
    database.executemany(f"INSERT OR REPLACE INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _deleted(database: sqlite3.Connection, below: bytes, kept: set[bytes]) -> None:
    query = "SELECT path FROM files WHERE path >= ? AND path < ?"
    there: set[bytes] = {path for (path,) in database.execute(query, (below, below[:-1] + bytes([below[-1] + 1])))}
    gone = [(path,) for path in there - kept if not Path(os.fsdecode(path)).exists()]
    database.executemany("DELETE FROM files WHERE path = ?", gone)


def _key(path: Path) -> bytes:
    """A path as the system has it: not every name is text."""
    return os.fsencode(path.absolute())
