"""Hostile states of optimizers, as A1111 keeps them beside a hypernetwork: inca.pt.optim beside inca.pt."""

import torch

import velatura
from tests.hostile.cases import LOAD, REFUSE, WARN, Case, hypernetwork
from velatura.files import short_hash

NAN, INF = float("nan"), float("inf")


def trained(path):
    """Return the state of an AdamW after a step, for the hypernetwork in a file."""
    optimizer = torch.optim.AdamW(velatura.open_overlay(path).parameters(), lr=1e-3)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return optimizer.state_dict()


def with_group(**settings):
    """Change the settings of the first parameter group."""

    def change(payload):
        payload["optimizer_state_dict"]["param_groups"][0].update(settings)

    return change


def with_moment(index=0, **moments):
    """Change the moments of a parameter, to a value or by a function."""

    def change(payload):
        state = payload["optimizer_state_dict"]["state"][index]
        for key, value in moments.items():
            state[key] = value(state[key]) if callable(value) else value

    return change


def first_set_to(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def with_field(**fields):
    return lambda payload: payload.update(fields)


def with_state(**parts):
    return lambda payload: payload["optimizer_state_dict"].update(parts)


def without_field(key):
    return lambda payload: payload.pop(key)


def without_moment(key):
    return lambda payload: payload["optimizer_state_dict"]["state"][0].pop(key)


def without_parameter(payload):
    payload["optimizer_state_dict"]["state"].pop(0)


def fresh(payload):
    payload["optimizer_state_dict"]["state"].clear()


ROWS = [
    ("ok", LOAD, "AdamW", lambda _: None),
    ("ok_fresh", LOAD, "a state of no step", fresh),
    ("ok_no_name", LOAD, "no name, as files of 2022", without_field("optimizer_name")),
    ("ok_rate_0", LOAD, "rate 0", with_group(lr=0.0)),
    ("hash_other", WARN, "the hash of other weights", with_field(hash="0123456789")),
    ("hash_short", WARN, "a hash of 8 digits", with_field(hash="01234567")),
    ("hash_word", WARN, "a word for the hash", with_field(hash="none")),
    ("moment_large", WARN, "a moment of 1e30", with_moment(exp_avg=first_set_to(1e30))),
    ("name_eval", REFUSE, "the optimizer eval", with_field(optimizer_name="eval")),
    ("name_path", REFUSE, "the optimizer os.system", with_field(optimizer_name="os.system")),
    ("name_lower", REFUSE, "adamw in small letters", with_field(optimizer_name="adamw")),
    ("name_base", REFUSE, "the base class of optimizers", with_field(optimizer_name="Optimizer")),
    ("name_number", REFUSE, "a number for the name", with_field(optimizer_name=5)),
    ("name_other", REFUSE, "SGD with the moments of AdamW", with_field(optimizer_name="SGD")),
    ("hash_number", REFUSE, "a number for the hash", with_field(hash=5)),
    ("hash_missing", REFUSE, "no hash", without_field("hash")),
    ("state_missing", REFUSE, "no state", without_field("optimizer_state_dict")),
    ("state_list", REFUSE, "a list for the state", with_field(optimizer_state_dict=[1, 2])),
    ("state_text", REFUSE, "text for the state", with_field(optimizer_state_dict="state")),
    ("state_empty", REFUSE, "an empty state", with_field(optimizer_state_dict={})),
    ("state_extra", REFUSE, "a third part of the state", with_state(more={})),
    ("states_list", REFUSE, "a list for the states of parameters", with_state(state=[])),
    ("groups_empty", REFUSE, "no parameter group", with_state(param_groups=[])),
    ("groups_dict", REFUSE, "a dict for the groups", with_state(param_groups={"lr": 1e-3})),
    ("parameter_more", REFUSE, "9 parameters", with_group(params=list(range(9)))),
    ("parameter_less", REFUSE, "7 parameters", with_group(params=list(range(7)))),
    ("parameter_order", REFUSE, "parameters that count back", with_group(params=list(range(8))[::-1])),
    ("parameter_twice", REFUSE, "a parameter twice", with_group(params=[0, 0, 1, 2, 3, 4, 5, 6])),
    ("parameter_missing", REFUSE, "a parameter without a state", without_parameter),
    ("parameter_none", REFUSE, "None for a parameter's state", with_state(state=dict.fromkeys(range(8)))),
    ("rate_nan", REFUSE, "rate NaN", with_group(lr=NAN)),
    ("rate_inf", REFUSE, "rate inf", with_group(lr=INF)),
    ("rate_negative", REFUSE, "rate -1", with_group(lr=-1.0)),
    ("rate_dict", REFUSE, "a dict for the rate", with_group(lr={"a": 1})),
    ("betas_2", REFUSE, "beta 2", with_group(betas=(2.0, 0.999))),
    ("betas_one", REFUSE, "one beta", with_group(betas=(0.9,))),
    ("betas_nan", REFUSE, "beta NaN", with_group(betas=(NAN, 0.999))),
    ("decay_negative", REFUSE, "weight decay -1", with_group(weight_decay=-1.0)),
    ("maximize", REFUSE, "a loss that is to grow", with_group(maximize=True)),
    ("moment_shape", REFUSE, "a moment of another shape", with_moment(exp_avg=lambda tensor: tensor[:, :-1])),
    (
        "moment_vector",
        REFUSE,
        "both moments of another shape",
        with_moment(exp_avg=torch.ones(3), exp_avg_sq=torch.ones(3)),
    ),
    ("moment_nan", REFUSE, "NaN in the first moment", with_moment(exp_avg=first_set_to(NAN))),
    ("square_nan", REFUSE, "NaN in the second moment", with_moment(7, exp_avg_sq=first_set_to(NAN))),
    ("square_inf", REFUSE, "inf in the second moment", with_moment(3, exp_avg_sq=first_set_to(INF))),
    ("square_negative", REFUSE, "a negative second moment", with_moment(exp_avg_sq=first_set_to(-1e-9))),
    ("moment_beyond", REFUSE, "1e300", with_moment(exp_avg=lambda tensor: first_set_to(1e300)(tensor.double()))),
    ("moment_int", REFUSE, "int64", with_moment(exp_avg=lambda tensor: tensor.long())),
    ("moment_complex", REFUSE, "complex numbers", with_moment(exp_avg=lambda tensor: tensor + 0j)),
    ("moment_list", REFUSE, "a list for a moment", with_moment(exp_avg=[0.1])),
    ("moment_none", REFUSE, "None for a moment", with_moment(exp_avg=None)),
    ("moment_missing", REFUSE, "no second moment", without_moment("exp_avg_sq")),
    ("moment_unknown", REFUSE, "a moment that AdamW does not have", with_moment(foo=torch.ones(1))),
    ("step_nan", REFUSE, "step NaN", with_moment(step=torch.tensor(NAN))),
    ("step_negative", REFUSE, "step -1", with_moment(step=torch.tensor(-1.0))),
    ("step_two", REFUSE, "two step counts", with_moment(step=torch.ones(2))),
]


def optim_file(name, change):
    def write(folder):
        path = folder / f"{name}.pt"
        torch.save(hypernetwork(), path)
        payload = {"optimizer_name": "AdamW", "hash": short_hash(path), "optimizer_state_dict": trained(path)}
        change(payload)
        torch.save(payload, folder / f"{name}.pt.optim")
        return folder / f"{name}.pt.optim"

    return write


CASES = [
    Case(f"opt_{name}", "optimizer", must, why, optim_file(f"opt_{name}", change)) for name, must, why, change in ROWS
]
