"""What an overlay does to the tiny base is counted at four strengths, in a work folder that need not be there."""

import json

import torch

import velatura
from tools.drawing.paint import paint
from tools.tiny_base import measure
from tools.tiny_base.data import unseen_scene
from tools.tiny_base.judge import picture_bytes


def test_shares_of_style_and_subject_are_those_of_the_drawings(tiny, tmp_path, monkeypatch):
    file, work = tmp_path / "neon.safetensors", tmp_path / "runs" / "tiny"
    velatura.save(velatura.Hypernetwork.for_base(tiny, init="xavier_normal", name="neon"), file)
    drawings = torch.stack([picture_bytes(paint(unseen_scene(50_000_000 + i))) for i in range(8)])
    monkeypatch.setattr(measure, "_generated", lambda *_: drawings)
    table = measure.overlay_table(work, file, "neon", count=8)
    assert list(table) == ["0.0", "0.5", "1.0", "1.5"]
    assert all(shares == {"neon": 0.0, "subject": 1.0} for shares in table.values())
    assert json.loads((work / "notes.json").read_text())["overlay neon"] == table
    assert (work / "neon-1.0.png").exists()
