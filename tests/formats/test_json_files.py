"""JSON files of strangers: read as objects up to a size, and refused in one line otherwise."""

import os

import pytest

from velatura.errors import BadFile
from velatura.formats.json_files import read_json_object


def test_an_object_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"layers": [1, 2]}')
    assert read_json_object(tmp_path / "config.json") == {"layers": [1, 2]}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 10**5])
def test_anything_else_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadFile, match=r"config\.json") as caught:
        read_json_object(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_its_folder(tmp_path):
    with pytest.raises(BadFile, match=rf"{tmp_path.name} has no config\.json"):
        read_json_object(tmp_path / "config.json")


def test_a_file_above_the_limit_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}' + " " * 100)
    assert read_json_object(tmp_path / "config.json", max_bytes=108) == {"a": 1}
    with pytest.raises(BadFile, match="more than 107 bytes"):
        read_json_object(tmp_path / "config.json", max_bytes=107)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Unix has named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BadFile, match="neither a file nor a directory"):
        read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b'{"_class_name": "A", "_class_name": "B"}', "twice"), ('{"a": 1}'.encode("utf-16"), "cannot be read")],
)
def test_a_key_twice_and_another_encoding_are_refused(tmp_path, data, reason):
    (tmp_path / "model_index.json").write_bytes(data)
    with pytest.raises(BadFile, match=reason):
        read_json_object(tmp_path / "model_index.json")
