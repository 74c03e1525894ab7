"""The tiny base as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

import velatura
from velatura.formats.checkpoints import write_single_file


@pytest.fixture(scope="session")
def file(tiny: velatura.Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "one.safetensors"
    write_single_file.write(tiny, path)
    return path
