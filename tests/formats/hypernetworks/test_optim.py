"""A1111's optimizer files: tests/data/optim holds two that A1111 1.8.0 wrote, one whose hash is its .pt's, one not."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.files import short_hash
from velatura.formats.hypernetworks.optim import read_optim, write_optim
from velatura.tensors import open_tensors, write_torch

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "optim"
HOSTILE = DATA / "hostile"
ITEMS = [item for item in json.loads((HOSTILE / "index.json").read_text()) if item["file"].endswith(".optim")]


@pytest.fixture
def trained(hyper, tmp_path):
    """Return the file of a hypernetwork, the hypernetwork, and the optimizer that trained it."""
    overlay = hyper(widths=[64, 96])
    optimizer = torch.optim.AdamW(overlay.parameters(), lr=1e-3)
    sum(parameter.square().sum() for parameter in overlay.parameters()).backward()
    optimizer.step()
    velatura.save(overlay, tmp_path / "inca.pt")
    return tmp_path / "inca.pt", overlay, optimizer


def rewrite(path, **changes):
    """Change fields of an optimizer file; its hash stays right."""
    optim_path = path.with_name(f"{path.name}.optim")
    write_torch(optim_path, {**open_tensors(optim_path).payload, **changes})


def test_a_state_that_a1111_resumes_is_read():
    stored = read_optim(GOLDEN / "resumable.pt")
    assert stored.name == "AdamW"
    assert list(stored.state["state"]) == list(range(8))
    optimizer = torch.optim.AdamW(velatura.open_overlay(GOLDEN / "resumable.pt").parameters())
    optimizer.load_state_dict(stored.state)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_state_that_a1111_does_not_resume_is_ignored_with_a_warning():
    with pytest.warns(VelaturaWarning, match=r"not_resumable\.pt\.optim belongs to other weights"):
        assert read_optim(GOLDEN / "not_resumable.pt") is None


def test_a_state_is_read_back_bit_for_bit(trained):
    path, overlay, optimizer = trained
    write_optim(path, "AdamW", optimizer.state_dict())
    stored = read_optim(path)
    again = torch.optim.AdamW(overlay.parameters())
    again.load_state_dict(stored.state)
    for first, second in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_the_hash_is_that_of_the_weights(trained):
    path, _, optimizer = trained
    write_optim(path, "AdamW", optimizer.state_dict())
    payload = torch.load(path.with_name("inca.pt.optim"), weights_only=True)
    assert list(payload) == ["optimizer_name", "hash", "optimizer_state_dict"]
    assert payload["hash"] == sha256(path.read_bytes()).hexdigest()[:10] == short_hash(path)


def test_changed_weights_get_no_state(trained):
    path, overlay, optimizer = trained
    write_optim(path, "AdamW", optimizer.state_dict())
    overlay.card = overlay.card.replace(steps=1)
    velatura.save(overlay, path)
    with pytest.warns(VelaturaWarning, match="belongs to other weights"):
        assert read_optim(path) is None


def test_without_an_optim_file_there_is_no_state(trained):
    assert read_optim(trained[0]) is None


def test_only_optimizers_of_torch_are_written(trained):
    with pytest.raises(UnknownName, match="did you mean 'AdamW'"):
        write_optim(trained[0], "AdanW", {})
    assert not trained[0].with_name("inca.pt.optim").exists()


def test_the_old_hash_counts_for_large_files(hyper, tmp_path):
    overlay = hyper(layers=(1, 6, 1), widths=[192])
    path = tmp_path / "old.pt"
    velatura.save(overlay, path)
    assert path.stat().st_size > 0x110000
    write_optim(path, "AdamW", torch.optim.AdamW(overlay.parameters()).state_dict())
    old = sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    rewrite(path, hash=old)
    assert read_optim(path).name == "AdamW"


def test_the_old_hash_does_not_count_for_small_files(trained):
    path, _, optimizer = trained
    write_optim(path, "AdamW", optimizer.state_dict())
    rewrite(path, hash="e3b0c442")  # of nothing, which all files below a mebibyte have
    with pytest.warns(VelaturaWarning, match="belongs to other weights"):
        assert read_optim(path) is None


@pytest.mark.parametrize("item", [pytest.param(item, id=item["file"]) for item in ITEMS])
def test_bad_files_are_refused_or_ignored_as_listed(item, tmp_path, monkeypatch):
    monkeypatch.setenv("VELATURA_MARKER_DIR", str(tmp_path / "marker"))
    (tmp_path / "marker").mkdir()
    shutil.copyfile(HOSTILE / "hypernetwork" / "s_hn_ok_f16.pt", tmp_path / "x.pt")
    shutil.copyfile(HOSTILE / item["file"], tmp_path / "x.pt.optim")
    if item["must"] == "warn":
        with pytest.warns(VelaturaWarning, match=r"x\.pt\.optim belongs to other weights"):
            assert read_optim(tmp_path / "x.pt") is None
    else:
        with pytest.raises(BadFile, match=r"^x\.pt\.optim [^\n]+$"):
            read_optim(tmp_path / "x.pt")
    assert not list((tmp_path / "marker").iterdir())


def group(**changes):
    return {"lr": 1e-5, "betas": (0.9, 0.999), "params": list(range(8)), **changes}


def moments(shape, **changes):
    return {"step": torch.tensor(3.0), "exp_avg": torch.ones(shape), "exp_avg_sq": torch.ones(shape), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_name": "exec"}, "is of the optimizer 'exec'"),
        ({"optimizer_name": ["AdamW"]}, "is of the optimizer"),
        ({"hash": None}, "does not say which weights"),
        ({"optimizer_state_dict": []}, "lacks the state or the parameter groups"),
        ({"optimizer_state_dict": {"state": [], "param_groups": [group()]}}, "lacks the state or the parameter groups"),
        ({"optimizer_state_dict": {"state": {}, "param_groups": []}}, "lacks the state or the parameter groups"),
        (
            {"optimizer_state_dict": {"state": {}, "param_groups": [group(lr=float("nan"))]}},
            "'lr' that is not a finite",
        ),
        ({"optimizer_state_dict": {"state": {}, "param_groups": [group(betas=(0.9, {}))]}}, "'betas' that is not"),
        (
            {"optimizer_state_dict": {"state": {}, "param_groups": [group(params=[0, 1])]}},
            "for 2 parameters, but the weights have 8",
        ),
        (
            {"optimizer_state_dict": {"state": {}, "param_groups": [group(params=[0, 0])]}},
            "does not count its parameters",
        ),
        ({"optimizer_state_dict": {"state": {9: {}}, "param_groups": [group()]}}, "does not count its parameters"),
        ({"optimizer_state_dict": {"state": {0: None}, "param_groups": [group()]}}, "no state for its parameter 0"),
        (
            {"optimizer_state_dict": {"state": {0: moments(3)}, "param_groups": [group()]}},
            r"of parameter 0 of shape \(3,\), not \(128, 64\)",
        ),
        (
            {"optimizer_state_dict": {"state": {0: moments(3, exp_avg=torch.ones(2))}, "param_groups": [group()]}},
            "tensors of several shapes",
        ),
        (
            {"optimizer_state_dict": {"state": {0: moments(3, exp_avg_sq=-torch.ones(3))}, "param_groups": [group()]}},
            "exp_avg_sq of parameter 0 below zero",
        ),
        (
            {"optimizer_state_dict": {"state": {0: moments(3, exp_avg=torch.ones(3) / 0)}, "param_groups": [group()]}},
            "exp_avg of parameter 0 with values that are not finite",
        ),
        (
            {"optimizer_state_dict": {"state": {0: moments(3, step=-1)}, "param_groups": [group()]}},
            "step of parameter 0 below zero",
        ),
    ],
)
def test_an_impossible_state_is_refused_even_with_the_right_hash(hyper, tmp_path, changes, message):
    overlay = hyper(widths=[64])
    velatura.save(overlay, tmp_path / "inca.pt")
    write_optim(tmp_path / "inca.pt", "AdamW", torch.optim.AdamW(overlay.parameters()).state_dict())
    rewrite(tmp_path / "inca.pt", **changes)
    with pytest.raises(BadFile, match=message):
        read_optim(tmp_path / "inca.pt")


def test_other_torch_files_are_refused(trained):
    path = trained[0]
    write_torch(path.with_name("inca.pt.optim"), {"hash": "0123456789"})
    with pytest.raises(BadFile, match="does not hold a hash and the state of an optimizer"):
        read_optim(path)


def test_a_state_without_weights_is_refused(trained):
    path, _, optimizer = trained
    write_optim(path, "AdamW", optimizer.state_dict())
    path.unlink()
    with pytest.raises(BadFile, match=r"inca\.pt: No such file"):
        read_optim(path)


def torch_optimizers():
    """Name every optimizer of torch that takes dense gradients and needs no closure."""
    skipped = {"Optimizer", "LBFGS", "SparseAdam"}
    return sorted(name for name in torch.optim.__all__ if name[0].isupper() and name not in skipped)


def stepped(name, overlay):
    """Return an optimizer of torch after a step."""
    parameters = list(overlay.parameters())
    optimizer = getattr(torch.optim, name)(parameters, lr=1e-3)
    sum(parameter.square().sum() for parameter in parameters).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", [name for name in torch_optimizers() if name != "Muon"])
def test_every_optimizer_of_torch_is_read_back(hyper, tmp_path, name):
    overlay = hyper(widths=[64])
    optimizer = stepped(name, overlay)
    velatura.save(overlay, tmp_path / "inca.pt")
    write_optim(tmp_path / "inca.pt", name, optimizer.state_dict())
    stored = read_optim(tmp_path / "inca.pt")
    assert stored.name == name
    assert stored.state["state"].keys() == optimizer.state_dict()["state"].keys()


def without(name):
    def change(state):
        for moments in state["state"].values():
            del moments[name]

    return change


def with_setting(key, value):
    def change(state):
        state["param_groups"][0][key] = value

    return change


def with_moment(key, value):
    def change(state):
        state["state"][2][key] = value

    return change


def without_parameter(state):
    del state["state"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("exp_avg_sq"), "no exp_avg_sq of parameter 0, which AdamW needs"),
        (without("step"), "no step of parameter 0"),
        (without_parameter, "a state for 15 of 16 parameters"),
        (with_moment("exp_avg", 0.5), "exp_avg of parameter 2 that is not a tensor"),
        (with_moment("square_avg", torch.ones(64, 128)), "square_avg of parameter 2"),
        (with_moment("step", torch.ones(3)), "3 step counts of parameter 2"),
        (with_setting("betas", (1.5, 0.999)), r"betas \(1\.5, 0\.999\)"),
        (with_setting("betas", (0.9, 1.0)), r"betas \(0\.9, 1\.0\)"),
        (with_setting("betas", (0.9,)), r"betas \(0\.9,\)"),
        (with_setting("betas", None), r"betas \(\)"),
        (with_setting("eps", -1e-8), "the setting eps of -1e-08"),
        (with_setting("lr", -1.0), "the setting lr of -1"),
        (with_setting("weight_decay", -0.1), "the setting weight_decay of -0.1"),
        (with_setting("amsgrad", True), "no max_exp_avg_sq"),
        (with_setting("maximize", True), "maximizes the loss"),
    ],
)
def test_a_state_of_no_adamw_is_refused(trained, change, message):
    path, _, optimizer = trained
    state = optimizer.state_dict()
    change(state)
    write_optim(path, "AdamW", state)
    with pytest.raises(BadFile, match=message):
        read_optim(path)


@pytest.mark.parametrize(
    "name", [name for name in torch_optimizers() if name not in {"Muon", "Adam", "AdamW", "RAdam"}]
)
def test_the_moments_of_another_optimizer_are_refused(hyper, tmp_path, name):
    """The file says AdamW, and the state is of another: it would take a first step with wrong moments."""
    overlay = hyper(widths=[64])
    optimizer = stepped(name, overlay)
    if name == "SGD":
        optimizer = torch.optim.SGD(overlay.parameters(), lr=1e-3, momentum=0.9)
        optimizer.step()
    velatura.save(overlay, tmp_path / "inca.pt")
    write_optim(tmp_path / "inca.pt", "AdamW", optimizer.state_dict())
    with pytest.raises(BadFile, match=r"^inca\.pt\.optim has "):
        read_optim(tmp_path / "inca.pt")
