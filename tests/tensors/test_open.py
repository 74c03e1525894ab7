import os

import pytest

from velatura.errors import BadFile
from velatura.tensors import open_tensors


def test_other_files_are_refused(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "folder.pt").mkdir()
    for name, message in (
        ("empty.pt", "is empty"),
        ("page.pt", "starts with"),
        ("folder.pt", "director"),
        ("no.pt", "No such"),
    ):
        with pytest.raises(BadFile, match=message):
            open_tensors(tmp_path / name)


def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(BadFile, match="neither a file"):
        open_tensors(tmp_path / "pipe.pt")
