"""The tool that measures which kind serves: what it draws, in which order, and its tables."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import velatura
from tools import which_one
from tools.which_one import Trial


@pytest.mark.parametrize(("task", "bundled"), [("neon", 16), ("robot", 8)])
def test_more_pictures_go_on_where_the_bundled_ones_end(task, bundled, tmp_path):
    folder = which_one.draw_pictures(task, 24, tmp_path)
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 24
    assert len({picture.read_bytes() for picture in pictures}) == 24
    for picture in pictures[:bundled]:
        shipped = velatura.tiny_pictures(task) / picture.name
        assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(shipped)))
        assert picture.with_suffix(".txt").read_text() == shipped.with_suffix(".txt").read_text()


def test_every_kind_is_tried_with_every_count_before_the_next_seed():
    order = list(which_one.trials())
    assert len(set(order)) == len(order) == 2 * 3 * (4 * 3 + 1)  # an aesthetic is the same from every seed
    assert [trial.seed for trial in order] == sorted(trial.seed for trial in order)
    assert {trial.kind for trial in order if trial.seed} == set(which_one.KINDS) - {"aesthetic"}


def test_finished_trials_are_not_done_again(tmp_path, monkeypatch):
    results, tried = tmp_path / "results.jsonl", []

    def run_one(_setup, _judge, trial):
        tried.append(trial)
        return {**trial._asdict(), "score": 0.5, "learned": 0.5}

    monkeypatch.setattr(which_one, "run_one", run_one)
    monkeypatch.setattr(which_one, "open_setup", lambda *_: None)
    monkeypatch.setattr("tools.tiny_base.judge.open_judge", lambda *_, **__: None)
    which_one.run(tmp_path, results, minutes=60)
    assert tried == list(which_one.trials())
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    tried.clear()
    which_one.run(tmp_path, results, minutes=60)
    assert tried == [Trial(*[*which_one.trials()][3])]


def test_an_overlay_that_is_mixed_is_trained_if_it_is_missing(lora, tmp_path, monkeypatch):
    trained = []

    def run_trial(setup, kind, seed, steps):
        trained.append((kind, seed, steps))
        velatura.save(lora(name="neon"), setup.folder / "trials" / f"{kind}-{seed}" / f"{setup.name}.safetensors")

    monkeypatch.setattr("velatura.studies.trials.run_trial", run_trial)
    setup = SimpleNamespace(folder=tmp_path, name="neon")
    for _ in range(2):
        assert which_one.open_trained(setup, "lora").card.name == "neon"
    assert trained == [("lora", 0, which_one.STEPS)]


def test_tables_have_means_over_seeds_and_the_best_first(tmp_path):
    names = [name for name in which_one.COLUMNS.values() if name != "score"]
    figures = dict.fromkeys(names, 1.0)
    records = [
        {"kind": "lora", "task": "neon", "count": 4, "seed": seed, "score": score, **figures}
        for seed, score in enumerate((0.2, 0.4))
    ]
    records.append({"kind": "hypernet", "task": "neon", "count": 4, "seed": 0, "score": 0.5, **figures})
    page = tmp_path / "page.md"
    marks = "".join(f"\n<!-- table: {name} -->old<!-- end -->\n" for name in ("task-mixes", "neon", "robot"))
    page.write_text(marks)
    mixes = {"task-mixes": [{"mix": "both at 1", "robot": 0.5, "neon": 0.25}]}
    which_one.write_tables(records, mixes, page)
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| 4")]
    assert [row[1] for row in rows] == ["hypernet", "lora"]
    assert rows[0][2:4] == ["1", "0.50"]
    assert rows[1][2:4] == ["2", "0.30 ± 0.14"]  # by hand: the root of 0.02
    assert "| mix | robot | neon |\n|---|---|---|\n| both at 1 | 0.50 | 0.25 |" in page.read_text()
    assert "No trials yet." in page.read_text()
    assert "old" not in page.read_text()


def test_the_rank_correlation_is_that_of_the_textbook():
    # 106, 100, 86, 101, 99, 103, 97, 113, 112, 110 and their hours of television: Spearman is -29/165
    pairs = [(106, 7), (100, 27), (86, 2), (101, 50), (99, 28), (103, 29), (97, 20), (113, 12), (112, 6), (110, 17)]
    records = [{"score": first, "learned": second} for first, second in pairs]
    assert which_one.rank_correlation(records, "score", "learned") == pytest.approx(-29 / 165)


def test_figures_that_never_differ_order_nothing():
    records = [{"score": number, "learned": 0.5} for number in range(3)]
    assert which_one.rank_correlation(records, "score", "learned") == 0
    tied = [{"score": 1, "learned": 1}, {"score": 1, "learned": 1}, {"score": 2, "learned": 2}]
    assert which_one.rank_correlation(tied, "score", "learned") == pytest.approx(1)


def test_an_overlay_without_effect_has_empty_cells():
    figures = dict.fromkeys(set(which_one.COLUMNS.values()) - {"base_change"}, 0.0)
    line = which_one.table(
        [{"kind": "aesthetic", "task": "neon", "count": 12, "seed": 0, **figures}], "neon"
    ).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3 + list(which_one.COLUMNS.values()).index("base_change")] == ""
    assert cells[3] == "0.00"
