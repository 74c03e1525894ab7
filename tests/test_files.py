import os
import subprocess
import sys

import pytest

from velatura.errors import BadFile
from velatura.files import atomic_write, has_drive, is_path_outside, open_for_reading, parse_json, suggest_similar


def test_a_file_is_read(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"words")
    with open_for_reading(tmp_path / "x.txt") as file:
        assert file.read() == b"words"


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(BadFile, match="is a directory: give the path of a file"), open_for_reading(tmp_path):
        pass
    with pytest.raises(BadFile, match=r"none\.txt: No such file"), open_for_reading(tmp_path / "none.txt"):
        pass
    with pytest.raises(BadFile, match="null"), open_for_reading(tmp_path / "a\0b"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="neither a file nor a directory"), open_for_reading(tmp_path / "pipe"):
        pass


def test_what_was_written_is_in_place_and_nothing_beside_it(tmp_path):
    with atomic_write(tmp_path / "deep" / "x.txt") as beside:
        beside.write_text("new")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.txt"]
    assert (tmp_path / "deep" / "x.txt").read_text() == "new"


def test_after_an_error_the_old_file_stands_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as beside:
        beside.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="cannot be written"), atomic_write(tmp_path / "file" / "x.pt"):
        pass


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "x.pt").mkdir()
    with pytest.raises(BadFile, match="cannot be written"), atomic_write(tmp_path / "x.pt") as beside:
        beside.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "x.txt") as beside:
            beside.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == mode


def test_writing_files_needs_no_torch():
    program = "import sys, velatura.files; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b"False"


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "\\u0061": 1}}]'])
def test_json_with_a_key_twice_is_refused(text):
    with pytest.raises(ValueError, match="it has the key 'a' twice"):
        parse_json(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_json_in_another_encoding_than_utf8_is_refused(encoding):
    with pytest.raises(ValueError, match=r"decode|Expecting"):
        parse_json('{"a": 1}'.encode(encoding))


def test_a_byte_order_mark_before_json_is_skipped():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize(
    ("missing", "suggestion"),
    [
        ("inka.pt", " (did you mean {}/inca.pt?)"),
        ("INCA.safetensors", " (did you mean {}/inca.pt?)"),
        ("model/inca.pt", " (did you mean {}/models/inca.pt?)"),
        ("model/maya.pt", ""),
        ("photo", " (did you mean {}/photos or {}/photos 2?)"),
        ("nowhere.pt", ""),
        ("nowhere/nothing/inca.pt", ""),
    ],
)
def test_a_path_that_does_not_exist_suggests_what_is_beside_it(tmp_path, missing, suggestion):
    for folder in ("models", "photos", "photos 2", ".photo"):
        (tmp_path / folder).mkdir()
    for file in ("inca.pt", "models/inca.pt"):
        (tmp_path / file).touch()
    assert suggest_similar(tmp_path / missing) == suggestion.replace("{}", str(tmp_path))


def test_other_names_are_suggested_too(tmp_path):
    assert suggest_similar(tmp_path / "neno", ["blueprint", "neon", "robot"]) == " (did you mean neon?)"


@pytest.mark.parametrize("name", ["..", "../x", "a/../x", "a\\..\\x", "/x", "\\x", "~/x", "C:\\x", "c:/x"])
def test_paths_out_of_a_folder_are_told_on_every_system(name):
    assert is_path_outside(name)


@pytest.mark.parametrize("name", ["x", "a/b", "a..b", "...", "x-men: c", "C:x", "~x", ""])
def test_other_names_are_not_paths_out_of_a_folder(name):
    assert not is_path_outside(name)
    assert has_drive(name) == (name == "C:x")
