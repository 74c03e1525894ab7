"""A winner is only called certain where its lead is beyond the noise of the validation."""

import json
import math

import pytest
from pydantic import ValidationError

from velatura.studies.results import Trial
from velatura.studies.sweep_page import sweep_page
from velatura.studies.sweep_results import SweepResults, SweepTrial, read_sweep
from velatura.studies.trials import NO_CURVE


def results(*trials, rounds=(10, 20)):
    made = [
        SweepTrial(
            number=number,
            values={"rate": f"{number}e-3"},
            folder=f"trials/{number:03}",
            command="velatura train hypernet photos/",
            steps=max(errors, default=0),
            errors=errors,
            **more,
        )
        for number, (errors, more) in enumerate(trials, 1)
    ]
    return SweepResults(
        kind="hypernet",
        pictures="photos",
        held_out="held-out",
        base="tiny",
        factor=2,
        rounds=rounds,
        trials=tuple(made),
        file="a",
    )


CLEAR = results(({0: (5, 5), 10: (2, 4)}, {}), ({0: (5, 5), 10: (1, 3.1), 20: (1, 2)}, {}))


def test_the_lead_is_the_paired_difference_of_the_textbook():
    # rows differ by 1 and 0.9: mean 0.95, deviation 0.1 / sqrt(2), standard error 0.05
    difference = CLEAR.difference(*CLEAR.ranking())
    assert difference == pytest.approx((10, 0.95, 0.05))
    assert not difference.is_within_noise
    assert CLEAR.ties() == []
    said = CLEAR.recommendation()
    assert said.startswith("Trial 2 wins: rate=2e-3 (validation loss at high noise 1.5000, 5.0000 untrained).")
    assert "0.9500 ± 0.0500 at step 10 below trial 1" in said


def test_a_lead_within_the_noise_is_said_to_be_chance():
    # differences 1 and -0.8: mean 0.1, standard error 0.9
    close = results(({10: (2, 2.2)}, {}), ({10: (1, 3), 20: (1, 2)}, {}))
    assert [trial.number for trial in close.ties()] == [1]
    assert "within the noise of the validation (trial 1: 0.1000 ± 0.9000 at step 10) and may be chance" in str(close)
    assert "may be chance" in close.table()[2][-1]


def test_one_row_tells_nothing():
    single = results(({10: (9,)}, {}), ({10: (1,), 20: (1,)}, {}))
    assert single.difference(*single.ranking()).error == math.inf
    assert single.ties()


def test_a_table_compares_every_trial_with_the_winner_only():
    compared = []

    class CountedResults(SweepResults):
        def difference(self, first, second):
            compared.append(second.number)
            return super().difference(first, second)

    many = results(*[({10: (float(number), number + 1.0)}, {}) for number in range(40)])
    CountedResults(**dict(many)).table()
    assert len(compared) <= 2 * len(many.trials)


@pytest.mark.parametrize("path", ["../../x", "/etc", "trials/../../x", "C:/x", "..\\x", "javascript:alert(1)"])
def test_paths_that_lead_out_of_the_folder_are_not_read(path, tmp_path):
    stored = json.loads(CLEAR.model_dump_json())
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(stored))
    assert read_sweep(file) == CLEAR
    stored["trials"][0]["folder"] = path
    file.write_text(json.dumps(stored))
    assert read_sweep(file) is None
    file.write_text(json.dumps(json.loads(CLEAR.model_dump_json()) | {"file": path}))
    assert read_sweep(file) is None
    with pytest.raises(ValidationError, match="inside the folder"):
        Trial(kind="lora", seed=0, file=path, steps=1, command="", figures={}, curve=NO_CURVE)


def test_trials_that_diverged_come_last_and_rescues_are_told():
    found = results(({10: (0.1, 0.1)}, {"problem": "NaN"}), ({10: (3, 3), 20: (3, 3)}, {"rescues": 2}))
    assert [trial.number for trial in found.ranking()] == [2, 1]
    assert "No other trial finished a round" in found.recommendation()
    assert "It diverged 2 times" in found.recommendation()
    assert [row[-1] for row in found.table()] == ["note", "rescued 2 times", "diverged"]


def test_the_page_needs_no_other_file_and_escapes_what_people_wrote():
    page = sweep_page(CLEAR.model_copy(update={"pictures": "<b>"}))
    assert "http" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<polyline") == 2
    assert sweep_page(results(({}, {}), ({}, {}))).count("Nothing is measured yet") == 1
