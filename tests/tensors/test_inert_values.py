"""What trainers leave in torch files beside weights: it becomes plain data, and the weights are read."""

import argparse
import collections
import datetime
import decimal
import pathlib
import pickle
import sys
import tracemalloc
import types
import uuid

import numpy
import pytest
import torch

from tests.tensors.files import change_members, save_torch, zip_pickle
from velatura.errors import BadFile
from velatura.tensors import open_meta, open_state_dict, open_tensors
from velatura.tensors.pickle_numpy import array_from_buffer, numpy_type
from velatura.tensors.rebuild import storage_tensor
from velatura.tensors.unpickler import SafeUnpickler

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2).half()}


def define(monkeypatch, module, name, *bases):
    """Define a class under the name of another program's, which is not installed here."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    made = type(name, bases, {"__module__": module, "__qualname__": name})
    setattr(sys.modules[module], name, made)
    return made


def omegaconf_config(monkeypatch):
    """Build a configuration as omegaconf nests them: every node knows its parent, so that they refer in circles."""
    dict_config = define(monkeypatch, "omegaconf.dictconfig", "DictConfig")
    list_config = define(monkeypatch, "omegaconf.listconfig", "ListConfig")
    metadata = define(monkeypatch, "omegaconf.base", "ContainerMetadata")
    root, leaf = dict_config(), list_config()
    root.__dict__.update(_metadata=metadata(), _parent=None, _content={"model": leaf})
    leaf.__dict__.update(_metadata=metadata(), _parent=root, _content=[1, 2])
    return root


def lightning_state(monkeypatch):
    callback = define(monkeypatch, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    mode = define(monkeypatch, "lightning.pytorch.utilities.enums", "Mode", str)
    settings = define(monkeypatch, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    return {
        "callbacks": {callback: {"best_model_score": torch.ones(1), "dirpath": pathlib.PosixPath("/runs/1")}},
        "hyper_parameters": settings(rate=0.1),
        "state": callback(),
        "mode": mode("max"),
    }


LEFTOVERS = {
    "namespace": lambda _: argparse.Namespace(rate=0.1, out=pathlib.PurePosixPath("/runs")),
    "simple namespace": lambda _: types.SimpleNamespace(rate=0.1),
    "paths": lambda _: [pathlib.PosixPath("/a/b"), pathlib.PureWindowsPath("C:/a")],
    "defaultdict": lambda _: collections.defaultdict(int, a=collections.defaultdict(list, b=[1])),
    "deque and counter": lambda _: [collections.deque([1, 2], maxlen=3), collections.Counter("aab")],
    "dates": lambda _: [datetime.datetime(2023, 1, 2, 3, tzinfo=datetime.UTC), datetime.timedelta(1)],
    "numbers": lambda _: [decimal.Decimal("0.1"), complex(1, 2), uuid.UUID(int=1), frozenset({1}), bytearray(b"ab")],
    "types of torch": lambda _: [torch.float16, torch.device("cuda:0"), torch.__version__, torch.Size([1, 2])],
    "numpy": lambda _: [
        numpy.float64(0.5),
        numpy.str_("a"),
        numpy.array(["a", "b"]),
        numpy.array([None, {}]),
        numpy.float32,
    ],
    "keys": lambda _: {(0, "a"): 1, None: 2, 1.5: 3},
    "omegaconf": omegaconf_config,
    "lightning": lightning_state,
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_weights_are_read_beside_what_a_trainer_leaves(tmp_path, monkeypatch, leftover, protocol):
    payload = {"state_dict": WEIGHTS, "hyper_parameters": LEFTOVERS[leftover](monkeypatch)}
    path = save_torch(tmp_path / "x.ckpt", payload, pickle_protocol=protocol)
    state = open_state_dict(path).tensors
    assert torch.equal(state["a"], WEIGHTS["a"])
    contents = open_tensors(path)
    assert torch.equal(contents.payload["state_dict"]["b"], WEIGHTS["b"])
    assert "hyper_parameters" in contents.payload


def test_plain_values_in_containers_are_kept(tmp_path):
    payload = {
        "default": collections.defaultdict(int, a=1),
        "deque": collections.deque([1, 2], maxlen=3),
        "counter": collections.Counter("aab"),
        "frozen": frozenset({1, 2}),
        "version": torch.torch_version.TorchVersion("2.0.1"),
    }
    read = open_tensors(save_torch(tmp_path / "x.pt", payload)).payload
    assert read == {
        "default": {"a": 1},
        "deque": [1, 2],
        "counter": {"a": 2, "b": 1},
        "frozen": {1, 2},
        "version": "2.0.1",
    }


class Gadget:
    """Runs when another reader opens the file."""

    def __reduce__(self):
        return (open, (str(Gadget.path), "w"))


@pytest.mark.parametrize("wrap", [lambda value: argparse.Namespace(x=value), lambda value: value])
def test_calls_inside_of_leftovers_are_refused_and_never_run(tmp_path, wrap):
    Gadget.path = tmp_path / "written"
    path = save_torch(tmp_path / "x.pt", {"a": torch.ones(1), "left": [wrap(Gadget()), Gadget()]})
    with pytest.raises(BadFile, match="refers to"):
        open_tensors(path)
    assert not Gadget.path.exists()


@pytest.mark.parametrize("name", ["Path.unlink", "PosixPath.touch", "omegaconf.OmegaConf.load", "os"])
def test_functions_beside_the_classes_are_refused(tmp_path, name):
    module, _, attribute = f"pathlib.{name}".partition(".") if name[0] == "P" else ("omegaconf", "", name)
    stream = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    stream += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93)R."
    with pytest.raises(BadFile, match="refers to"):
        open_tensors(zip_pickle(tmp_path / "x.pt", stream))


ARRAYS = {
    "float32": numpy.arange(6, dtype="<f4").reshape(2, 3),
    "float64": numpy.arange(6, dtype="<f8").reshape(2, 3),
    "float16": numpy.arange(6, dtype="<f2").reshape(3, 2),
    "big-endian": numpy.arange(6, dtype=">f4").reshape(2, 3),
    "fortran": numpy.asfortranarray(numpy.arange(6, dtype="<f4").reshape(2, 3)),
    "integers": numpy.arange(4, dtype="<i8"),
    "bytes": numpy.arange(4, dtype="u1"),
    "booleans": numpy.array([True, False]),
    "complex": numpy.array([1 + 2j], dtype=">c8"),
    "no dimension": numpy.array(3.0, dtype="<f4"),
    "empty": numpy.zeros((0, 3), dtype="<f4"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_of_numpy_is_a_tensor(tmp_path, kind, protocol):
    array = ARRAYS[kind]
    path = save_torch(tmp_path / "x.pt", {"state_dict": {"a": array, "b": torch.ones(1)}}, pickle_protocol=protocol)
    expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("<"))).clone()
    for tensor in (open_tensors(path).payload["state_dict"]["a"], open_state_dict(path).tensors["a"]):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert open_meta(path).payload["state_dict"]["a"].shape == expected.shape


def numpy_pickle(byte_order, data, array_count):
    """Return a pickle of bytes, their type, and a list of arrays that all have these bytes."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    element_type = b"cnumpy\ndtype\nU\2f4\x85R(K\3U\1" + byte_order + b"NNNK\0K\0K\0tb"
    start = b"\x80\x02" + b"B" + len(data).to_bytes(4, "little") + data + b"q\0" + element_type + b"q\1]("
    shape = b"J" + (len(data) // 4).to_bytes(4, "little") + b"\x85"
    return start + (reconstruct + b"(K\1" + shape + b"h\1\x89h\0tb") * array_count + b"e\x87."


@pytest.mark.parametrize("byte_order", [b"<", b">"])
def test_arrays_of_the_same_bytes_are_not_copied_while_they_are_parsed(byte_order):
    data = bytes(2**20)
    unpickler = SafeUnpickler(numpy_pickle(byte_order, data, 500))
    tracemalloc.start()
    _, _, arrays = unpickler.load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(arrays) == 500
    assert peak < 8 * len(data)


def test_the_same_bytes_may_be_numbers_of_both_orders():
    numbers = numpy.arange(4, dtype="<f4")
    for byte_order in ("<", ">"):
        description = array_from_buffer(numbers.tobytes(), numpy_type(f"{byte_order}f4"), (4,)).description
        expected = torch.from_numpy(numbers.view(f"{byte_order}f4").astype("<f4"))
        assert torch.equal(storage_tensor(description.storage, lambda _: bytearray()), expected)


def test_arrays_of_the_same_bytes_and_of_different_types_are_told_apart(tmp_path):
    start = b"\x80\x04C\x08" + numpy.arange(2, dtype="<f4").tobytes() + b"q\0"
    frombuffer = b"cnumpy.core.numeric\n_frombuffer\n"
    arrays = [
        frombuffer + b"(h\0cnumpy\ndtype\n\x8c\x02" + code + b"\x85RK" + bytes([count]) + b"\x85\x8c\x01CtR"
        for code, count in ((b"f4", 2), (b"u1", 8), (b"f8", 1))
    ]
    path = zip_pickle(tmp_path / "x.pt", start + b"](" + b"".join(arrays) + b"e\x86.")
    assert [tensor.dtype for tensor in open_tensors(path).payload[1]] == [torch.float32, torch.uint8, torch.float64]


def test_texts_that_calls_encode_again_and_again_are_refused(tmp_path):
    text = b"X" + (2**18).to_bytes(4, "little") + b"a" * 2**18 + b"q\0"
    stream = b"\x80\x02](" + text + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 20 + b"e."
    with pytest.raises(BadFile, match="copies the texts in its pickle more than 4 times"):
        open_tensors(zip_pickle(tmp_path / "x.pt", stream))


@pytest.mark.parametrize("shape", [(3, 3), (-1, 4), (2**40, 2**40), ("a",)])
def test_an_array_whose_shape_does_not_fit_its_bytes_is_refused(tmp_path, shape):
    stream = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R(K\1"
        + pickle.dumps(shape, 2)[2:-1]
        + b"cnumpy\ndtype\nU\2f4\x85R\x89C\x08abcdefghtb."
    )
    with pytest.raises(BadFile, match=r"array of numpy|a size or an offset"):
        open_tensors(zip_pickle(tmp_path / "x.pt", stream))


BIG_VALUES = {
    "half": torch.randn(3).half(),
    "single": torch.randn(2, 3),
    "double": torch.randn(3).double(),
    "brain": torch.randn(3).bfloat16(),
    "long": torch.arange(3),
    "short": torch.arange(3, dtype=torch.int16),
    "byte": torch.arange(3, dtype=torch.uint8),
    "complex": torch.randn(2, dtype=torch.complex64),
}


def swap(data, width):
    return b"".join(data[start : start + width][::-1] for start in range(0, len(data), width))


def test_a_zip_of_a_big_endian_machine_is_read(tmp_path):
    """torch writes such values in the machine's order, and the order in a member of the zip."""
    path = save_torch(tmp_path / "x.pt", BIG_VALUES)
    widths = {str(i): value.real.element_size() for i, value in enumerate(BIG_VALUES.values())}

    def change(members):
        for name in members:
            if "/data/" in name:
                members[name] = swap(members[name], widths[name.rpartition("/")[2]])
        members["x/byteorder"] = b"big"

    change_members(path, change)
    judged = torch.load(path)
    for read in (open_tensors(path).payload, open_state_dict(path).tensors):
        for name, value in BIG_VALUES.items():
            assert torch.equal(read[name], value)
            assert torch.equal(judged[name], value)


def test_an_old_file_of_a_big_endian_machine_is_read(tmp_path):
    """torch converts values to little-endian when it writes the old format, so only the system info tells."""
    path = save_torch(tmp_path / "x.pt", BIG_VALUES, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    position = data.index(b"little_endian") + len("little_endian")
    position = data.index(b"\x88", position)
    path.write_bytes(data[:position] + b"\x89" + data[position + 1 :])
    judged = torch.load(path)
    for name, value in open_tensors(path).payload.items():
        assert torch.equal(value, BIG_VALUES[name])
        assert torch.equal(value, judged[name])
