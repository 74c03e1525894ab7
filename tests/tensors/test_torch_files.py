import struct
import zipfile

import numpy
import pytest
import torch
from torch import nn

from tests.tensors.files import are_equal, change_members, save_torch, tensors_of_all_dtypes
from velatura.errors import BadFile, VelaturaWarning
from velatura.tensors import open_tensors, write_torch


def test_a_torch_file_keeps_its_values(tmp_path):
    write_torch(tmp_path / "x.pt", {768: torch.ones(2), "step": 3, "names": ["a", None, 1.5, True, -7, 2**70]})
    payload = open_tensors(tmp_path / "x.pt").payload
    assert payload["step"] == 3
    assert payload["names"] == ["a", None, 1.5, True, -7, 2**70]
    assert torch.equal(payload[768], torch.ones(2))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_itself_are_read(tmp_path, zipped, protocol):
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    tensors = {
        **tensors_of_all_dtypes(),
        "turned": torch.randn(3, 4).T,
        "part": torch.randn(8)[2:5],
        "empty": torch.ones(0),
    }
    assert are_equal(open_tensors(save_torch(tmp_path / "x.pt", tensors, **options)).payload, tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_as_a_plain_dict(tmp_path, zipped):
    state = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).state_dict()
    assert state._metadata  # an attribute, which is dropped
    path = save_torch(tmp_path / "x.pt", (state, [state]), _use_new_zipfile_serialization=zipped)
    one, [other] = open_tensors(path).payload
    assert type(one) is dict
    assert are_equal(one, state)
    assert other["0.weight"] is one["0.weight"]


def test_old_parameters_and_numpy_numbers_are_read(tmp_path):
    vectors = nn.ParameterDict({"a": nn.Parameter(torch.randn(2, 4))})
    numbers = {"step": numpy.int64(7), "loss": numpy.float32(0.5), "kept": {1, 2}, "sizes": torch.Size([2, 3])}
    path = save_torch(tmp_path / "x.pt", {"vectors": vectors, "one": nn.Parameter(torch.ones(2)), **numbers})
    payload = open_tensors(path).payload
    assert torch.equal(payload["vectors"]["a"], vectors["a"].data)
    assert not payload["one"].requires_grad
    assert (payload["step"], payload["loss"], payload["kept"], payload["sizes"]) == (7, 0.5, {1, 2}, (2, 3))


def test_weights_that_share_memory_still_do(tmp_path):
    both = torch.arange(6.0)
    payload = open_tensors(save_torch(tmp_path / "x.pt", [both[:4], both[2:]])).payload
    assert payload[0].untyped_storage().data_ptr() == payload[1].untyped_storage().data_ptr()
    assert payload[1].tolist() == [2, 3, 4, 5]


def test_torch_files_have_only_the_members_that_every_torch_knows(tmp_path):
    write_torch(tmp_path / "x.pt", {"a": torch.ones(2), "b": torch.zeros(3)})
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        names = archive.namelist()
    assert sorted(names) == ["archive/data.pkl", "archive/data/0", "archive/data/1", "archive/version"]
    assert torch.load(tmp_path / "x.pt", weights_only=True)["b"].shape == (3,)


def test_a_zip64_archive_is_read(tmp_path, monkeypatch):
    path = save_torch(tmp_path / "x.pt", {"a": torch.arange(100.0)})
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 64)  # so that all of it is written as for four gigabytes
    change_members(path, lambda _: None)
    assert open_tensors(path).payload["a"].sum() == 4950


