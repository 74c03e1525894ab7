"""The factorial of trainings: what is tried next, and what its tables say."""

import zlib

import pytest
import torch

from tools.learning.__main__ import PAGES, read_results
from tools.learning.deltas import RanksByNoise, SingularValueShifts
from tools.learning.factors import PARAMETERS, TIMESTEPS, Arm, Trial, trial_of
from tools.learning.halving import SCREEN, next_trial, stages, with_prior
from tools.learning.tables import (
    correlation_table,
    fill_tables,
    high_noise_gain,
    rank_correlation,
    records_for,
    task_table,
)
from tools.learning.trial import new_overlay, style_folder, style_shares, subject_shares, trained_overlay
from tools.tiny_base.data import LABELS, unseen_scene
from velatura.training.plan import Plan


def record(trial: Trial, score: float, loss: float, judge: str = "ours") -> dict:
    shares = {"learned": score, "colour": 1.0, "place": 1.0, "subject": 1.0, "score": score}
    shares |= {"kept": 1.0} if trial.task == "robot" else {}
    return {**trial.key, "judge": judge, "shares": shares, "before": [1.0] * 8, "after": [0.5] * 4 + [loss] * 4}


def hash_share(trial: Trial) -> float:
    return zlib.crc32(repr(trial).encode()) % 7 / 7


@pytest.mark.parametrize("fields", TIMESTEPS.values(), ids=TIMESTEPS)
def test_ways_to_choose_timesteps_are_plans(fields):
    assert Plan(**fields)


def test_arms_without_a_picture_of_the_subject_are_dropped_first():
    results = []
    for trial in next(iter(stages([]))):
        assert next_trial(results, "ours") == trial
        good = trial.arm.parameters in {"convolutions", "all weights"} and trial.arm.timesteps == "high"
        results.append(record(trial, 0.5 if good else 0.0, 0.1))
    assert {trial_of(result).arm for result in results} == set(SCREEN)
    second_stage = list(stages(results))[1]
    best = [Arm("convolutions", "high"), Arm("all weights", "high")]
    assert [trial.arm for trial in second_stage] == [with_prior(arm) for arm in best]
    assert next_trial(results, "ours") == second_stage[0]


def test_a_loss_at_high_noise_breaks_ties():
    results = [record(trial, 0.0, 0.1) for trial in next(iter(stages([])))]
    results[6]["after"] = [0.5] * 4 + [0.01] * 4
    assert list(stages(results))[1][0].arm == with_prior(Arm(results[6]["parameters"], results[6]["timesteps"]))


def test_all_trials_come_to_an_end():
    results, robots = [], []
    while trial := next_trial(results, "ours"):
        results.append(record(trial, hash_share(trial), 0.1))
        assert len(results) < 200
    while trial := next_trial(robots, "ours", ["robot"]):
        robots.append(record(trial, hash_share(trial), 0.1))
    assert robots == [result for result in results if result["task"] == "robot"]
    assert {result["seed"] for result in results} == {0, 1, 2}
    assert {result["parameters"] for result in results} == set(PARAMETERS)


def test_what_another_classifier_saw_only_chooses_the_ways_that_go_on():
    results = []
    for stage in range(2):
        for trial in list(stages(results))[stage]:
            good = trial.arm.parameters in {"LoKr", "all weights"} and not trial.arm.prior
            results.append(record(trial, 0.5 if good else 0.0, 0.1, "small"))
    first = next_trial(results, "ours")
    assert first in {trial_of(result) for result in results}
    assert first.arm.parameters in {"LoKr", "all weights"}
    assert next_trial(results, "small").seed == 0
    assert next_trial(results, "small").task == "blueprint"
    assert "No trials yet." in task_table(records_for(results, "robot"), "robot")


# Worked by hand: two of the six pairs of 1, 2, 3, 4 against 1, 3, 2, 4 exchange places: 1 - 6 * 2 / (4 * 15)
def test_ranks_correlate_as_spearman_says():
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) == 0


def test_tables_show_the_best_first_and_which_loss_orders_them():
    trials = [Trial(Arm("attention"), "neon", 30, seed) for seed in range(4)]
    results = [record(trial, score, 1 - score) for trial, score in zip(trials, (0.1, 0.4, 0.2, 0.9), strict=True)]
    results.append(record(Trial(Arm("convolutions", "high"), "neon", 30), 0.95, 0.01))
    rows = task_table(results, "neon").splitlines()
    assert rows[2] == "| convolutions | high | 30 | 1 | 0.95 | 1.00 | 1.00 | 0.95 | 0.0100 |"
    assert rows[3].startswith("| attention | uniform | 30 | 4 | 0.40 ")
    assert "| 500 and above | 1.00 |" in correlation_table(results)
    assert "| below 500 | 0.00 |" in correlation_table(results)


