"""What is left of an overlay and of another one where both are attached, and how a study is given the other one."""

from dataclasses import replace

import pytest
import torch

import velatura
from tests.conftest import copy_four_pictures
from tests.studies.conftest import open_setup
from velatura.cli.app import main
from velatura.cli.compare.study import _find_overlay
from velatura.compare import tune_prompts
from velatura.compare.picture_features import PictureEncoder
from velatura.compare.picture_sets import read_picture_set
from velatura.compare.strength_trade import TradePoint
from velatura.compare.tune import StrengthPainter, Tuning, tune_with
from velatura.compare.tune_prompts import TunePrompt
from velatura.errors import AlreadyExists, BadFile, BadStrength, WrongBase
from velatura.library.preferred_strength import write_into_file
from velatura.studies import study, trials
from velatura.studies.together import OtherFile, OtherOverlay, effect_left, measure_together, paint_other

TEXTS = ("a red house on the beach", "a blue boat in the snow", "a black cat in a room")
PROMPTS = [TunePrompt(text, text) for text in TEXTS]


@pytest.fixture(scope="module")
def encoder(tiny):
    return PictureEncoder.open(tiny)


@pytest.fixture(scope="module")
def neon():
    return read_picture_set(velatura.tiny_pictures("neon")).images[:3]


@pytest.fixture
def measure(tiny, encoder, neon):
    """Measure an overlay, None for one that does nothing, beside another one, with pictures of two steps."""
    nothing = velatura.Lora.for_base(tiny, rank=1)
    base_pictures = encoder.features(StrengthPainter(tiny, nothing, PROMPTS, 1, 2).paint(0.0))

    def measured(overlay, other, strength=1.0):
        other = OtherOverlay(other or nothing, 0.6)
        return measure_together(
            encoder,
            overlay or nothing,
            other,
            prompts=PROMPTS,
            strength=strength,
            steps=2,
            base_pictures=base_pictures,
            own_pictures=encoder.features(StrengthPainter(tiny, overlay or nothing, PROMPTS, 1, 2).paint(strength)),
            other_pictures=paint_other(encoder, other, PROMPTS, 2),
            references=neon,
        )

    return measured


def test_all_of_the_other_overlay_is_left_beside_one_that_does_nothing(measure, hyper):
    assert measure(None, hyper())["other_left"] == pytest.approx(1, abs=1e-3)


def test_what_is_left_is_the_projection_of_one_change_on_the_other(encoder, neon):
    seen = encoder.features(neon[:1])

    def planted(value):
        return replace(seen, maps=[torch.tensor(value)[None, :, None, None]])

    base, other, own = ([0.0, 0.0], [2.0, 0.0], [0.0, 1.0])
    for both, left in (([2.0, 1.0], 1), ([0.0, 1.0], 0), ([1.0, 3.0], 0.5), ([3.0, 1.0], 1.5), ([-1.0, 1.0], -0.5)):
        assert effect_left(*map(planted, (base, other, own, both))) == pytest.approx(left)


def test_beside_an_overlay_that_does_nothing_the_score_is_that_of_tune(encoder, measure, hyper, neon):
    overlay = hyper()
    alone = tune_with(encoder, overlay, pictures=neon, prompts=TEXTS, strengths=(0.6, 0.8), steps=2)
    [point] = [point for point in alone.points if point.strength == 0.6]
    assert point.score > 0.02
    figures = measure(overlay, None, strength=0.6)
    assert list(figures) == ["together"]  # nothing of the other one can be left
    assert figures["together"] == pytest.approx(point.score, abs=1e-5)
    # nor does it matter which of both is the other one, when they are looked at
    assert measure(None, overlay)["together"] == pytest.approx(point.score, abs=1e-3)


