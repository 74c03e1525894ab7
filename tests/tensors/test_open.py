import os
import struct
import zipfile

import pytest

from velatura.errors import BadFile
from velatura.tensors import open_meta, open_state_dict, open_tensors


def test_other_files_are_refused(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "folder.pt").mkdir()
    for name, message in (
        ("empty.pt", "is empty"),
        ("page.pt", "is a web page"),
        ("folder.pt", "director"),
        ("no.pt", "No such"),
    ):
        with pytest.raises(BadFile, match=message):
            open_tensors(tmp_path / name)


def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(BadFile, match="neither a file"):
        open_tensors(tmp_path / "pipe.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 132\n",
            "git-lfs pointer.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html><head><title>Log in</title>", "is a web page"),
        (b"\xef\xbb\xbf<html lang='en'>", "is a web page"),
        (b'{"error": "Unauthorized", "message": "Log in"}', r"server's error message \(Unauthorized\)"),
        (b'[{"detail": "Not found"}]', r"server's error message \(Not found\)"),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "is a GGUF file"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(32), "is a 7z archive: unpack it"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(32), "is a RAR archive: unpack it"),
    ],
)
@pytest.mark.parametrize("opener", [open_tensors, open_state_dict, open_meta])
def test_what_is_often_found_in_place_of_a_model_is_named(tmp_path, content, message, opener):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        opener(tmp_path / "model.safetensors")


def test_an_archive_of_models_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "pack.safetensors", "w") as archive:
        archive.writestr("anime.safetensors", b"weights")
        archive.writestr("read me.txt", "thanks")
    with pytest.raises(BadFile, match=r"is a zip archive of files \(anime\.safetensors, read me\.txt\): unpack it"):
        open_tensors(tmp_path / "pack.safetensors")


@pytest.mark.parametrize("length", [ord("{"), 0x5B20, 0x8B1F, 0x3C0A])
def test_a_header_of_any_length_is_not_mistaken_for_text(tmp_path, length):
    """The format begins with the length of its header, whose bytes can be those of {, [ or <."""
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header + struct.pack("<f", 3))
    assert float(open_tensors(tmp_path / "x.safetensors").tensors["x"]) == 3
