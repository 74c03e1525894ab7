"""The tool that trains every kind: its commands are commands, and a run leaves a sheet and a row."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tools import train_kinds
from velatura.library.preferred_strength import write_sidecar
from velatura.training.plan import Plan


def test_every_run_has_a_preset_and_is_called_in_what_is_painted():
    for kind_run in train_kinds.KIND_RUNS:
        words = kind_run.command(Path("out"))
        if kind_run.is_trained:
            assert Plan.preset(kind_run.kind, "tiny", words[words.index("--for") + 1]).steps
        by_name = kind_run.kind == "embedding" or kind_run.is_of_subject
        assert all((kind_run.overlay_name in prompt) == by_name for prompt in kind_run.prompts)
    assert len({kind_run.name for kind_run in train_kinds.KIND_RUNS}) == len(train_kinds.KIND_RUNS)


@pytest.fixture
def brief(monkeypatch):
    words = ("--steps", "1", "--batch", "1", "--pixels", "32", "--set", "validation_pictures=1")
    monkeypatch.setattr(train_kinds, "KIND_RUNS", (train_kinds.KindRun("brief", "embedding", "neon", words),))
    monkeypatch.setattr(train_kinds, "STRENGTHS", (1.0,))
    monkeypatch.setattr(train_kinds, "SCENES", ("a house",))


@pytest.mark.usefixtures("brief")
def test_a_run_is_trained_once_painted_and_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_kinds", str(tmp_path / "work"), "--images", str(tmp_path)])
    train_kinds.main()
    trained = capsys.readouterr().out
    assert "velatura generate" in trained
    assert trained.splitlines()[-1].startswith("| brief | ")
    with Image.open(tmp_path / "kinds-brief.webp") as sheet:
        assert sheet.width > train_kinds.PICTURE_PIXELS
    monkeypatch.setattr("sys.argv", ["train_kinds", str(tmp_path / "work"), "--table"])
    train_kinds.main()
    seen = capsys.readouterr().out
    assert "velatura generate" not in seen
    assert "| brief | 1 of 1 | " in seen


@pytest.mark.usefixtures("brief")
def test_what_the_judge_sees_is_kept(tmp_path):
    (kind_run,) = train_kinds.KIND_RUNS
    train_kinds.train(kind_run, tmp_path)
    seen = train_kinds.judge(kind_run, tmp_path, count=1)
    assert list(seen) == ["learned", "subject", "place", "colour", "score"]
    kind_run.file(tmp_path).unlink()
    assert train_kinds.judge(kind_run, tmp_path) == seen


@pytest.mark.usefixtures("brief")
def test_pictures_of_other_sampling_steps_are_judged_apart(tmp_path, monkeypatch, capsys):
    asked = []

    def judge(*_args, strength, steps, **_options):
        asked.append((strength, steps))
        return {"learned": 0.5, "subject": 0.5, "place": 0.5, "score": steps / 100}

    monkeypatch.setattr(train_kinds, "judge_overlay", judge)
    monkeypatch.setattr(train_kinds, "draw", lambda *_: None)
    results, page = tmp_path / "kinds.json", tmp_path / "overlays.md"
    page.write_text("<!-- table: kinds --><!-- end -->")
    monkeypatch.setattr(train_kinds, "PAGE", page)
    monkeypatch.setattr(train_kinds.keep_shares, "__defaults__", (results, None))
    monkeypatch.setattr(train_kinds.read_shares, "__defaults__", (results,))
    for words in ([], ["--sampling-steps", "20"]):
        monkeypatch.setattr("sys.argv", ["train_kinds", str(tmp_path / "work"), "--judge", *words])
        train_kinds.main()
    assert asked == [(1.0, 8), (1.0, 20)]
    assert "'score': 0.2" in capsys.readouterr().out
    assert train_kinds.read_shares()["brief"]["0"]["score"] == 0.08  # of the table's pictures


def test_an_aesthetic_is_looked_at_and_has_no_losses(tmp_path):
    (kind_run,) = (each for each in train_kinds.KIND_RUNS if not each.is_trained)
    figures = train_kinds.train(kind_run, tmp_path)
    assert figures["bytes"] == kind_run.file(tmp_path).stat().st_size
    assert train_kinds.table_row(kind_run, figures).startswith("| aesthetic-style | none | ")


def test_what_the_judge_saw_with_several_seeds_is_a_table(tmp_path):
    style, *_ = [kind_run for kind_run in train_kinds.KIND_RUNS if kind_run.name == "lora-style"]
    file = tmp_path / "kinds.json"
    for seed, share in enumerate((0.25, 0.5, 0.75)):
        kind_run = replace(style, seed=seed)
        train_kinds.keep_shares(kind_run, {"learned": share, "subject": 1.0, "place": 1.0, "score": share}, file)
        at_preferred = {"strength": 0.75 + share, "learned": 0.25}
        train_kinds.keep_shares(kind_run, at_preferred, file, kind_run.name + train_kinds.AT_PREFERRED)
    ones = "1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00)"
    rows = [
        f"| lora, style | 1 | 3 | 0.50 (0.25 to 0.75) | {ones} | 0.50 (0.25 to 0.75) |  |",
        "| lora, style | 1.25 (1.00 to 1.50) | 3 | 0.25 (0.25 to 0.25) |  |  |  |  |",
    ]
    assert train_kinds.shares_table(train_kinds.read_shares(file)).splitlines()[2:] == rows


def test_the_strength_that_a_training_recommends_is_read_from_beside_its_overlay(tmp_path):
    style = train_kinds.KIND_RUNS[0]
    write_sidecar(style.file(tmp_path), 0.85, "a note")
    assert train_kinds.preferred_strength(style, tmp_path) == 0.85


def test_seeds_are_runs_of_their_own():
    style = train_kinds.KIND_RUNS[0]
    runs = [replace(style, seed=seed) for seed in (0, 1)]
    assert len({kind_run.file(Path("work")) for kind_run in runs}) == 2
    for kind_run in runs:
        words = kind_run.command(Path("work"))
        assert words[words.index("--seed") + 1] == str(kind_run.seed)


def test_the_page_shows_what_is_kept():
    text = train_kinds.PAGE.read_text("utf-8")
    assert "<!-- table: kinds -->" in text
    assert train_kinds.fill_table(text, train_kinds.read_shares()) == text