def test_both_overlays_are_called_by_their_words(encoder, measure, hyper, embedding, monkeypatch):
    painted = []
    paint = StrengthPainter.paint
    monkeypatch.setattr(
        StrengthPainter, "paint", lambda self, strength: painted.append(self.prompts) or paint(self, strength)
    )
    measure(hyper(), embedding(name="inca-style"))
    assert [[prompt.called for prompt in prompts] for prompts in painted[-2:]] == [
        [f"{text}, inca-style" for text in TEXTS]
    ] * 2


@pytest.fixture
def brief(monkeypatch):
    """Paint few pictures, of one step, and call strength 0.5 the best."""
    monkeypatch.setattr(trials, "TINY_STEPS", 1)
    monkeypatch.setattr(trials, "DIVERSITY_SEEDS", 2)
    points = (TradePoint(0.0, 0.0, 1.0, 0.0), TradePoint(0.5, 0.4, 0.9, 0.4))
    tuning = Tuning(0.5, 0.4, 0.6, points, (), 1, "pictures")  # one step shows no effect that could be found
    monkeypatch.setattr(trials, "tune_with", lambda *_, **__: tuning)
    for name in ("TINY_PLACES", "TINY_PROMPTS"):
        monkeypatch.setattr(tune_prompts, name, getattr(tune_prompts, name)[:3])


@pytest.fixture
def photos(tmp_path):
    return copy_four_pictures("robot", tmp_path / "robots")


@pytest.mark.usefixtures("brief")
def test_a_study_measures_every_kind_with_the_other_overlay_too(tiny, photos, tmp_path, hyper, capsys):
    ink, out = tmp_path / "ink.safetensors", tmp_path / "study"
    velatura.save(hyper(name="ink"), ink)
    words = ["compare", str(photos), "--kinds", "aesthetic", "--seeds", "1", "--steps", "2", "--out", str(out)]
    assert main([*words, "--together", f"{ink}:0.6"]) == 0
    table = capsys.readouterr().out
    results = study.read_results(out / "study.json")
    [trial] = results.trials
    assert results.together == "ink.safetensors at 0.6"
    assert {"together", "other_left"} <= trial.figures.keys()
    assert trial.figures["other_left"] > 0.5  # a mean of embeddings hardly changes what the other one does
    assert all(name in table for name in ("together", "other_left"))
    page = (out / "index.html").read_text("utf-8")
    assert "<th>together<small>score where the other overlay" in page
    assert "<th>other left<small>share of the other overlay" in page
    assert "together and other left are measured with ink.safetensors at 0.6 attached too" in page
    options = {"kinds": ["aesthetic"], "seeds": 1, "steps": 2, "out": out}
    with pytest.raises(AlreadyExists, match=r"another --together \(ink.safetensors [0-9a-f]{10} at 0.6, not none\)"):
        velatura.study(tiny, photos, **options)
    with pytest.raises(AlreadyExists, match=r"at 0.6, not ink.safetensors [0-9a-f]{10} at 1\)"):
        velatura.study(tiny, photos, together=ink, **options)


