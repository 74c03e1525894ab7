"""The tool that trains every kind: its commands are commands, and a run leaves a sheet and a row."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tools import train_kinds
from tools.tiny_base.judge import SMALL_WIDTHS, Judge
from velatura.training.plan import Plan


def test_every_lesson_has_a_preset_and_is_called_in_what_is_painted():
    for lesson in train_kinds.KIND_RUNS:
        words = lesson.command(Path("out"))
        if lesson.is_trained:
            assert Plan.preset(lesson.kind, "tiny", words[words.index("--for") + 1]).steps
        by_name = lesson.kind == "embedding" or lesson.is_of_subject
        assert all((lesson.overlay_name in prompt) == by_name for prompt in lesson.prompts)
    assert len({lesson.name for lesson in train_kinds.KIND_RUNS}) == len(train_kinds.KIND_RUNS)


@pytest.fixture
def brief(monkeypatch):
    words = ("--steps", "1", "--batch", "1", "--pixels", "32", "--set", "validation_pictures=1")
    monkeypatch.setattr(train_kinds, "KIND_RUNS", (train_kinds.KindRun("brief", "embedding", "neon", words),))
    monkeypatch.setattr(train_kinds, "STRENGTHS", (1.0,))
    monkeypatch.setattr(train_kinds, "SCENES", ("a house",))


@pytest.mark.usefixtures("brief")
def test_a_lesson_is_trained_once_painted_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_kinds", str(tmp_path / "work"), "--images", str(tmp_path)])
    train_kinds.main()
    trained = capsys.readouterr().out
    assert "velatura generate" in trained
    assert trained.splitlines()[-1].startswith("| brief | ")
    with Image.open(tmp_path / "kinds-brief.webp") as sheet:
        assert sheet.width > train_kinds.PICTURE_PIXELS
    monkeypatch.setattr("sys.argv", ["train_kinds", str(tmp_path / "work"), "--table"])
    train_kinds.main()
    told = capsys.readouterr().out
    assert "velatura generate" not in told
    assert "| brief | 1 of 1 | " in told


@pytest.mark.usefixtures("brief")
def test_what_the_judge_sees_is_kept(tmp_path):
    (lesson,) = train_kinds.KIND_RUNS
    torch.manual_seed(0)
    torch.save({"ema": Judge(SMALL_WIDTHS).state_dict()}, tmp_path / "small-judge.pt")
    train_kinds.train(lesson, tmp_path)
    told = train_kinds.judge(lesson, tmp_path, tmp_path, count=1)
    assert [part.split()[0] for part in told.split(", ")] == ["learned", "subject", "place", "colour", "score"]
    (tmp_path / "small-judge.pt").unlink()
    assert train_kinds.judge(lesson, tmp_path, tmp_path) == told


def test_an_aesthetic_is_looked_at_and_has_no_losses(tmp_path):
    (lesson,) = (each for each in train_kinds.KIND_RUNS if not each.is_trained)
    figures = train_kinds.train(lesson, tmp_path)
    assert figures["bytes"] == lesson.file(tmp_path).stat().st_size
    assert train_kinds.table_row(lesson, figures).startswith("| aesthetic-style | none | ")
