import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from tests.tensors.files import are_equal, tensors_of_all_dtypes
from velatura.errors import BadFile
from velatura.tensors import open_tensors, write_safetensors


def test_safetensors_keep_tensors_and_metadata(tmp_path):
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.arange(4).bfloat16(),
        "empty": torch.ones(0, 3),
        "one": torch.tensor(2.0),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, {"name": "ink", "note": "süß"})
    contents = open_tensors(tmp_path / "x.safetensors")
    assert contents.metadata == {"name": "ink", "note": "süß"}
    assert are_equal(contents.tensors, tensors)


def test_the_safetensors_library_reads_our_files_and_we_read_its(tmp_path):
    tensors = tensors_of_all_dtypes()
    write_safetensors(tmp_path / "ours.safetensors", tensors, {"name": "ink"})
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"name": "ink"})
    assert are_equal(safetensors.torch.load_file(tmp_path / "ours.safetensors"), tensors)
    assert are_equal(open_tensors(tmp_path / "theirs.safetensors").tensors, tensors)
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"name": "ink"}


def test_the_same_tensors_are_written_in_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(2), "a": torch.ones(3)}
    write_safetensors(tmp_path / "one.safetensors", tensors, {"x": "1", "y": "2", "z": "3"})
    write_safetensors(tmp_path / "two.safetensors", dict(reversed(tensors.items())), {"x": "1", "y": "2", "z": "3"})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_tensors_of_safetensors_are_read_at_each_access(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.ones(3)})
    tensors = open_tensors(tmp_path / "x.safetensors").tensors
    assert list(tensors) == ["a", "b"]
    assert tensors.get("c") is None
    assert tensors["b"].data_ptr() != tensors["b"].data_ptr()  # anew at each asking, nothing is kept


def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {"name": "ink"})
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"^x\.safetensors "):
            open_tensors(tmp_path / "x.safetensors")


def test_a_size_of_zero_does_not_hide_impossible_sizes(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[0,1099511627776,1099511627776],"data_offsets":[0,0]}}'
    (tmp_path / "hollow.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadFile, match="larger than any disk"):
        open_tensors(tmp_path / "hollow.safetensors")


def test_precision_can_be_changed_as_it_is_written(tmp_path):
    tensors = {"a": torch.randn(3, 2), "count": torch.tensor(3)}
    write_safetensors(tmp_path / "half.safetensors", tensors, dtype=torch.float16)
    contents = open_tensors(tmp_path / "half.safetensors").tensors
    assert are_equal(contents, {"a": tensors["a"].half(), "count": tensors["count"]})
    with pytest.raises(BadFile, match="a has values too large for F16"):
        write_safetensors(tmp_path / "large.safetensors", {"a": torch.tensor([1e6])}, dtype=torch.float16)
    assert not list(tmp_path.glob("*large*"))