def test_another_overlay_that_cannot_be_used_is_refused_before_the_first_training(tiny, xl, photos, tmp_path, hyper):
    ink, options = tmp_path / "ink.safetensors", {"kinds": ["lora"], "out": tmp_path / "study"}
    velatura.save(hyper(name="ink"), ink)
    with pytest.raises(BadStrength, match="strength 0"):
        velatura.study(tiny, photos, together=ink, together_strength=0.0, **options)
    with pytest.raises(BadFile, match="No such file"):
        velatura.study(tiny, photos, together=tmp_path / "none.safetensors", **options)
    with pytest.raises(WrongBase):
        velatura.study(xl, photos, together=ink, **options)
    assert main(["compare", str(photos), "--together", f"{ink}:0.5:0.5", "--out", str(tmp_path / "study")]) == 2
    assert main(["compare", str(photos), "--together", "nobody", "--out", str(tmp_path / "study")]) == 2
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("brief")
def test_what_is_the_same_for_all_trials_is_painted_and_encoded_once(tiny, photos, tmp_path, hyper, monkeypatch):
    other, overlays = OtherOverlay(hyper(seed=3), 0.6), [hyper(seed=seed) for seed in (1, 2)]
    painted, encoded = [], []
    paint, features = StrengthPainter.paint, PictureEncoder.features
    monkeypatch.setattr(
        StrengthPainter, "paint", lambda self, strength: painted.append(self.overlay) or paint(self, strength)
    )
    monkeypatch.setattr(PictureEncoder, "features", lambda self, images: encoded.append(1) or features(self, images))

    def measured(setup, overlay):
        figures, _ = trials.judge(setup, overlay, "hypernet")
        return figures | {"picture_seconds": 0}  # by the clock

    setup = open_setup(tiny, photos, tmp_path / "study", other=other)
    measured(setup, overlays[0])
    first_count = len(encoded)
    figures = measured(setup, overlays[1])
    assert len([overlay for overlay in painted if overlay is other.overlay]) == 1
    # the base's pictures of the prompts and of other things in two places, and those of the other overlay
    assert first_count - (len(encoded) - first_count) == 4
    assert figures == measured(open_setup(tiny, photos, tmp_path / "anew", other=other), overlays[1])
    assert {"together", "other_left"} <= figures.keys()


def test_the_other_overlay_has_strength_1_if_no_number_follows(tmp_path, hyper):
    ink, library = tmp_path / "ink.safetensors", velatura.Library(tmp_path)
    velatura.save(hyper(), ink)
    assert _find_overlay(str(ink), library) == _find_overlay("ink", library) == (ink, 1.0)
    assert _find_overlay(f"{ink}:0.6", library) == _find_overlay("ink:0.6", library) == (ink, 0.6)


@pytest.mark.usefixtures("brief")
def test_a_study_goes_on_after_the_other_overlay_was_tuned(tiny, photos, tmp_path, hyper):
    ink, options = tmp_path / "ink.safetensors", {"kinds": ["aesthetic"], "seeds": 1, "steps": 2}
    velatura.save(hyper(name="ink"), ink)
    velatura.study(tiny, photos, together=ink, out=tmp_path / "study", **options)
    before = ink.read_bytes()
    assert write_into_file(ink, 0.7, "velatura tune: 0.7")
    assert ink.read_bytes() != before
    velatura.study(tiny, photos, together=ink, out=tmp_path / "study", **options)
    velatura.save(hyper(name="ink", seed=9), ink)
    with pytest.raises(AlreadyExists, match="another --together"):
        velatura.study(tiny, photos, together=ink, out=tmp_path / "study", **options)


@pytest.mark.usefixtures("brief")
def test_the_other_overlay_may_be_an_adapter_of_peft(tiny, photos, tmp_path, lora):
    ink, options = tmp_path / "ink", {"kinds": ["aesthetic"], "seeds": 1, "steps": 2, "out": tmp_path / "study"}
    velatura.save(lora(), ink, dialect="peft")
    assert ink.is_dir()
    [trial] = velatura.study(tiny, photos, together=ink, **options).trials
    assert "together" in trial.figures
    with pytest.raises(AlreadyExists, match=r"--together \(ink( [0-9a-f]{10}){2} at 1, not ink.* at 0.5\)"):
        velatura.study(tiny, photos, together=ink, together_strength=0.5, **options)


def test_a_worker_opens_the_other_overlay(tiny, photos, tmp_path, hyper, monkeypatch):
    ink = tmp_path / "ink.safetensors"
    velatura.save(hyper(), ink)
    monkeypatch.setattr(trials, "run_trial", lambda setup, *_: setup)
    job = trials.StudyJob(
        tmp_path, photos, photos, [], "robots", "subject", "tiny", None, None, OtherFile(ink, 0.6), "lora", 0, 2
    )
    other = trials.run_study_job(tiny, job).other
    assert (other.overlay.card.name, other.strength) == ("ink", 0.6)
    assert trials.run_study_job(tiny, job._replace(other=None)).other is None