def test_a_file_without_checksums_gives_a_warning(tmp_path):
    path = save_torch(tmp_path / "x.pt", {"a": torch.ones(2)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            position = data.index(struct.pack("<L", info.CRC))
            while position >= 0:
                data[position : position + 4] = bytes(4)
                position = data.find(struct.pack("<L", info.CRC))
    path.write_bytes(data)
    with pytest.warns(VelaturaWarning, match=r"x\.pt has no checksums"):
        open_tensors(path)


def test_a_flipped_bit_of_a_tensor_is_found(tmp_path):
    path = save_torch(tmp_path / "x.pt", {"a": torch.full((4,), 0.7)})
    data = path.read_bytes()
    position = data.index(struct.pack("<f", 0.7))
    path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(BadFile, match="checksum"):
        open_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
    whole = save_torch(tmp_path / "x.pt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=zipped).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x.pt").write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"^x\.pt "):
            open_tensors(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(whole + b"\0")
    with pytest.raises(BadFile):
        open_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.update({"x/constants.pkl": b""}), "TorchScript"),
        (lambda members: members.update({"y/data.pkl": b""}), "not in one folder"),
        (lambda members: members.update({"x/byteorder": b"middle"}), "has the byte order b'middle'"),
        (lambda members: members.update({"x/data/0": b"12345"}), "5 bytes in 'data/0', but its pickle says 8"),
        (lambda members: members.update({"x/data.pkl": members["x/data.pkl"] + b"N."}), "bytes after its pickle"),
        (lambda members: members.update({"x/data.pkl": b" " * (2**24 + 1)}), "the limit is"),
        (lambda members: members.pop("x/version"), "does not contain the member 'version'"),
    ],
)
def test_a_container_that_torch_would_not_write_is_refused(tmp_path, change, message):
    path = change_members(save_torch(tmp_path / "x.pt", {"a": torch.ones(2)}), change)
    with pytest.raises(BadFile, match=message):
        open_tensors(path)


@pytest.mark.parametrize("member", ["archive/notes.txt", "archive/data/77", "notes.txt", "other/notes.txt"])
def test_a_member_that_torch_does_not_write_is_named_and_ignored(tmp_path, member):
    path = save_torch(tmp_path / "archive.pt", tensors_of_all_dtypes())
    change_members(path, lambda members: members.update({member: b"more"}))
    with pytest.warns(VelaturaWarning, match="1 file in its zip that torch does not write") as caught:
        contents = open_tensors(path)
    assert len(caught) == 1
    assert member.removeprefix("archive/") in str(caught[0].message)
    assert are_equal(contents.payload, tensors_of_all_dtypes())


@pytest.mark.parametrize("member", ["../notes.txt", "/notes.txt", "archive/../notes.txt", "archive\\..\\notes.txt"])
def test_a_member_with_a_path_outside_is_refused(tmp_path, member):
    path = save_torch(tmp_path / "archive.pt", tensors_of_all_dtypes())
    change_members(path, lambda members: members.update({member: b"more"}))
    with pytest.raises(BadFile, match="a path outside its folder"):
        open_tensors(path)


def set_checksum(path, member, checksum):
    """Write a checksum into both headers of a member, as a program that does not compute it writes 0."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo(member).header_offset
    data[header + 14 : header + 18] = checksum.to_bytes(4, "little")
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(member.encode()))
    data[central + 16 : central + 20] = checksum.to_bytes(4, "little")
    path.write_bytes(data)
    return path


def test_one_storage_without_a_checksum_gives_a_warning(tmp_path):
    path = save_torch(tmp_path / "archive.pt", tensors_of_all_dtypes())
    with pytest.warns(VelaturaWarning, match=r"no checksums for 1 of its files \(data/1\)"):
        contents = open_tensors(set_checksum(path, "archive/data/1", 0))
    assert are_equal(contents.payload, tensors_of_all_dtypes())


@pytest.mark.parametrize(("member", "checksum"), [("archive/data.pkl", 0), ("archive/data/1", 1)])
def test_a_wrong_checksum_is_refused(tmp_path, member, checksum):
    path = save_torch(tmp_path / "archive.pt", tensors_of_all_dtypes())
    with pytest.raises(BadFile, match="checksum of"):
        open_tensors(set_checksum(path, member, checksum))
