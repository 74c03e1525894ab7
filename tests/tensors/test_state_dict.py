import sys
import types
from collections import OrderedDict, defaultdict

import numpy
import pytest
import torch

from tests.tensors.files import are_equal, save_torch, zip_pickle
from velatura.errors import VelaturaWarning
from velatura.tensors import meta_tensors, open_state_dict, open_tensors, write_safetensors


class Callback:
    """A class that a trainer leaves in a checkpoint as the key of its settings, and that is not importable here."""


Callback.__module__, Callback.__qualname__ = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"


@pytest.fixture
def checkpoint(monkeypatch):
    """Return a checkpoint as trainers write it: weights beside counters, callbacks, and numpy numbers."""
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
def test_the_state_dict_of_a_checkpoint_is_read_tensor_by_tensor(tmp_path, checkpoint, zipped):
    path = save_torch(tmp_path / "model.ckpt", checkpoint, _use_new_zipfile_serialization=zipped)
    with pytest.warns(VelaturaWarning, match=r"model.ckpt has 1 entry beside its weights.* \(count\): it is ignored"):
        contents = open_state_dict(path)
    assert contents.tensors.keys() == {"a", "b"}
    assert are_equal(contents.tensors, {key: checkpoint["state_dict"][key] for key in "ab"})
    assert contents.tensors["a"] is not contents.tensors["a"]
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in meta_tensors(contents.tensors).items()} == {
        "a": (torch.Size([3, 2]), torch.float32),
        "b": (torch.Size([2]), torch.float16),
    }


def test_a_state_dict_may_be_at_the_top(tmp_path):
    bare = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    assert are_equal(open_state_dict(save_torch(tmp_path / "bare.ckpt", bare)).tensors, bare)
    write_safetensors(tmp_path / "bare.safetensors", bare)
    assert are_equal(open_state_dict(tmp_path / "bare.safetensors").tensors, bare)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_dict_may_be_wrapped(tmp_path, key, prefix):
    """torch.nn.DataParallel names its model module, and torch.compile _orig_mod, before all names."""
    bare = {"a.weight": torch.randn(3), "module.b": torch.randn(2, 2)}
    wrapped = {key: {prefix + name: tensor for name, tensor in bare.items()}, "epoch": 3, "optimizer": {}}
    assert are_equal(open_state_dict(save_torch(tmp_path / "wrapped.ckpt", wrapped)).tensors, bare)


def test_a_tensor_beside_a_dict_called_model_is_not_lost(tmp_path):
    contents = {"a": torch.randn(3), "model": {"b": torch.randn(2)}}
    path = save_torch(tmp_path / "two.ckpt", contents)
    with pytest.warns(VelaturaWarning, match=r"\(model with tensors: 1\)"):
        assert open_state_dict(path).tensors.keys() == {"a"}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"foo_unknown": 1}, "foo_unknown"),
        ({"foo_unknown": torch.ones(2)}, "foo_unknown with tensors: 1"),
        ({"ema": {"a": torch.ones(2), "b": torch.ones(2)}}, "ema with tensors: 2"),
        ({5: "x"}, "5"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "a, b, c"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_an_entry_that_trainings_do_not_leave_is_named(tmp_path, entries, named, zipped):
    weights = {"w": torch.randn(3)}
    path = save_torch(
        tmp_path / "x.ckpt", {"state_dict": weights, "epoch": 1, **entries}, _use_new_zipfile_serialization=zipped
    )
    with pytest.warns(VelaturaWarning) as warned:
        contents = open_state_dict(path)
    assert are_equal(contents.tensors, weights)
    count, verdict = ("1 entry", "it is") if len(entries) == 1 else (f"{len(entries)} entries", "they are")
    assert [str(each.message) for each in warned] == [
        f"x.ckpt has {count} beside its weights that trainings do not leave ({named}): {verdict} ignored"
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("epoch", "global_step", "pytorch-lightning_version", "callbacks", "optimizer_states", "lr_schedulers"),
        *("loops", "hparams_name", "hyper_parameters", "datamodule_hyper_parameters", "native_amp_scaling_state"),
        *("NativeMixedPrecisionPlugin", "MixedPrecision", "checkpoint_callback_best_model_path", "db_global_step"),
        *("optimizer", "optimizer_state_dict", "scheduler", "lr_scheduler", "scaler", "step", "best_loss", "args"),
    ],
)
def test_what_lightning_and_other_trainers_leave_is_not_named(tmp_path, name):
    """Names of Lightning's versions 0.9 to 2, of torch's tutorial on checkpoints, and of a DreamBooth extension."""
    path = save_torch(tmp_path / "x.ckpt", {"state_dict": {"w": torch.randn(3)}, name: {"x": 1}})
    assert open_state_dict(path).tensors.keys() == {"w"}


def test_tensors_that_share_a_storage_are_read(tmp_path):
    whole = torch.arange(12.0)
    parts = {"low": whole[:4].view(2, 2), "high": whole[4:]}
    assert are_equal(open_state_dict(save_torch(tmp_path / "parts.ckpt", parts)).tensors, parts)


def test_a_damaged_tensor_of_a_state_dict_is_refused(tmp_path):
    path = save_torch(tmp_path / "model.ckpt", {"a": torch.arange(300.0)})
    data = bytearray(path.read_bytes())
    position = data.index(torch.arange(300.0).numpy().tobytes())
    data[position + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        open_state_dict(path).tensors["a"]


def test_a_callback_class_becomes_a_string(tmp_path):
    call = b"\x80\x02}U\x01acpytorch_lightning.callbacks.x\nY\n)Rs."
    path = zip_pickle(tmp_path / "call.ckpt", call)
    assert open_tensors(path).payload == {"a": "pytorch_lightning.callbacks.x.Y"}
