"""Hashes as A1111 reckons them: the numbers are those that it gave."""

import json
from pathlib import Path

import pytest

from velatura.library.hashes import EMPTY_OLD_HASH, Hashes, old_hash

DATA = Path(__file__).parents[1] / "data" / "a1111" / "hash"
CASES = json.loads((DATA / "index.json").read_text())


def content(case: dict) -> bytes:
    """The bytes that a case stands for."""
    formula = case["content"]
    if formula == "zeros":
        return bytes(case["length"])
    a, b, m = (formula[letter] for letter in "abm")
    period = bytes((index * a + b) % m for index in range(m))
    return (period * (case["length"] // m + 1))[: case["length"]]


@pytest.mark.parametrize("case", CASES["generated"], ids=lambda case: str(case["length"]))
def test_a_files_hash_and_its_old_one_are_a1111s(tmp_path, case):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content(case))
    found = Hashes.from_file(path)
    assert found.sha256 == case["sha256"]
    assert found.old == old_hash(path) == ("" if case["old_hash"] == EMPTY_OLD_HASH else case["old_hash"])
    assert found.by_civitai_name()["AutoV2"] == case["model_hash"]
    assert found.body == ""


@pytest.mark.parametrize("case", CASES["safetensors"], ids=lambda case: case["file"])
def test_the_hash_of_the_tensors_leaves_the_header_out(case):
    found = Hashes.from_file(DATA / case["file"])
    assert (found.sha256, found.body) == (case["sha256"], case["addnet_sha256"])
    assert found.by_civitai_name()["AutoV3"] == case["lora_shorthash"]


def test_hashes_are_found_by_their_first_digits():
    found = Hashes(sha256="ab" * 32, body="cd" * 32, old="01234567")
    assert found.has("ababababab")
    assert found.has("cdcdcdcdcdcd")
    assert found.has("01234567")
    assert not found.has("0123456789")
