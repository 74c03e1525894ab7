import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict

import numpy
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from velatura.errors import BadFile, VelaturaWarning
from velatura.tensors import meta_tensors, open_state_dict, open_tensors, write_safetensors, write_torch

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def of_every_dtype():
    return {f"t{place}": torch.arange(6).reshape(2, 3).to(dtype) for place, dtype in enumerate(DTYPES)}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def torch_file(path, payload, **options):
    torch.save(payload, path, **options)
    return path


def repacked(path, change):
    """The members of a torch zip, written again after a change."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_safetensors_come_back_with_their_metadata(tmp_path):
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.arange(4).bfloat16(),
        "empty": torch.ones(0, 3),
        "one": torch.tensor(2.0),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, {"name": "ink", "note": "süß"})
    contents = open_tensors(tmp_path / "x.safetensors")
    assert contents.metadata == {"name": "ink", "note": "süß"}
    assert same(contents.tensors, tensors)


def test_safetensors_library_reads_what_is_written_here_and_the_other_way_round(tmp_path):
    tensors = of_every_dtype()
    write_safetensors(tmp_path / "ours.safetensors", tensors, {"name": "ink"})
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"name": "ink"})
    assert same(safetensors.torch.load_file(tmp_path / "ours.safetensors"), tensors)
    assert same(open_tensors(tmp_path / "theirs.safetensors").tensors, tensors)
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"name": "ink"}


def test_the_same_tensors_are_written_in_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(2), "a": torch.ones(3)}
    write_safetensors(tmp_path / "one.safetensors", tensors, {"x": "1", "y": "2", "z": "3"})
    write_safetensors(tmp_path / "two.safetensors", dict(reversed(tensors.items())), {"x": "1", "y": "2", "z": "3"})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_what_was_not_asked_for_of_safetensors_is_not_read(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.ones(3)})
    tensors = open_tensors(tmp_path / "x.safetensors").tensors
    assert list(tensors) == ["a", "b"]
    assert tensors.get("c") is None
    assert tensors["b"].data_ptr() != tensors["b"].data_ptr()  # anew at each asking, nothing is kept


def test_a_torch_file_comes_back(tmp_path):
    write_torch(tmp_path / "x.pt", {768: torch.ones(2), "step": 3, "names": ["a", None, 1.5, True, -7, 2**70]})
    payload = open_tensors(tmp_path / "x.pt").payload
    assert payload["step"] == 3
    assert payload["names"] == ["a", None, 1.5, True, -7, 2**70]
    assert torch.equal(payload[768], torch.ones(2))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_itself_are_read(tmp_path, zipped, protocol):
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    tensors = {**of_every_dtype(), "turned": torch.randn(3, 4).T, "part": torch.randn(8)[2:5], "empty": torch.ones(0)}
    assert same(open_tensors(torch_file(tmp_path / "x.pt", tensors, **options)).payload, tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_as_a_plain_dict(tmp_path, zipped):
    state = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).state_dict()
    assert state._metadata  # an attribute, which is dropped
    path = torch_file(tmp_path / "x.pt", (state, [state]), _use_new_zipfile_serialization=zipped)
    one, [other] = open_tensors(path).payload
    assert type(one) is dict
    assert same(one, state)
    assert other["0.weight"] is one["0.weight"]


def test_old_parameters_and_numpy_numbers_are_read(tmp_path):
    vectors = nn.ParameterDict({"a": nn.Parameter(torch.randn(2, 4))})
    numbers = {"step": numpy.int64(7), "loss": numpy.float32(0.5), "kept": {1, 2}, "sizes": torch.Size([2, 3])}
    path = torch_file(tmp_path / "x.pt", {"vectors": vectors, "one": nn.Parameter(torch.ones(2)), **numbers})
    payload = open_tensors(path).payload
    assert torch.equal(payload["vectors"]["a"], vectors["a"].data)
    assert not payload["one"].requires_grad
    assert (payload["step"], payload["loss"], payload["kept"], payload["sizes"]) == (7, 0.5, {1, 2}, (2, 3))


def test_weights_that_share_memory_still_do(tmp_path):
    both = torch.arange(6.0)
    payload = open_tensors(torch_file(tmp_path / "x.pt", [both[:4], both[2:]])).payload
    assert payload[0].untyped_storage().data_ptr() == payload[1].untyped_storage().data_ptr()
    assert payload[1].tolist() == [2, 3, 4, 5]


def test_what_is_written_has_only_the_members_that_every_torch_knows(tmp_path):
    write_torch(tmp_path / "x.pt", {"a": torch.ones(2), "b": torch.zeros(3)})
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        names = archive.namelist()
    assert sorted(names) == ["archive/data.pkl", "archive/data/0", "archive/data/1", "archive/version"]
    assert torch.load(tmp_path / "x.pt", weights_only=True)["b"].shape == (3,)


def test_a_zip_with_large_fields_is_read(tmp_path, monkeypatch):
    path = torch_file(tmp_path / "x.pt", {"a": torch.arange(100.0)})
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 64)  # so that all of it is written as for four gigabytes
    repacked(path, lambda _: None)
    assert open_tensors(path).payload["a"].sum() == 4950


def test_a_file_without_checksums_is_warned_of(tmp_path):
    path = torch_file(tmp_path / "x.pt", {"a": torch.ones(2)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            place = data.index(struct.pack("<L", info.CRC))
            while place >= 0:
                data[place : place + 4] = bytes(4)
                place = data.find(struct.pack("<L", info.CRC))
    path.write_bytes(data)
    with pytest.warns(VelaturaWarning, match=r"x\.pt has no checksums"):
        open_tensors(path)


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path):
    path = torch_file(tmp_path / "x.pt", {"a": torch.full((4,), 0.7)})
    data = path.read_bytes()
    place = data.index(struct.pack("<f", 0.7))
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(BadFile, match="checksum"):
        open_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
    whole = torch_file(tmp_path / "x.pt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=zipped).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x.pt").write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"^x\.pt "):
            open_tensors(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(whole + b"\0")
    with pytest.raises(BadFile):
        open_tensors(tmp_path / "x.pt")


def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {"name": "ink"})
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"^x\.safetensors "):
            open_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda members: members.update({"x/constants.pkl": b""}), "TorchScript"),
        (lambda members: members.update({"y/data.pkl": b""}), "in one folder"),
        (lambda members: members.update({"x/byteorder": b"big"}), "order of bytes"),
        (lambda members: members.update({"x/data/0": b"12345"}), "5 bytes in 'data/0', where 8 are described"),
        (lambda members: members.update({"x/data.pkl": members["x/data.pkl"] + b"N."}), "behind its pickle"),
        (lambda members: members.update({"x/data.pkl": b" " * (2**24 + 1)}), "far too many"),
        (lambda members: members.pop("x/version"), "lacks its member 'version'"),
    ],
)
def test_a_container_that_torch_would_not_write_is_refused(tmp_path, change, said):
    path = repacked(torch_file(tmp_path / "x.pt", {"a": torch.ones(2)}), change)
    with pytest.raises(BadFile, match=said):
        open_tensors(path)


def in_a_zip(path, stream):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/data.pkl", stream)
    return path


def test_only_what_weights_need_is_named(tmp_path):
    path = in_a_zip(tmp_path / "x.pt", pickle.dumps({"a": complex(1, 2)}, 2))
    with pytest.raises(BadFile, match=r"x\.pt names '__builtin__\.complex', which no weights need"):
        open_tensors(path)


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02" + b"]" * 2**21 + b".",
        b"\x80\x02" + b"]q\0" + b"(h\0h\0h\0h\0h\0h\0h\0h\0eq\0" * 40 + b".",
        b"\x80\x02(" + b"K\x01" * 2**19 + b"t.",
    ],
)
def test_endless_lists_are_not_read(tmp_path, stream):
    with pytest.raises(BadFile, match=r"steps|without end"):
        open_tensors(in_a_zip(tmp_path / "x.pt", stream))


@pytest.mark.parametrize(
    "stream",
    [
        *(
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
        ),
        *(
            b"(K\1\x90.",
            b"ccollections\nOrderedDict\n.",
            b"ctorch\nFloatStorage\n)R.",
            b"ccollections\nOrderedDict\nK\1\x85R.",
        ),
        *(
            b"X\xff\xff\xff\xff.",
            b"T\xff\xff\xff\xff.",
            b"U\x05.",
            b"\x8a\xff.",
            b"G.",
            b"\x85.",
            b"c\n.",
            b"\x93.",
            b"NN\x93.",
        ),
        *(
            b"ctorch\nSize\nN\x85R.",
            b"c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0utf8\x86R.",
            b"cnumpy\ndtype\nX\1\0\0\0O\x85R.",
        ),
    ],
)
def test_a_broken_pickle_is_refused_in_one_line(tmp_path, stream):
    with pytest.raises(BadFile) as caught:
        open_tensors(in_a_zip(tmp_path / "x.pt", b"\x80\x02" + stream))
    assert str(caught.value).startswith("x.pt ")
    assert "\n" not in str(caught.value)


def test_values_that_are_used_over_and_over_are_refused(tmp_path):
    values = torch.ones(10_000)
    path = torch_file(tmp_path / "x.pt", {place: values[: 9_000 + place] for place in range(100)})
    with pytest.raises(BadFile, match="times over"):
        open_tensors(path)


def test_attributes_of_tensors_are_not_set(tmp_path):
    tensor = torch.ones(2)
    tensor.poison = OrderedDict(shape=(9, 9))
    with pytest.raises(BadFile, match=r"_rebuild_from_type|attributes"):
        open_tensors(torch_file(tmp_path / "x.pt", tensor))


def test_what_is_no_file_of_tensors_is_named(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "folder.pt").mkdir()
    for name, said in (
        ("empty.pt", "empty file"),
        ("page.pt", "starts with"),
        ("folder.pt", "director"),
        ("no.pt", "No such"),
    ):
        with pytest.raises(BadFile, match=said):
            open_tensors(tmp_path / name)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(BadFile, match="neither a file"):
        open_tensors(tmp_path / "pipe.pt")


def test_one_list_is_not_copied_without_end(tmp_path):
    """A memoised list of 3,000 numbers that is made a torch.Size 3,000 times: 20 KB that would take half a gigabyte."""
    numbers = b"](" + b"K\x01" * 3000 + b"eq\x00"
    copies = b"ctorch\nSize\nh\x00\x85R" * 3000
    with zipfile.ZipFile(tmp_path / "copies.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02](" + numbers + copies + b"e.")
        archive.writestr("archive/version", "3")
    with pytest.raises(BadFile, match="copies more than"):
        open_tensors(tmp_path / "copies.pt")


def test_a_size_of_nothing_hides_no_other(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[0,1099511627776,1099511627776],"data_offsets":[0,0]}}'
    (tmp_path / "hollow.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadFile, match="larger than any disk"):
        open_tensors(tmp_path / "hollow.safetensors")


class Callback:
    """What a trainer leaves in a checkpoint as the key of its settings, and nobody here has."""


Callback.__module__, Callback.__qualname__ = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"


@pytest.fixture
def trained(monkeypatch):
    """A checkpoint as trainers leave it: weights beside counters, callbacks, and numbers of numpy."""
    parts = Callback.__module__.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[Callback.__module__].ModelCheckpoint = Callback
    state = OrderedDict(a=torch.randn(3, 2), b=torch.randn(2).half(), count=3)
    callbacks = {Callback: {"best_model_score": torch.tensor(0.5), "seen": numpy.float64(2)}}
    schedulers = [{"base_lrs": defaultdict(dict, {0: {"x": 1}})}]
    return {"state_dict": state, "epoch": 3, "global_step": 10, "callbacks": callbacks, "lr_schedulers": schedulers}


@pytest.mark.parametrize("zipped", [True, False])
def test_of_a_checkpoint_its_state_is_read_tensor_by_tensor(tmp_path, trained, zipped):
    path = torch_file(tmp_path / "model.ckpt", trained, _use_new_zipfile_serialization=zipped)
    found = open_state_dict(path)
    assert found.tensors.keys() == {"a", "b"}
    assert same(found.tensors, {key: trained["state_dict"][key] for key in "ab"})
    assert found.tensors["a"] is not found.tensors["a"]
    assert {key: (each.shape, each.dtype) for key, each in meta_tensors(found.tensors).items()} == {
        "a": (torch.Size([3, 2]), torch.float32),
        "b": (torch.Size([2]), torch.float16),
    }


def test_a_state_needs_no_wrapper(tmp_path):
    bare = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    assert same(open_state_dict(torch_file(tmp_path / "bare.ckpt", bare)).tensors, bare)
    write_safetensors(tmp_path / "bare.safetensors", bare)
    assert same(open_state_dict(tmp_path / "bare.safetensors").tensors, bare)


def test_a_state_shares_what_its_tensors_share(tmp_path):
    whole = torch.arange(12.0)
    parts = {"low": whole[:4].view(2, 2), "high": whole[4:]}
    assert same(open_state_dict(torch_file(tmp_path / "parts.ckpt", parts)).tensors, parts)


def test_the_state_of_a_damaged_checkpoint_is_refused(tmp_path):
    path = torch_file(tmp_path / "model.ckpt", {"a": torch.arange(300.0)})
    data = bytearray(path.read_bytes())
    place = data.index(torch.arange(300.0).numpy().tobytes())
    data[place + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        open_state_dict(path).tensors["a"]


def test_a_callback_is_only_a_name(tmp_path):
    call = b"\x80\x02cpytorch_lightning.callbacks.x\nY\n)R."
    with zipfile.ZipFile(tmp_path / "call.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", call)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(BadFile, match="calls a str"):
        open_state_dict(tmp_path / "call.ckpt")


def test_precision_can_be_changed_as_it_is_written(tmp_path):
    tensors = {"a": torch.randn(3, 2), "count": torch.tensor(3)}
    write_safetensors(tmp_path / "half.safetensors", tensors, dtype=torch.float16)
    found = open_tensors(tmp_path / "half.safetensors").tensors
    assert same(found, {"a": tensors["a"].half(), "count": tensors["count"]})
    with pytest.raises(BadFile, match="a has values too large for F16"):
        write_safetensors(tmp_path / "large.safetensors", {"a": torch.tensor([1e6])}, dtype=torch.float16)
    assert not list(tmp_path.glob("*large*"))
