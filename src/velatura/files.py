"""Files that are written at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from velatura.errors import BadFile


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[Path]:
    """Give a path beside the wanted one to write to, and put it in place at the end; after an error nothing is left.

    Folders on the way are made. The file may be read and written by whom the umask allows.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch(exist_ok=False)
        yield beside
        beside.replace(path)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}: choose another place") from None
    finally:
        if beside.is_file():
            beside.unlink()
