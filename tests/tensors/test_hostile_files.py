"""Hostile files of tests/data/hostile are refused in one line, without running them: see docs/security.md."""

import json
import os
import pickle
import re
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tensors.files import save_torch, zip_pickle
from velatura.errors import BadFile
from velatura.tensors import open_meta, open_state_dict, open_tensors

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "data" / "hostile"
ITEMS = json.loads((FOLDER / "index.json").read_text())
VALID_TENSOR_FILES = "s_st_no_tensors", "s_st_nan_values"  # they are refused as overlays only
# Files with "limits" whose faults are in the container or the pickle, not in the overlay
COSTLY_FILES = (
    "s_hn_bytearray_bomb",
    "s_hn_tensor_newobj_bomb",
    "s_hn_nested_60k",
    "s_hn_billion_laughs",
    "s_hn_bomb_pkl",
    "s_st_n_100mb_claim",
    "s_st_json_depth",
    "s_ti_png_json_depth",
    "s_ti_png_ztxt_bomb",
)
# Files that torch.load(weights_only=True) of torch 2.13 opens without an error
ACCEPTED_BY_TORCH = (
    "s_hn_crc_data",
    "s_hn_stride0_bomb",
    "s_hn_attr_poison",
    "s_hn_self_reference",
    "s_hn_billion_laughs",
    "s_hn_nested_60k",
    "s_hn_meta_tensor",
)


def select(must, *classes):
    items = [item for item in ITEMS if item["must"] == must and item["class"] in classes]
    return [pytest.param(FOLDER / item["file"], id=item["file"]) for item in items]


def hostile_file(stem):
    return next(FOLDER / item["file"] for item in ITEMS if Path(item["file"]).stem == stem)


@pytest.fixture(autouse=True)
def no_payload_runs(tmp_path_factory, monkeypatch):
    """Fail if a payload of a hostile file runs: each of them writes a file into this folder."""
    folder = tmp_path_factory.mktemp("markers")
    monkeypatch.setenv("VELATURA_MARKER_DIR", str(folder))
    yield
    assert not list(folder.iterdir())


@pytest.mark.parametrize("open_file", [open_tensors, open_state_dict, open_meta])
@pytest.mark.parametrize("path", select("refuse", "container", "pickle_gadget", "pickle_machine", "truncated"))
def test_damaged_or_executable_files_are_refused_in_one_line(path, open_file):
    with pytest.raises(BadFile) as caught:
        open_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name} ")
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("path", select("refuse", "safetensors"))
def test_a_bad_safetensors_header_is_refused_before_a_tensor_is_read(path):
    if path.stem in VALID_TENSOR_FILES:
        assert open_tensors(path).payload is None
        return
    with pytest.raises(BadFile):
        open_tensors(path)


@pytest.mark.parametrize("path", select("load", "safetensors"))
def test_valid_safetensors_are_read(path):
    tensors = open_tensors(path).tensors
    assert tensors
    assert all(tensors[name].isfinite().all() for name in tensors)


@pytest.mark.parametrize("stem", COSTLY_FILES)
def test_a_small_file_takes_little_memory(stem):
    path = hostile_file(stem)
    tracemalloc.start()
    try:
        with pytest.raises(BadFile):
            open_tensors(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size < 2**20
    assert peak < 64 * 2**20


def test_a_name_in_a_pickle_is_not_imported(tmp_path):
    assert "antigravity" not in sys.modules  # a module of the standard library that opens a browser when imported
    with pytest.raises(BadFile, match=r"refers to 'antigravity\.geohash'"):
        open_tensors(zip_pickle(tmp_path / "x.pt", b"\x80\x02cantigravity\ngeohash\n)R."))
    assert "antigravity" not in sys.modules


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_a_symbolic_link_is_followed_only_to_a_regular_file(tmp_path):
    save_torch(tmp_path / "x.pt", {"a": torch.ones(2)})
    (tmp_path / "link.pt").symlink_to(tmp_path / "x.pt")
    assert open_tensors(tmp_path / "link.pt").payload["a"].tolist() == [1, 1]
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    with pytest.raises(BadFile, match="neither a file nor a directory"):
        open_tensors(tmp_path / "zero.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stem", ACCEPTED_BY_TORCH)
def test_files_that_weights_only_accepts_are_refused(stem):
    path = hostile_file(stem)
    torch.load(path, weights_only=True)
    with pytest.raises(BadFile):
        open_tensors(path)


def test_harmless_files_that_weights_only_refuses_are_read(tmp_path):
    """Old embeddings hold a ParameterDict, which torch 2.13 does not allow."""
    vectors = nn.ParameterDict({"*": nn.Parameter(torch.ones(1, 768))})
    path = save_torch(tmp_path / "x.pt", {"string_to_param": vectors})
    assert torch.equal(open_tensors(path).payload["string_to_param"]["*"], torch.ones(1, 768))
    with pytest.raises(pickle.UnpicklingError, match="ParameterDict"):
        torch.load(path, weights_only=True)


def test_the_tests_that_the_security_page_quotes_exist():
    quoted = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text())
    defined = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert quoted
    assert [name for name in quoted if f"def {name}(" not in defined] == []
