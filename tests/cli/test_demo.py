"""The verb `demo`: all of it lies in one folder that was not there before."""

import re

import pytest
from PIL import Image

import velatura
from velatura.cli import demo
from velatura.cli.app import main
from velatura.cli.demo import SCENES, STRENGTHS, _free_path


def test_a_second_demo_leaves_the_first_alone(tmp_path):
    assert _free_path(tmp_path / "demo").name == "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert _free_path(tmp_path / "demo").name == "demo-3"


def test_a_base_that_is_not_what_it_was_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_is_as_on_disk", lambda _: False)
    monkeypatch.setattr(demo, "SCENES", SCENES[:1])
    monkeypatch.setattr(demo, "STRENGTHS", (0, 1))
    with pytest.raises(RuntimeError, match="the base is not what its files hold"):
        main(["demo", "--steps", "1", "--out", str(tmp_path / "demo")])


def test_a_short_demo_paints_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SCENES", SCENES[:1])
    monkeypatch.setattr(demo, "STRENGTHS", (0, 1))
    assert main(["demo", "--steps", "2", "--out", str(tmp_path / "demo")]) == 0
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"neon.safetensors", "grid.png", "index.html"}
    assert "bit for bit" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_trains_paints_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--steps", "2"]) == 0
    made = tmp_path / "runs" / "demo"
    assert {path.name for path in made.iterdir()} >= {
        *("neon.safetensors", "neon.pt", "grid.png", "index.html", "plan.json", "log.jsonl")
    }
    assert velatura.open_overlay(made / "neon.pt").card.steps == 2
    with Image.open(made / "grid.png") as grid:
        assert grid.width > 64 * len(STRENGTHS)
        assert grid.height > 64 * len(SCENES)
    page = (made / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    said = capsys.readouterr().out
    assert "runs/demo/index.html" in said
    assert "Try next" in said
    assert said.rstrip().endswith("or try it in the browser: velatura serve")
