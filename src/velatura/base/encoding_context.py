"""Context variable that tells hooks which row and which side of a batch is being encoded.

Texts of a batch are encoded one at a time. Hooks on the text encoders need to know which text that is: an overlay's
strength can differ from row to row, and between the prompt and the negative prompt.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class BatchRow(NamedTuple):
    """A row of a batch.

    Attributes:
        row: Index of the row.
        rows: Number of rows.
        negative: True for a negative prompt, False for a prompt, None if the caller did not say.
    """

    row: int = 0
    rows: int = 1
    negative: bool | None = None


_CURRENT_ROW: ContextVar[BatchRow | None] = ContextVar("velatura_batch_row", default=None)
_NEGATIVE_ROWS: ContextVar[int | None] = ContextVar("velatura_negative_rows", default=None)


@contextmanager
def encoding_row(*, negative: bool | None = None, row: int | None = None, rows: int | None = None) -> Generator[None]:
    """Set the row that is encoded inside the `with` block, for this thread.

    Args:
        negative, row, rows: Fields of BatchRow; None keeps the value of the enclosing block.
    """
    outer = current_row() or BatchRow()
    changes = {"negative": negative, "row": row, "rows": rows}
    token = _CURRENT_ROW.set(outer._replace(**{name: value for name, value in changes.items() if value is not None}))
    try:
        yield
    finally:
        _CURRENT_ROW.reset(token)


def current_row() -> BatchRow | None:
    """Return the row that is being encoded; None if all rows of a batch are encoded together."""
    return _CURRENT_ROW.get()


def is_negative() -> bool | None:
    """Return True if the text that is being encoded is a negative prompt; None if the caller did not say."""
    row = current_row()
    return None if row is None else row.negative


@contextmanager
def guided_rows(negative_rows: int) -> Generator[None]:
    """Tell hooks on the UNet how many rows of its batch are negative prompts, which come first, for this thread."""
    token = _NEGATIVE_ROWS.set(negative_rows)
    try:
        yield
    finally:
        _NEGATIVE_ROWS.reset(token)


def negative_row_count() -> int | None:
    """Return how many rows of the UNet's batch are negative prompts; None if the caller did not say."""
    return _NEGATIVE_ROWS.get()
