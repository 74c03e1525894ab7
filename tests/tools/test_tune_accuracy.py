"""The tool that asks a classifier and `velatura.tune` for the best strength: what it compares, and what it repeats."""

import json

import pytest
import torch

import velatura
from tools import tune_accuracy
from tools.drawing.scene import SUBJECTS
from tools.tiny_base.data import LABELS, unseen_scene
from tools.tune_accuracy import Curve, Finding, StyleRun, judged_strength, table_row, trained_file
from velatura.training.plan import Plan

RUN = StyleRun("brief", "hypernet", "neon", 2, "1e-3")
POINTS = [[0.0, 0.0, 1.0], [1.0, 0.8, 0.5], [1.6, 1.0, 0.0]]


def curve(strength, points=POINTS):
    return Curve(strength, strength - 0.1, strength + 0.1, points)


def test_every_run_has_a_name_pictures_and_a_plan_of_its_kind():
    assert len({run.name for run in tune_accuracy.RUNS}) == len(tune_accuracy.RUNS) == 10
    for run in tune_accuracy.RUNS:
        assert velatura.tiny_pictures(run.pictures).is_dir()
        assert run.pictures in LABELS["style"]
        plan = Plan.preset(run.kind, "tiny").replace(steps=run.steps, learning_rate=run.rate, warmup=0)
        assert not plan.rates().warnings  # no part is left out, and none ends the training early


def test_the_score_between_painted_strengths_is_that_of_straight_lines():
    assert curve(1.0).score_at(1.0) == pytest.approx(0.8 * 0.5)
    assert curve(1.0).score_at(0.5) == pytest.approx(0.4 * 0.75)  # halfway from (0, 1) to (0.8, 0.5)
    assert curve(1.0).score_at(1.3) == pytest.approx(0.9 * 0.25)


@pytest.mark.parametrize(("tuned", "is_near"), [(1.0, True), (1.15, True), (0.85, True), (1.16, False), (0.84, False)])
def test_strengths_up_to_015_apart_are_near(tuned, is_near):
    finding = Finding("ink", curve(1.0), curve(tuned))
    assert finding.is_near == is_near
    assert ("| yes |" in table_row(finding)) == is_near


def test_a_row_says_which_share_of_the_best_score_the_other_strength_reaches():
    # s (0.8 - 0.4 s) up to strength 1 is 0.8 s - 0.4 s ** 2, highest at its end with 0.4
    finding = Finding("ink", curve(1.0), curve(0.5))
    assert finding.share_of_best == pytest.approx(0.3 / 0.4, abs=0.01)
    assert table_row(finding) == "| ink | 1.00 (0.90 to 1.10) | 0.50 (0.40 to 0.60) | no | 0.75 |"


def test_a_classifier_that_sees_nothing_has_no_best_score_to_fall_short_of():
    nothing = curve(0.0, [[0.0, 0.0, 1.0], [1.6, 0.0, 1.0]])
    assert Finding("ink", nothing, curve(1.0)).share_of_best == 1


class PlantedJudge:
    """Is the surer of the style and the less sure of the subject the more often it is asked, as strengths rise."""

    def __init__(self, style, in_style, right_subject, scenes):
        self.style, self.shares, self.scenes = style, list(zip(in_style, right_subject, strict=True)), scenes

    def __call__(self, pictures):
        assert pictures.shape == (len(self.scenes), 3, 64, 64)
        in_style, right = self.shares.pop(0)
        logits = {field: torch.zeros(len(self.scenes), len(LABELS[field])) for field in LABELS}
        logits["style"][:] = self._logits(in_style, LABELS["style"].index(self.style), len(LABELS["style"]))
        for row, scene in enumerate(self.scenes):
            index = LABELS["subject"].index(scene.subject)
            logits["subject"][row] = self._logits(right, index, len(LABELS["subject"]))
        return logits

    def _logits(self, share, index, count):
        probabilities = torch.full((count,), (1 - share) / (count - 1))
        probabilities[index] = share
        return probabilities.log()


def test_the_classifiers_strength_is_where_style_and_own_subject_are_both_most_probable(
    tiny, hyper, tmp_path, monkeypatch
):
    monkeypatch.setattr(tune_accuracy, "STRENGTHS", (0.0, 0.5, 1.0, 1.5))
    monkeypatch.setattr(tune_accuracy, "PROMPT_COUNT", 2)
    monkeypatch.setattr(tune_accuracy, "SAMPLING_STEPS", 1)
    painted, attach = [], velatura.attach
    monkeypatch.setattr(velatura, "attach", lambda base, overlay, s: painted.append(s) or attach(base, overlay, s))
    velatura.save(hyper(), tmp_path / "ink.safetensors")
    scenes = [unseen_scene(tune_accuracy.FIRST_SCENE + number) for number in range(2)]
    assert {scene.subject for scene in scenes} <= set(SUBJECTS)
    judge = PlantedJudge("neon", (0.01, 0.4, 0.8, 0.85), (0.99, 0.95, 0.9, 0.3), scenes)
    found = judged_strength(tiny, RUN, tmp_path / "ink.safetensors", judge)
    assert painted == [0.0, 0.5, 1.0, 1.5]
    assert [point.likeness for point in found.points] == pytest.approx([0.01, 0.4, 0.8, 0.85])
    assert [point.kept for point in found.points] == pytest.approx([0.99, 0.95, 0.9, 0.3])
    assert [point.score for point in found.points] == pytest.approx([0.0099, 0.38, 0.72, 0.255])
    assert 0.8 < found.strength < 1.1


def test_what_is_trained_and_asked_already_is_not_done_again(tiny, tmp_path, monkeypatch, capsys):
    asked = []

    def ask(answer):
        return lambda *_, **__: asked.append(answer) or curve(answer)

    monkeypatch.setattr(tune_accuracy, "RUNS", (RUN, StyleRun("other", "lora", "blueprint", 2, "1e-3")))
    monkeypatch.setattr(tune_accuracy, "BATCH_SIZE", 1)
    monkeypatch.setattr(tune_accuracy, "judged_strength", ask(1.0))
    monkeypatch.setattr(velatura, "tune", ask(1.4))
    monkeypatch.setattr(Curve, "of", lambda found: found)
    tune_accuracy.main([str(tmp_path), "--only", "brief"], lambda: tiny)
    table = capsys.readouterr().out
    assert table.splitlines()[2:] == [
        "| brief | 1.00 (0.90 to 1.10) | 1.40 (1.30 to 1.50) | no | 0.39 |"
    ]  # 14/15 times 1/6, over 0.4
    assert asked == [1.4, 1.0]
    assert len(velatura.open_overlay(trained_file(tiny, RUN, tmp_path)).state_dict()) > 0
    assert json.loads((tmp_path / "brief.json").read_text())[0] == "brief"
    monkeypatch.setattr(velatura, "train", None)  # would fail if it were called
    tune_accuracy.main([str(tmp_path), "--only", "brief"], lambda: tiny)
    assert capsys.readouterr().out == table
    assert len(asked) == 2
    (tmp_path / "brief.json").unlink()
    tune_accuracy.main([str(tmp_path), "--only", "brief"], lambda: tiny)
    assert len(asked) == 4  # asked again, of the overlay that is there
