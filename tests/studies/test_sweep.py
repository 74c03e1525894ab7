"""A whole sweep on the tiny base: interrupted, gone on with, and its winner the same as a training without a sweep."""

import json
import shutil

import pytest

import velatura
from tests.conftest import copy_four_pictures
from velatura.cli.app import main
from velatura.errors import AlreadyExists, BadDataset

pytestmark = pytest.mark.slow  # ten trainings of a second each
TRIES = {"layers": [(1, 1), (1, 2, 1)], "rate": ["1e-7", "3e-3"], "init": "xavier_normal"}
STEPS = 8
SMALL = {"pixels": 32, "validation_pictures": 4}  # so that a trial takes little time


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return copy_four_pictures("neon", tmp_path_factory.mktemp("sweep") / "neon")


def run(tiny, photos, out, **changes):
    with pytest.warns(velatura.VelaturaWarning, match="first round is only 2 steps"):
        return velatura.sweep(
            tiny, "hypernet", photos, **({"tries": TRIES, "out": out, "steps": STEPS, "fields": SMALL} | changes)
        )


@pytest.fixture(scope="module")
def finished(tiny, photos, tmp_path_factory):
    """Interrupt a sweep in the middle of its second round, and start it again."""
    out = tmp_path_factory.mktemp("finished") / "sweep"

    def interrupt(label, done, total):
        assert total == 4 * 2 + 2 * 2 + 1 * 4
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interruption:
        run(tiny, photos, out, on_trial=interrupt)
    assert interruption.value.__notes__ == [f"start the sweep again with --out {out} to go on where it was"]
    reports = []
    results = run(tiny, photos, out, on_trial=lambda *report: reports.append(report))
    return out, results, reports


def test_the_better_half_goes_on_and_an_interrupted_sweep_does_not_begin_anew(finished):
    _, results, reports = finished
    assert results.rounds == (2, 4, 8)
    assert sorted(trial.steps for trial in results.trials) == [2, 2, 4, 8]
    assert results.winner.values["rate"] == "3e-3"  # 1e-7 learns nothing
    assert reports[0][1] >= 10
    assert reports[-1][1:] == (16, 16)
    for trial in results.trials:
        assert {len(errors) for errors in trial.errors.values()} == {2}  # of four rows, those at high noise


def test_the_winner_is_bit_for_bit_a_training_without_a_sweep(tiny, finished, tmp_path):
    out, results, _ = finished
    plan = velatura.Plan.from_file(out / results.winner.folder)
    layers = tuple(float(width) for width in results.winner.values["layers"].split(","))
    overlay = velatura.Hypernetwork.for_base(
        tiny, layers=layers, activation="relu", init="xavier_normal", seed=0, name="neon"
    )
    alone = velatura.train(tiny, overlay, out / "pictures" / "neon", plan, out=tmp_path / "alone")
    first, second = (velatura.open_overlay(path).state_dict() for path in (alone.file, out / results.file))
    assert all(first[name].equal(second[name]) for name in first)


def test_results_lie_in_the_folder_and_a_finished_sweep_trains_nothing(tiny, photos, finished, monkeypatch):
    out, results, _ = finished
    assert json.loads((out / "sweep.json").read_text())["file"] == "neon.safetensors"
    assert len(list((out / "held-out").glob("*.png"))) == 1
    assert "Trial" in (out / "index.html").read_text("utf-8")
    monkeypatch.setattr("velatura.studies.sweep_trials.train", None)
    monkeypatch.setattr("velatura.studies.sweep_trials.resume", None)
    assert run(tiny, photos, out) == results


def test_another_sweep_in_the_same_folder_is_refused(tiny, photos, finished, tmp_path):
    out, *_ = finished
    with pytest.raises(AlreadyExists, match="other settings"):
        run(tiny, photos, out, seed=1)
    (tmp_path / "letter.txt").touch()
    with pytest.raises(AlreadyExists, match="holds no sweep"):
        run(tiny, photos, tmp_path)
    with pytest.raises(BadDataset, match="training picture too"):
        run(tiny, photos, tmp_path / "new", validation=photos)


def test_changed_pictures_and_captions_are_refused_when_a_sweep_goes_on(tiny, photos, tmp_path):
    data, judged = tmp_path / "data", tmp_path / "judged"
    shutil.copytree(photos, data)
    shutil.copytree(photos, judged)
    options = {"tries": {"rate": "1e-3|3e-3"}, "steps": 4}

    def stop(*_):
        raise KeyboardInterrupt

    def change_and_run(changed, out, **given):
        with pytest.raises(KeyboardInterrupt):
            run(tiny, data, out, on_trial=stop, **options, **given)
        caption = sorted(changed.glob("*.txt"))[0]
        before = caption.read_text()
        caption.write_text("another caption")
        with pytest.raises(BadDataset, match=r"has changed since .* was begun: 1 changed \("):
            run(tiny, data, out, **options, **given)
        caption.write_text(before)

    change_and_run(data, tmp_path / "split")
    change_and_run(data, tmp_path / "given", validation=judged)
    change_and_run(judged, tmp_path / "given", validation=judged)


def test_a_folder_that_leads_out_of_the_sweep_is_refused(tiny, photos, finished, tmp_path):
    copied = tmp_path / "sweep"
    shutil.copytree(finished[0], copied)
    stored = json.loads((copied / "sweep.json").read_text())
    stored["trials"][0]["folder"] = "../../x"
    (copied / "sweep.json").write_text(json.dumps(stored))
    with pytest.raises(AlreadyExists, match="cannot be read"):
        run(tiny, photos, copied)


@pytest.mark.filterwarnings("ignore:the first round is only")
def test_the_command_says_what_it_would_do_and_what_it_found(photos, finished, capsys):
    out, results, _ = finished
    words = ["sweep", "hypernet", str(photos), "--steps", str(STEPS), "--out", str(out), "--try", "layers=1,1|1,2,1"]
    words += ["--try", "rate=1e-7|3e-3", "--try", "init=xavier_normal", "--set", "pixels=32"]
    words += ["--set", "validation_pictures=4"]
    assert main([*words, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "4 trials to step 2" in planned
    assert "16 steps in all, of 32 for all trials to the end" in planned
    assert main([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rounds"], plan["trials_by_round"], plan["steps"]) == ([2, 4, 8], [4, 2, 1], 16)
    assert plan["trials"][1] == {"layers": "1,1", "rate": "3e-3", "init": "xavier_normal"}
    assert plan["seconds"] > 0
    assert main(words) == 0
    assert results.recommendation() in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_a_trial_that_diverges_is_left_out(tiny, photos, tmp_path):
    # AdamW multiplies weights by 1 - rate x decay: by 0 at the first step, by -1e39 at the second
    fields = SMALL | {"weight_decay": 1e39, "rescues": 0}
    results = velatura.sweep(
        tiny, "hypernet", photos, tries={"rate": "1e-45|1e-39:1, 1"}, steps=4, out=tmp_path / "sweep", fields=fields
    )
    assert results.winner.number == 1
    assert "NaN or infinite" in results.trials[1].problem
