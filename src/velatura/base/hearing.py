"""Where a text stands while it is encoded by itself: in which row of a batch, and on which side of the guidance."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Place(NamedTuple):
    """A row of so many, and whether the text there is a negative prompt, None where nobody says."""

    row: int = 0
    rows: int = 1
    negative: bool | None = None


_PLACE: ContextVar[Place | None] = ContextVar("velatura_place", default=None)


@contextmanager
def hearing(*, negative: bool | None = None, row: int | None = None, rows: int | None = None) -> Generator[None]:
    """Encode one text at a time inside, at this place; what is not given is as it was. Each thread for itself."""
    before = place_heard() or Place()
    given = {"negative": negative, "row": row, "rows": rows}
    token = _PLACE.set(before._replace(**{name: each for name, each in given.items() if each is not None}))
    try:
        yield
    finally:
        _PLACE.reset(token)


def place_heard() -> Place | None:
    """Where the text stands that is being encoded; None where texts are encoded together, in the rows of a batch."""
    return _PLACE.get()


def is_negative() -> bool | None:
    """Whether the text that is being encoded is a negative prompt; None where nobody says."""
    place = place_heard()
    return None if place is None else place.negative
