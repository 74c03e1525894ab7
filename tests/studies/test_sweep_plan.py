"""A sweep is planned, and its progress counted, without a training."""

import pytest

from tests.conftest import copy_four_pictures
from velatura.errors import BadDataset, BadOverlay, ignore_warnings
from velatura.studies.candidates import CandidateOptions, parse_tries
from velatura.studies.sweep import SweepProgress
from velatura.studies.sweep_plan import SweepPlan, plan_sweep

OPTIONS = CandidateOptions("hypernet", "style", "tiny", 8, 0, {"pixels": 32, "batch_size": 1}, None)


@pytest.fixture
def photos(tmp_path):
    return copy_four_pictures("neon", tmp_path / "neon")


def plan(tiny, photos, *texts, **changes):
    options = {"factor": 2, "validation": None} | changes
    with ignore_warnings():  # of a short first round
        return plan_sweep(tiny, photos, photos.parent / "sweep", parse_tries(texts), OPTIONS, **options)


def test_the_plan_says_what_successive_halving_takes_and_writes_nothing(tiny, photos):
    setup = plan(tiny, photos, "layers=1,1|1,2,1", "rate=1e-3|3e-3")
    planned = SweepPlan.measure(setup)
    # 4 trials of 2 steps, 2 of 2 more, 1 of 4 more; all to the end would be 4 of 8
    assert (planned.rounds, planned.trials_by_round) == ((2, 4, 8), (4, 2, 1))
    assert (planned.steps, planned.steps_without_halving) == (16, 32)
    assert planned.trials[1] == {"layers": "1,1", "rate": "3e-3"}
    assert planned.seconds > 0
    assert "1 trial to step 8" in str(planned)
    assert not setup.folder.exists()


def test_overlays_that_cannot_be_built_are_refused_before_the_first_training(tiny, photos):
    with pytest.raises(BadOverlay, match="leave no features"):
        plan(tiny, photos, "layers=1,2,1|1,1e-9,1")


def test_pictures_for_the_validation_are_others(tiny, photos):
    with pytest.raises(BadDataset, match="training picture too"):
        plan(tiny, photos, "rate=1e-3|3e-3", validation=photos)
    for path in sorted(photos.iterdir())[:2]:
        path.unlink()
    with pytest.raises(BadDataset, match="4 or more"):
        plan(tiny, photos, "rate=1e-3|3e-3")


def test_progress_adds_up_what_is_reported_without_looking_into_run_folders_again(tiny, photos):
    setup, reports = plan(tiny, photos, "rate=1e-3|2e-3|3e-3"), []
    progress = SweepProgress(setup, lambda *report: reports.append(report))
    first, second, _ = (setup.job(candidate, 2) for candidate in setup.candidates)
    for job, steps in ((first, 1), (first, 2), (second, 1)):  # of which the folders know nothing
        progress.report(job, steps)
    total = 3 * 2 + 2 * 2 + 1 * 4
    assert reports == [
        ("trial 1 of 3, to step 2", 1, total),
        ("trial 1 of 3, to step 2", 2, total),
        ("trial 2 of 3, to step 2", 3, total),
    ]
