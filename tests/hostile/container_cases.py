"""Hostile containers of torch files, files of other programs, and files that are cut short."""

import gzip
import io
import pickle
import tarfile
import warnings
import zipfile
import zlib
from functools import cache
from hashlib import shake_256

import torch
from PIL import Image

from tests.hostile import safetensors_cases
from tests.hostile.cases import LOAD, REFUSE, WARN, Case, embedding, hypernetwork, lora


@cache
def torch_bytes(kind, *, legacy=False):
    """Return the bytes of an overlay in a torch file, in the zip of today or the form of before 1.6."""
    payload = {"hypernetwork": hypernetwork, "embedding": embedding, "lora": lora}[kind]()
    file = io.BytesIO()
    torch.save(payload, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files, compression=zipfile.ZIP_STORED):
    """Return a zip of these members, (name, bytes) pairs, without times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for name, data in files:
            member = zipfile.ZipInfo(name)
            member.compress_type = compression
            archive.writestr(member, data)
    return file.getvalue()


def embedding_members(change=None):
    return list((change or dict)(members(torch_bytes("embedding"))).items())


def renamed(change):
    return lambda: zipped([(change(name), data) for name, data in embedding_members()])


def more(*files):
    return lambda: zipped([*embedding_members(), *files])


def less(end):
    return lambda: zipped([(name, data) for name, data in embedding_members() if not name.endswith(end)])


def replaced(end, data):
    return lambda: zipped([(name, data if name.endswith(end) else stored) for name, stored in embedding_members()])


def patched(old, new, *, last=False):
    """Return the bytes of an embedding with one place changed; its length stays."""

    def change():
        data = torch_bytes("embedding")
        start = data.rindex(old) if last else data.index(old)
        return data[:start] + new + data[start + len(new) :]

    return change


def patched_at(mark, offset, value, *, last=False):
    def change():
        data = bytearray(torch_bytes("embedding"))
        start = (data.rindex(mark) if last else data.index(mark)) + offset
        data[start : start + len(value)] = value
        return bytes(data)

    return change


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(bytes(4)))
    return file.getvalue()


EVIL = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
CONTAINERS = [
    ("ok", LOAD, "a torch file", lambda: torch_bytes("embedding"), ".pt"),
    ("ok_legacy", LOAD, "a torch file of before 1.6", lambda: torch_bytes("embedding", legacy=True), ".pt"),
    ("ok_bin", LOAD, "a torch file named .bin", lambda: torch_bytes("embedding"), ".bin"),
    ("member_more", WARN, "a text in the archive", more(("archive/readme.txt", b"hello")), ".pt"),
    ("encrypted_both", REFUSE, "marked as encrypted", patched_at(LOCAL, 6, b"\1\0"), ".pt"),
    ("encrypted_central", REFUSE, "marked as encrypted in the directory", patched_at(CENTRAL, 8, b"\1\0"), ".pt"),
    ("deflated", REFUSE, "deflated", lambda: zipped(embedding_members(), zipfile.ZIP_DEFLATED), ".pt"),
    ("bzip2", REFUSE, "compressed by bzip2", lambda: zipped(embedding_members(), zipfile.ZIP_BZIP2), ".pt"),
    ("method_99", REFUSE, "compression method 99", patched_at(CENTRAL, 10, b"\x63\0"), ".pt"),
    ("checksum", REFUSE, "a wrong checksum", patched_at(CENTRAL, 16, b"\1\2\3\4"), ".pt"),
    ("checksum_values", REFUSE, "a flipped bit in the vectors", patched_at(b"archive/data/0FB", 400, b"\x42"), ".pt"),
    ("name_differs", REFUSE, "two names of a member", patched(b"archive/data.pkl", b"archivf/data.pkl"), ".pt"),
    ("name_upper", REFUSE, "DATA.PKL", renamed(lambda name: name.replace("data.pkl", "DATA.PKL")), ".pt"),
    ("name_twice", REFUSE, "data.pkl twice", more(("archive/data.pkl", EVIL)), ".pt"),
    ("root_two", REFUSE, "two roots", more(("other/data.pkl", EVIL)), ".pt"),
    ("root_none", REFUSE, "no root", renamed(lambda name: name.partition("/")[2]), ".pt"),
    ("root_parent", REFUSE, ".. for a root", renamed(lambda name: name.replace("archive", "..")), ".pt"),
    ("root_absolute", REFUSE, "an absolute root", renamed(lambda name: f"/{name}"), ".pt"),
    ("root_windows", REFUSE, "a drive for a root", renamed(lambda name: f"C:\\{name}"), ".pt"),
    ("member_parent", REFUSE, "a member outside", more(("archive/../../x", b"")), ".pt"),
    ("member_control", WARN, "a control character in a name", more(("archive/x\x01y", b"")), ".pt"),
    ("pickle_missing", REFUSE, "no data.pkl", less("data.pkl"), ".pt"),
    ("storage_missing", REFUSE, "no storage", less("data/0"), ".pt"),
    ("storage_short", REFUSE, "a short storage", replaced("data/0", bytes(16)), ".pt"),
    ("pickle_evil", REFUSE, "a pickle that calls", replaced("data.pkl", EVIL), ".pt"),
    ("pickle_empty", REFUSE, "an empty pickle", replaced("data.pkl", b""), ".pt"),
    ("byteorder_big", WARN, "the big end first, so that values are huge", replaced("byteorder", b"big"), ".pt"),
    ("comment", REFUSE, "a comment of the archive", lambda: torch_bytes("embedding")[:-2] + b"\5\0hello", ".pt"),
    ("entries_lie", REFUSE, "60,000 members by its end", patched_at(END, 8, b"\x60\xea\x60\xea", last=True), ".pt"),
    ("directory_far", REFUSE, "a directory past the end", patched_at(END, 16, b"\xff\xff\xff\x7f", last=True), ".pt"),
    ("two_archives", REFUSE, "an archive behind another", lambda: torch_bytes("embedding") * 2, ".pt"),
    ("bytes_before", REFUSE, "a byte before the archive", lambda: b"\0" + torch_bytes("embedding"), ".pt"),
    ("bytes_behind", REFUSE, "bytes behind the archive", lambda: torch_bytes("embedding") + b"\0\0", ".pt"),
    (
        "legacy_behind",
        REFUSE,
        "a pickle behind a file of before 1.6",
        lambda: torch_bytes("embedding", legacy=True) + EVIL,
        ".pt",
    ),
    (
        "legacy_newline",
        REFUSE,
        "a line break before a file of before 1.6",
        lambda: b"\n" + torch_bytes("embedding", legacy=True),
        ".pt",
    ),
    (
        "legacy_magic",
        REFUSE,
        "another magic number",
        lambda: torch_bytes("embedding", legacy=True).replace(b"\x6c\xfc\x9c\x46", b"\x6c\xfc\x9c\x47", 1),
        ".pt",
    ),
    ("pickle_bin", REFUSE, "a bare pickle named .bin", lambda: EVIL, ".bin"),
    ("pickle_ckpt", REFUSE, "a bare pickle named .ckpt", lambda: EVIL, ".ckpt"),
    ("pickle_safetensors", REFUSE, "a bare pickle named .safetensors", lambda: EVIL, ".safetensors"),
    ("pickle_plain", REFUSE, "a plain dict, pickled", lambda: pickle.dumps({"a": 1}, 2), ".pt"),
    ("gzip", REFUSE, "gzip around a torch file", lambda: gzip.compress(torch_bytes("embedding"), mtime=0), ".pt"),
    ("gzip_bomb", REFUSE, "16 MB of zeros in gzip", lambda: gzip.compress(bytes(2**24), mtime=0), ".pt"),
    ("zlib", REFUSE, "zlib around a torch file", lambda: zlib.compress(torch_bytes("embedding")), ".pt"),
    ("tar", REFUSE, "the tar of torch 0.1", tar, ".pt"),
    (
        "npy",
        REFUSE,
        "an array of NumPy",
        lambda: b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        ".pt",
    ),
    ("npz", REFUSE, "arrays of NumPy", lambda: zipped([("a.npy", b"\x93NUMPY\1\0")]), ".pt"),
    ("jar", REFUSE, "a program of Java", lambda: zipped([("META-INF/MANIFEST.MF", b"Main-Class: A\n")]), ".pt"),
    ("elf", REFUSE, "a program of Linux", lambda: b"\x7fELF\2\1\1" + bytes(60), ".pt"),
    ("exe", REFUSE, "a program of Windows", lambda: b"MZ" + bytes(60), ".safetensors"),
    ("script", REFUSE, "a shell script", lambda: b"#!/bin/sh\ntrue\n", ".ckpt"),
    ("json_error", REFUSE, "a server's error", lambda: b'{"error": "Unauthorized"}', ".safetensors"),
    ("html", REFUSE, "a page of HTML", lambda: b"<!doctype html><html>404</html>", ".pt"),
    (
        "lfs",
        REFUSE,
        "a pointer of Git LFS",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        ".pt",
    ),
    ("zeros", REFUSE, "zeros, as of a failed download", lambda: bytes(4096), ".safetensors"),
    ("hdf5", REFUSE, "HDF5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(60), ".h5"),
    ("onnx", REFUSE, "ONNX", lambda: b"\x08\x07\x12\x07pytorch" + bytes(60), ".onnx"),
    ("gguf", REFUSE, "GGUF", lambda: b"GGUF\3\0\0\0" + bytes(60), ".gguf"),
]


def noise(width=40, height=30):
    """Return a picture that does not compress, so that every part of its file counts."""
    return Image.frombytes("RGB", (width, height), shake_256(b"noise").digest(width * height * 3))


def saved(kind):
    file = io.BytesIO()
    noise().save(file, kind)
    return file.getvalue()


def cut(data, eighths):
    return data[: len(data) * eighths // 8]


# What is cut: an overlay, or a picture of a data set
TRUNCATED = {
    "hypernetwork": (lambda: torch_bytes("hypernetwork"), ".pt"),
    "hypernetwork_legacy": (lambda: torch_bytes("hypernetwork", legacy=True), ".pt"),
    "embedding": (lambda: torch_bytes("embedding"), ".pt"),
    "embedding_legacy": (lambda: torch_bytes("embedding", legacy=True), ".pt"),
    "lora": (lambda: torch_bytes("lora"), ".pt"),
    "lora_safetensors": (lambda: safetensors_cases.header(safetensors_cases.INFO), ".safetensors"),
}
TRUNCATED_PICTURES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


def late_file(name, data, suffix):
    """Write what a function returns: the work is not done before the test runs."""

    def write(folder):
        (folder / f"{name}{suffix}").write_bytes(data())
        return folder / f"{name}{suffix}"

    return write


def late_cut(make, eighths):
    return lambda: cut(make(), eighths)


CASES = [
    *(
        Case(f"c_{name}", "container", must, why, late_file(f"c_{name}", data, suffix))
        for name, must, why, data, suffix in CONTAINERS
    ),
    *(
        Case(
            f"tr_{name}_{eighths}8",
            "truncated",
            REFUSE,
            f"{name}, {eighths}/8 of it",
            late_file(f"tr_{name}_{eighths}8", late_cut(make, eighths), suffix),
        )
        for name, (make, suffix) in TRUNCATED.items()
        for eighths in range(1, 8)
    ),
]
PICTURES = [
    Case(
        f"tr_{kind.lower()}_{eighths}8",
        "truncated",
        REFUSE,
        f"{kind}, {eighths}/8 of it",
        late_file(f"tr_{kind.lower()}_{eighths}8", late_cut(lambda kind=kind: saved(kind), eighths), suffix),
    )
    for kind, suffix in TRUNCATED_PICTURES.items()
    for eighths in range(1, 8)
]