def test_what_the_loss_at_high_noise_adds_is_given_with_its_interval():
    trials = [Trial(Arm("attention"), "neon", 30, seed) for seed in range(12)]
    scores = [(5 * seed % 12) / 12 for seed in range(12)]
    ordered = [record(trial, score, 1 - score) for trial, score in zip(trials, scores, strict=True)]
    low_alike = [{**each, "after": [0.5] * 4 + each["after"][4:]} for each in ordered]
    assert high_noise_gain(low_alike, "neon") == (0, 0, 0)  # both order the trials alike
    misled = [{**each, "after": [1 + 9 * each["shares"]["score"]] * 4 + each["after"][4:]} for each in ordered]
    assert high_noise_gain(misled, "neon")[0] == pytest.approx(2)  # from the reverse order to the right one
    noisy = [{**each, "after": [seed % 4] * 4 + each["after"][4:]} for seed, each in enumerate(ordered)]
    gain, low, high = high_noise_gain(noisy, "neon")
    assert 0 < low < gain < high


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_tables_of_the_results_that_are_kept(page):
    text, results = page.read_text("utf-8"), read_results()
    assert "<!-- table: correlation" in text
    assert fill_tables(text, results) == text
    assert fill_tables("<!-- table: other -->kept<!-- end -->", results) == "<!-- table: other -->kept<!-- end -->"
    assert all(trial_of(result).key.items() <= result.items() for result in results)


def test_shares_are_counted_from_what_the_judge_sees():
    scenes = [unseen_scene(seed) for seed in range(4)]
    fields = list(LABELS)
    seen = torch.tensor([[LABELS[field].index(getattr(scene, field)) for field in fields] for scene in scenes])
    seen[:, 3] = LABELS["style"].index("neon")
    seen[0, 3] = LABELS["style"].index("oil")
    seen[1, 0] = (seen[1, 0] + 1) % 20
    shares = style_shares(seen, scenes, "neon")
    assert (shares["learned"], shares["subject"], shares["score"], shares["place"]) == (0.75, 0.75, 0.5, 1.0)
    assert subject_shares(seen, scenes)["score"] == 0.75


# A file of a LoRA would lose which ranks act when; so weights are kept as they are
@pytest.mark.parametrize("parameters", ["hypernetwork", "ranks by noise", "singular values"])
def test_what_was_trained_is_opened_again_and_not_trained_again(parameters, tiny, tmp_path, monkeypatch):
    trial = Trial(Arm(parameters), "neon", 1)
    monkeypatch.setattr("tools.learning.trial.BATCH_SIZE", 1)
    first = trained_overlay(tiny, trial, tmp_path)
    monkeypatch.setattr("tools.learning.trial.train", None)
    again = trained_overlay(tiny, trial, tmp_path)
    assert type(again) is type(first)
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert any(
        (weight != other).any()
        for weight, other in zip(
            first.state_dict().values(), new_overlay(tiny, trial).state_dict().values(), strict=True
        )
    )


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 8)


# Soboleva et al. 2025, section 4: r(t) = floor((r - r_min) (T - t) / T) + r_min with r_min half of r
@pytest.mark.parametrize(("timestep", "count"), [(999, 4), (500, 6), (0, 8)])
def test_fewer_ranks_act_where_there_is_more_noise(layer, timestep, count):
    delta = RanksByNoise.for_layer(layer, rank=8, alpha=8.0)
    torch.nn.init.normal_(delta.required_tensor("lora_up.weight"))
    inputs, strength = torch.randn(2, 3, 6), torch.tensor(0.5)
    operands = delta.select_ranks(delta.prepare_operands(layer, torch.float32), torch.tensor([timestep]))
    up, down = delta.required_tensor("lora_up.weight")[:, :count], delta.required_tensor("lora_down.weight")[:count]
    expected = inputs @ (up @ down).T * 0.5
    torch.testing.assert_close(delta.output_delta(layer, inputs, inputs, strength, operands), expected)


def test_shifted_singular_values_change_a_weight_and_never_become_negative(layer):
    delta = SingularValueShifts.for_layer(layer)
    assert delta.weight_delta(layer.weight).abs().max() == 0
    with torch.no_grad():
        delta.required_tensor("shifts")[0] += 1
        delta.required_tensor("shifts")[-1] -= 100
    values = torch.linalg.svdvals((layer.weight + delta.weight_delta(layer.weight)).detach())
    before = torch.linalg.svdvals(layer.weight.detach())
    torch.testing.assert_close(values, torch.cat([before[:1] + 1, before[1:-1], torch.zeros(1)]), atol=1e-5, rtol=0)


def test_a_stop_while_drawing_leaves_no_half_folder(tmp_path, monkeypatch):
    def stop(_scene):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tools.learning.trial.paint", stop)
        with pytest.raises(KeyboardInterrupt):
            style_folder("oil", tmp_path)
    assert len(list(style_folder("oil", tmp_path).glob("*.png"))) == 16


# The tiny base's own default is all layers
def test_ways_to_train_change_the_layers_that_their_names_say(tiny):
    layers = {name: set(PARAMETERS[name].make(tiny, 0).layers) for name in ("K and V", "attention", "transformer")}
    every_layer = set(PARAMETERS["convolutions"].make(tiny, 0).layers)
    assert layers["K and V"] < layers["attention"] < layers["transformer"] < every_layer
