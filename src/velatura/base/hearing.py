"""What a text is for while it is encoded: to be drawn towards, or to be kept away from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_NEGATIVE: ContextVar[bool | None] = ContextVar("velatura_negative", default=None)


@contextmanager
def hearing(*, negative: bool) -> Generator[None]:
    """Encode prompts inside, or negative prompts; each thread for itself."""
    token = _NEGATIVE.set(negative)
    try:
        yield
    finally:
        _NEGATIVE.reset(token)


def is_negative() -> bool | None:
    """Whether the text that is being encoded is a negative prompt; None where nobody says."""
    return _NEGATIVE.get()
