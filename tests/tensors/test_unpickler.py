import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from tests.tensors.files import save_torch, zip_pickle
from velatura.errors import BadFile
from velatura.tensors import open_tensors


def test_a_name_that_is_not_on_the_list_is_refused(tmp_path):
    path = zip_pickle(tmp_path / "x.pt", pickle.dumps({"a": print}, 2))
    with pytest.raises(BadFile, match=r"x\.pt refers to '__builtin__\.print' in its pickle, which weights"):
        open_tensors(path)


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02" + b"]" * 2**21 + b".",
        b"\x80\x02" + b"]q\0" + b"(h\0h\0h\0h\0h\0h\0h\0h\0eq\0" * 40 + b".",
        b"\x80\x02(" + b"K\x01" * 2**19 + b"t.",
    ],
)
def test_huge_or_nested_lists_are_refused(tmp_path, stream):
    with pytest.raises(BadFile, match=r"opcodes|nested deeper"):
        open_tensors(zip_pickle(tmp_path / "x.pt", stream))


@pytest.mark.parametrize(
    "stream",
    [
        b".",
        b"(.",
        b"}.N",
        b"NN.",
        b"h\0.",
        b"t.",
        b"e.",
        b"N(K\1e.",
        b"}(K\1u.",
        b"}]Ns.",
        b"NNR.",
        b"NNb.",
        b"NQ.",
        b"(K\1\x90.",
        b"ccollections\nOrderedDict\n.",
        b"ctorch\nFloatStorage\n)R.",
        b"ccollections\nOrderedDict\nK\1\x85R.",
        b"X\xff\xff\xff\xff.",
        b"T\xff\xff\xff\xff.",
        b"U\x05.",
        b"\x8a\xff.",
        b"G.",
        b"\x85.",
        b"c\n.",
        b"\x93.",
        b"NN\x93.",
        b"ctorch\nSize\nN\x85R.",
        b"c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0utf8\x86R.",
    ],
)
def test_a_broken_pickle_is_refused_in_one_line(tmp_path, stream):
    with pytest.raises(BadFile) as caught:
        open_tensors(zip_pickle(tmp_path / "x.pt", b"\x80\x02" + stream))
    assert str(caught.value).startswith("x.pt ")
    assert "\n" not in str(caught.value)


def test_values_that_are_used_too_often_are_refused(tmp_path):
    values = torch.ones(10_000)
    path = save_torch(tmp_path / "x.pt", {position: values[: 9_000 + position] for position in range(100)})
    with pytest.raises(BadFile, match="more than 4 times"):
        open_tensors(path)


def test_attributes_of_tensors_are_not_set(tmp_path):
    tensor = torch.ones(2)
    tensor.poison = OrderedDict(shape=(9, 9))
    read = open_tensors(save_torch(tmp_path / "x.pt", {"x": tensor})).payload["x"]
    assert torch.equal(read, torch.ones(2))
    assert not hasattr(read, "poison")


def test_a_list_that_is_copied_too_often_is_refused(tmp_path):
    """Refuse a memoised list of 3,000 numbers that becomes a torch.Size 3,000 times: 20 KB for half a gigabyte."""
    numbers = b"](" + b"K\x01" * 3000 + b"eq\x00"
    copies = b"ctorch\nSize\nh\x00\x85R" * 3000
    with zipfile.ZipFile(tmp_path / "copies.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02](" + numbers + copies + b"e.")
        archive.writestr("archive/version", "3")
    with pytest.raises(BadFile, match="copies more than"):
        open_tensors(tmp_path / "copies.pt")
