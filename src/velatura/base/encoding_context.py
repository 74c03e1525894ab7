"""Where a text stands while it is encoded by itself: in which row of a batch, and on which side of the guidance."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class BatchRow(NamedTuple):
    """A row of so many, and whether the text there is a negative prompt, None where nobody says."""

    row: int = 0
    rows: int = 1
    negative: bool | None = None


_CURRENT_ROW: ContextVar[BatchRow | None] = ContextVar("velatura_place", default=None)


@contextmanager
def encoding_row(*, negative: bool | None = None, row: int | None = None, rows: int | None = None) -> Generator[None]:
    """Encode one text at a time inside, at this place; what is not given is as it was. Each thread for itself."""
    outer = current_row() or BatchRow()
    given = {"negative": negative, "row": row, "rows": rows}
    token = _CURRENT_ROW.set(outer._replace(**{name: value for name, value in given.items() if value is not None}))
    try:
        yield
    finally:
        _CURRENT_ROW.reset(token)


def current_row() -> BatchRow | None:
    """Where the text stands that is being encoded; None where texts are encoded together, in the rows of a batch."""
    return _CURRENT_ROW.get()


def is_negative() -> bool | None:
    """Whether the text that is being encoded is a negative prompt; None where nobody says."""
    row = current_row()
    return None if row is None else row.negative
