"""A recommendation is only made where the difference is beyond the spread over seeds."""

import math
import re

import pytest

from velatura.studies.results import Curve, StudyResults, Trial
from velatura.training.rates import LearningRates, fit_rate

CURVE = Curve(strengths=(0, 1), likeness=(0, 1), kept=(1, 0.5))


def results(**scores):
    trials = [
        Trial(
            kind=kind,
            seed=seed,
            file="a",
            steps=1,
            command="velatura train",
            figures={"score": score, "strength": 0.7, "training_seconds": seconds, "bytes": 1000},
            curve=CURVE,
        )
        for kind, (seconds, *values) in scores.items()
        for seed, score in enumerate(values)
    ]
    common = {"pictures": "photos", "base": "tiny", "budget": "5 steps", "training_pictures": 9, "held_out_pictures": 3}
    return StudyResults(**common, trials=tuple(trials))


def test_a_clear_difference_names_the_best_kind_and_the_next():
    study = results(lora=(9, 0.60, 0.62, 0.61), hypernet=(5, 0.30, 0.32, 0.31))
    assert study.kinds == ["lora", "hypernet"]
    assert study.ties() == ["lora"]
    said = study.recommendation()
    assert said.startswith("Take a lora at strength 0.7: it reaches 0.61 ± 0.01")
    assert "hypernet, 0.31 ± 0.01" in said


def test_a_difference_within_the_spread_is_said_to_be_none():
    # means 0.55 and 0.5, deviations 0.1 and 0.1: the standard error of the difference is 0.082, twice it 0.163
    study = results(lora=(9, 0.45, 0.55, 0.65), hypernet=(5, 0.40, 0.50, 0.60))
    assert study.ties() == ["lora", "hypernet"]
    said = study.recommendation()
    assert said.startswith("Lora, hypernet do not differ by more than their spread")
    assert "take a hypernet, which trains fastest" in said


def test_a_kind_that_is_the_same_from_every_seed_differs_beyond_the_spread_of_the_other():
    # lora: deviation 0.1 of three seeds, standard error 0.058, twice it 0.115
    assert results(aesthetic=(1, 0.9), lora=(9, 0.4, 0.5, 0.6)).ties() == ["aesthetic"]
    assert results(aesthetic=(1, 0.6), lora=(9, 0.4, 0.5, 0.6)).ties() == ["aesthetic", "lora"]
    assert results(lora=(9, 0.4, 0.5, 0.6), aesthetic=(1, 0.3)).ties() == ["lora"]


def test_one_seed_is_no_proof():
    said = results(lora=(9, 0.9), hypernet=(5, 0.1)).recommendation()
    assert "one seed does not tell" in said
    assert "--seeds 3" in said


def test_kinds_that_learned_nothing_are_not_recommended():
    said = results(lora=(9, 0.0, 0.01), aesthetic=(1, 0.0)).recommendation()
    assert said.startswith("No kind brings pictures nearer")
    assert "aesthetic" not in said


def test_a_seed_without_effect_has_no_strength_to_recommend():
    study = results(lora=(9, 0.60, 0.62, 0.0))
    trials = [
        trial.model_copy(update={"figures": trial.figures | {"strength": 0.8 if trial.figures["score"] else 0.0}})
        for trial in study.trials
    ]
    assert "at strength 0.8" in study.model_copy(update={"trials": tuple(trials)}).recommendation()


def with_others_kept(study, **shares):
    trials = [
        trial.model_copy(update={"figures": trial.figures | {"others_kept": shares[trial.kind]}})
        for trial in study.trials
    ]
    return study.model_copy(update={"trials": tuple(trials)})


def test_of_kinds_that_do_not_differ_one_that_keeps_other_prompts_is_taken():
    study = results(lora=(9, 0.45, 0.55, 0.65), hypernet=(5, 0.40, 0.50, 0.60))
    said = with_others_kept(study, lora=0.9, hypernet=0.4).recommendation()
    assert said.endswith("take a lora, which keeps other prompts.")
    said = with_others_kept(study, lora=0.9, hypernet=0.8).recommendation()
    assert said.endswith("take a hypernet, which trains fastest.")
    said = with_others_kept(study, lora=0.5, hypernet=0.4).recommendation()
    assert said.endswith("trains fastest. Hypernet may spoil other prompts: 0.40 ± 0.00 of other things are kept.")


def test_the_best_kind_is_blamed_if_it_may_spoil_other_prompts():
    study = results(lora=(9, 0.60, 0.62, 0.61), hypernet=(5, 0.30, 0.32, 0.31))
    assert "may spoil" in with_others_kept(study, lora=0.4, hypernet=1.0).recommendation()
    assert "may spoil" not in with_others_kept(study, lora=0.9, hypernet=0.1).recommendation()
    assert "others_kept" in str(with_others_kept(study, lora=0.9, hypernet=0.1))
    assert "others_kept" not in str(study)


@pytest.mark.parametrize("scores", [{"lora": (9, 0.6, 0.6)}, {"lora": (9, 0.6), "hypernet": (5, 0.5)}])
def test_a_single_kind_or_seed_is_warned_of_too(scores):
    said = with_others_kept(results(**scores), lora=0.4, hypernet=1.0).recommendation()
    assert re.search(r"\. Lora may spoil other prompts: 0.40( ± 0.00)? of other things are kept\.$", said)


def test_a_single_kind_is_described():
    assert results(embedding=(3, 0.2, 0.3)).recommendation().startswith("An embedding reaches 0.25 ± 0.07")


def test_spreads_are_those_of_the_textbook_and_missing_figures_are_left_out():
    study = results(lora=(9, 0.2, 0.4))
    assert study.spread("lora", "score").mean == pytest.approx(0.3)
    assert study.spread("lora", "score").deviation == pytest.approx(0.02**0.5)
    assert math.isnan(study.spread("lora", "dino").mean)
    assert study.describe("lora", "dino") == ""
    assert "dino" not in study.measured_figures()
    assert "lora" in str(study)


def test_parts_of_a_rate_that_fewer_steps_never_reach_are_left_out():
    assert fit_rate("3e-3:170, 1e-3:250, 3e-4", 300, 2) == "3e-3:1, 1e-3"
    assert fit_rate("3e-3:170, 1e-3:250, 3e-4", 300, 1) == "3e-3"


def test_parts_that_are_shorter_than_a_step_are_left_out():
    assert fit_rate("3e-3:170, 1e-3:250, 3e-4", 300, 3) == "3e-3:2, 3e-4"  # ends at 1.7 and 2.5
    for steps in range(1, 300):
        assert LearningRates.parse(fit_rate("3e-3:170, 1e-3:250, 3e-4", 300, steps), steps).end == steps


@pytest.mark.parametrize(
    ("rate", "fitted"),
    [("1e-3:100, 1e-4", "1e-3:25, 1e-4"), ("1e-4", "1e-4"), ("5e-3:10%, 1e-3", "5e-3:10%, 1e-3"), ("1:1, 2", "1:1, 2")],
)
def test_rates_end_at_the_same_share_of_fewer_steps(rate, fitted):
    assert fit_rate(rate, 200, 50) == fitted
    assert fit_rate(rate, 200, 200) == rate
