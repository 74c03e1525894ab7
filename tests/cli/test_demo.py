"""The verb `demo`: all of it lies in one folder that was not there before."""

import re

import pytest
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.cli.demo import SCENES, STRENGTHS, _free


def test_a_second_demo_leaves_the_first_alone(tmp_path):
    assert _free(tmp_path / "demo").name == "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert _free(tmp_path / "demo").name == "demo-3"


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
