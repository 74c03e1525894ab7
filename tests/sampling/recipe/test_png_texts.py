"""Texts in PNG files that Pillow reads otherwise than they are meant."""

import tracemalloc
import warnings
import zlib

import pytest

from tests.hostile.image_cases import chunk, png, text_chunk, unicode_chunk
from velatura.errors import VelaturaWarning
from velatura.sampling.recipe.png_texts import check_png_texts


def check(tmp_path, *chunks):
    """Return what is found in the chunks of a PNG, and the warnings."""
    path = tmp_path / "a.png"
    path.write_bytes(png(*chunks))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VelaturaWarning)
        found = check_png_texts(path)
    return found, [str(each.message).partition("a.png has ")[2] for each in caught]


def test_ordinary_texts_are_left_to_pillow(tmp_path):
    compressed = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a"))
    assert check(tmp_path, text_chunk("a"), text_chunk("b", b"Comment"), unicode_chunk("\u732b".encode(), b"c")) == (
        {},
        [],
    )
    assert check(tmp_path, text_chunk("a"), compressed) == ({}, [])  # the same text in two forms


@pytest.mark.parametrize(
    ("chunks", "found", "words"),
    [
        ((text_chunk("a"), text_chunk("b")), {}, "texts ('parameters') that differ: the last of them is read"),
        ((unicode_chunk(b"caf\xe9"),), {"parameters": "caf\u00e9"}, "texts ('parameters') that are not UTF-8, as they"),
        ((chunk(b"zTXt", b"x\0\0garbled"),), {}, "texts ('x') that are damaged, and are left out"),
        ((text_chunk("a", b"k" * 80),), {}, f"texts ('{'k' * 40}') whose names have 0 or more than 79 bytes"),
        ((text_chunk("a", b"\x1b[2J"), text_chunk("b", b"\x1b[2J")), {}, "texts ('[2J') that differ"),
        (
            tuple(text_chunk("a", b"%d" % key) for key in range(1001)),
            {},
            "more than 1,000 texts, and programs write a few",
        ),
    ],
)
def test_odd_texts_are_named(tmp_path, chunks, found, words):
    texts, [message] = check(tmp_path, *chunks)
    assert texts == found
    assert message.startswith(words)
    assert message.isprintable()


GROWN = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**22)))  # 4 KB that grow to 4 MiB


def test_texts_behind_the_end_of_a_picture_are_not_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(text_chunk("a")) + text_chunk("b") + GROWN * 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_png_texts(path) == {}


@pytest.mark.parametrize(
    "chunks",
    [
        (GROWN,) * 3,
        (GROWN,) * 900,
        (text_chunk("a" * 2**22),) * 3,
        (chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**23))),),
    ],
)
def test_all_texts_together_take_no_more_than_8_mib(tmp_path, chunks):
    tracemalloc.start()
    found, [message] = check(tmp_path, *chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {}
    assert message.startswith("more than 8 MiB of texts")
    assert peak < 2**26  # the file itself, which the test builds, has up to 24 MiB
