"""One trial of a study: an overlay of one kind, trained from one seed, and judged at its best strength."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from PIL import Image

from velatura.base.base import Base
from velatura.compare import metrics
from velatura.compare.likeness import MIN_REFERENCES
from velatura.compare.picture_features import PictureEncoder, PictureFeatures
from velatura.compare.picture_sets import read_picture_set
from velatura.compare.tune import STEPS, STRENGTHS, TINY_STEPS, StrengthPainter, kept_share, tune_with
from velatura.compare.tune_prompts import TunePrompt, other_prompts, tune_prompts
from velatura.datasets.templates import NAME_PLACEHOLDER
from velatura.errors import NoEffect
from velatura.formats.open import open_overlay
from velatura.formats.save import save
from velatura.overlays.difference import Difference
from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.studies.candidates import preset_for_steps
from velatura.studies.overlay_arguments import ARGUMENTS
from velatura.studies.results import UNTRAINED_KINDS, Curve, Trial
from velatura.studies.together import OtherFile, OtherOverlay, measure_together, paint_other
from velatura.training.estimate import estimate
from velatura.training.kinds.aesthetic import aesthetic_from
from velatura.training.plan import Plan
from velatura.training.run.report import OnStage, Stage, Step
from velatura.training.run.summary import is_run_folder, read_run
from velatura.training.run.verdict import command_line
from velatura.training.train import resume, train

MAKERS: dict[str, Callable[..., Overlay]] = {
    "embedding": Embedding.for_base,
    "hypernet": Hypernetwork.for_base,
    "lora": Lora.for_base,
    "dreambooth": Difference.for_base,
}
KINDS = (*MAKERS, "aesthetic")
SEEDLESS_KINDS = frozenset({"dreambooth"})  # begin at zero, so that a seed only draws the steps
MIN_STEPS = 2
DIVERSITY_SEEDS = 4
NO_CURVE = Curve(strengths=(0.0, 1.0), likeness=(0.0, 0.0), kept=(1.0, 1.0))


class BasePictures(NamedTuple):
    """Features of pictures that the base alone painted, and the seconds that the painting took."""

    features: PictureFeatures
    seconds: float


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a study share.

    Attributes:
        base: The base.
        folder: The folder of the study.
        data: The folder of the training pictures.
        held_out: The pictures that no trial is trained on.
        held_out_folder: Their folder.
        captions: The captions of the training pictures.
        name: What every overlay is called.
        purpose: "style" or "subject", which presets are taken.
        encoder: Looks at pictures.
        base_argument: The base, as --base takes it.
        other: An overlay that is attached beside each trial, to see what is left of both; None for none.
        base_pictures: What the base alone painted of prompts; filled by the first trial. For a large base the features
            of a picture take about 10 MB, and a study keeps at most 36 pictures, those of another overlay
            included.
        other_pictures: Features of what it painted of prompts with the other overlay alone; filled by the first trial.
    """

    base: Base
    folder: Path
    data: Path
    held_out: Sequence[Image.Image]
    held_out_folder: Path
    captions: Sequence[str]
    name: str
    purpose: str
    encoder: PictureEncoder
    base_argument: str
    other: OtherOverlay | None = None
    base_pictures: dict[tuple[str, ...], BasePictures] = field(default_factory=dict[tuple[str, ...], BasePictures])
    other_pictures: dict[tuple[str, ...], PictureFeatures] = field(
        default_factory=dict[tuple[str, ...], PictureFeatures]
    )

    def plan(self, kind: str, steps: int | None = None, seed: int = 0) -> Plan:
        """Return the preset of a kind, its rate fitted to the steps; None: the preset's own steps."""
        family = self.base.family.name
        planned = Plan.preset(kind, family, self.purpose).rates().end
        steps = planned if steps is None else max(MIN_STEPS, min(steps, planned))
        fields = {"validation_folder": str(self.held_out_folder), "end_sheet": False, "tune": False}
        return preset_for_steps(kind, family, self.purpose, steps, seed=seed, snapshot_every=0, **fields)

    def overlay(self, kind: str, seed: int) -> Overlay:
        """Return a new overlay of a kind, as `velatura train` makes it, or for an aesthetic the finished one."""
        if kind in UNTRAINED_KINDS:
            return aesthetic_from(self.base, self.data, name=self.name)
        options: dict[str, Any] = ARGUMENTS[kind]().model_dump()
        options |= {} if kind in SEEDLESS_KINDS else {"seed": seed}
        return MAKERS[kind](self.base, name=self.name, **options)

    def references(self) -> Sequence[Image.Image]:
        """Return the pictures that likeness is measured against.

        They are those that no trial is trained on; if these are fewer than MIN_REFERENCES, which do not tell how much
        such pictures differ, then all pictures.
        """
        if len(self.held_out) >= MIN_REFERENCES:
            return self.held_out
        return [*read_picture_set(self.data).images, *self.held_out]

    def step_seconds(self, kind: str) -> float:
        """Measure how long a training step of a kind takes."""
        plan = self.plan(kind)
        return estimate(self.base, self.overlay(kind, 0), plan).seconds / plan.rates().end


class StudyJob(NamedTuple):
    """A trial of a study with all that another process needs to run it.

    Attributes:
        folder, data, held_out_folder, captions, name, purpose, base_argument: As `TrialSetup` has them.
        clip, dino: Folders of the models that look at pictures, None for the base's.
        other: The file of an overlay that is attached beside each trial, None for none.
        kind, seed, steps: The trial.
    """

    folder: Path
    data: Path
    held_out_folder: Path
    captions: Sequence[str]
    name: str
    purpose: str
    base_argument: str
    clip: Path | None
    dino: Path | None
    other: OtherFile | None
    kind: str
    seed: int
    steps: int


def run_study_job(base: Base, job: StudyJob) -> Trial:
    """Run a trial in a process that has nothing but the base."""
    setup = TrialSetup(
        base,
        job.folder,
        job.data,
        read_picture_set(job.held_out_folder).images,
        job.held_out_folder,
        job.captions,
        job.name,
        job.purpose,
        PictureEncoder.open(base, clip=job.clip, dino=job.dino),
        job.base_argument,
        job.other and OtherOverlay.open(base, job.other),
    )
    return run_trial(setup, job.kind, job.seed, job.steps)


def run_trial(setup: TrialSetup, kind: str, seed: int, steps: int, on_stage: OnStage | None = None) -> Trial:
    """Train an overlay, or go on where it was interrupted, and judge it.

    Args:
        setup: What all trials share.
        kind: The kind of overlay.
        seed: The seed of its training.
        steps: The steps of its training.
        on_stage: Called after each training step, and after each strength that is painted.

    Returns:
        The overlay's file with its figures.
    """
    folder = setup.folder / "trials" / f"{kind}-{seed}"
    if kind in UNTRAINED_KINDS:
        file, start = folder / f"{setup.name}.safetensors", time.perf_counter()
        overlay = setup.overlay(kind, seed)
        folder.mkdir(parents=True, exist_ok=True)
        save(overlay, file)
        seconds, taken = time.perf_counter() - start, 0
    else:
        overlay, file = _train(setup, folder, setup.plan(kind, steps, seed), kind, on_stage)
        summary = read_run(folder)
        seconds, taken = summary.seconds, summary.steps
    figures, curve = judge(setup, overlay, kind, on_stage)
    figures |= {"training_seconds": seconds, "bytes": float(file.stat().st_size)}
    return Trial(
        kind=kind,
        seed=seed,
        file=file.relative_to(setup.folder).as_posix(),
        steps=taken,
        command=_command(setup, kind, seed, taken),
        figures=figures,
        curve=curve,
    )


def _train(setup: TrialSetup, folder: Path, plan: Plan, kind: str, on_stage: OnStage | None) -> tuple[Overlay, Path]:
    def on_step(step: Step) -> None:
        if on_stage:
            on_stage(Stage("training", step.done, step.total))

    summary = read_run(folder) if is_run_folder(folder) else None
    if summary is not None and summary.overlay is not None:
        return open_overlay(summary.overlay), summary.overlay
    if summary is not None:
        run = resume(setup.base, folder, on_step=on_step)
    else:
        run = train(setup.base, setup.overlay(kind, plan.seed), setup.data, plan, out=folder, on_step=on_step)
    return run.overlay, run.file


def judge(
    setup: TrialSetup, overlay: Overlay, kind: str, on_stage: OnStage | None = None
) -> tuple[dict[str, float], Curve]:
    """Find the best strength of an overlay, and measure it there; nothing of it is measured if it has no effect.

    Args:
        setup: What all trials share.
        overlay: The overlay.
        kind: Its kind.
        on_stage: Called after each strength that is painted.

    Returns:
        The figures by their names, and the curve over the strengths.
    """

    def report(done: int, total: int) -> None:
        if on_stage:
            on_stage(Stage("painting strengths", done, total))

    words = called_by(setup, kind)
    prompts = tune_prompts(overlay, setup.captions, is_tiny=setup.base.family.name == "tiny", called_by=words)
    try:
        tuning = tune_with(
            setup.encoder,
            overlay,
            pictures=setup.references(),
            prompts=[prompt.text for prompt in prompts],
            strengths=STRENGTHS,
            steps=sampling_steps(setup.base),
            called_by=words,
            on_strength=report,
        )
    except NoEffect:
        return {"score": 0.0, "likeness": 0.0, "kept": 1.0, "strength": 0.0}, NO_CURVE
    top = max(tuning.points, key=lambda point: point.score)
    figures = {"score": top.score, "likeness": top.likeness, "kept": top.kept, "strength": tuning.strength}
    figures |= _measure(setup, overlay, prompts, tuning.strength)
    curve = Curve(
        strengths=tuple(point.strength for point in tuning.points),
        likeness=tuple(point.likeness for point in tuning.points),
        kept=tuple(point.kept for point in tuning.points),
    )
    return figures, curve


def painter(setup: TrialSetup, overlay: Overlay, prompts: Sequence[TunePrompt], *, seeds: int = 1) -> StrengthPainter:
    """Return what paints prompts with an overlay, as `tune` does."""
    return StrengthPainter(setup.base, overlay, prompts, seeds, sampling_steps(setup.base))


def sampling_steps(base: Base) -> int:
    """Return the sampling steps of all pictures of a study."""
    return TINY_STEPS if base.family.name == "tiny" else STEPS


def _measure(setup: TrialSetup, overlay: Overlay, prompts: Sequence[TunePrompt], strength: float) -> dict[str, float]:
    encoder, references = setup.encoder, setup.encoder.features(setup.held_out)
    called, texts = painter(setup, overlay, prompts), tuple(prompt.text for prompt in prompts)
    originals, base_seconds = _base_pictures(setup, called)
    images, seconds = _timed(called, strength)
    pictures = encoder.features(images)
    figures = {
        "style_distance": _mean(metrics.style_distance(pictures, references)),
        "picture_seconds": max(0.0, seconds - base_seconds) / len(images),
    }
    if pictures.clip is not None and references.clip is not None and encoder.clip is not None:
        text_embeddings = encoder.clip.encode_texts(list(texts))
        figures["image_similarity"] = _mean(metrics.image_similarity(pictures.clip, references.clip))
        figures["text_similarity"] = _mean(metrics.text_similarity(pictures.clip, text_embeddings))
    if pictures.dino is not None and references.dino is not None:
        figures["dino"] = _mean(metrics.image_similarity(pictures.dino, references.dino))
    if setup.purpose == "subject":
        figures |= _measure_others(setup, overlay, strength)
    else:  # the prompts have nothing to do with a style
        uncalled = [TunePrompt(text, text) for text in texts]
        unasked = pictures
        if uncalled != list(prompts):
            unasked = encoder.features(painter(setup, overlay, uncalled).paint(strength))
        figures["base_change"] = _mean(metrics.change(unasked, originals))
    if setup.other is not None:
        figures |= measure_together(
            encoder,
            overlay,
            setup.other,
            prompts=prompts,
            strength=strength,
            steps=sampling_steps(setup.base),
            base_pictures=originals,
            own_pictures=pictures,
            other_pictures=_other_pictures(setup, setup.other, prompts),
            references=setup.references(),
        )
    several = painter(setup, overlay, prompts[:1], seeds=DIVERSITY_SEEDS).paint(strength)
    figures["diversity"] = _mean(metrics.diversity(encoder.features(several)))
    return figures


def _measure_others(setup: TrialSetup, overlay: Overlay, strength: float) -> dict[str, float]:
    """Measure pictures of other things than the subject: how far they change, and how far each is still itself."""
    changes: list[float] = []
    shares: list[float] = []
    for texts in other_prompts(setup.captions, is_tiny=setup.base.family.name == "tiny"):
        paints = painter(setup, overlay, [TunePrompt(text, text) for text in texts])
        originals = _base_pictures(setup, paints).features
        changed = setup.encoder.features(paints.paint(strength))
        changes.append(_mean(metrics.change(changed, originals)))
        shares.append(_mean(kept_share([originals, changed], texts)[1]))
    return {"base_change": fmean(changes), "others_kept": fmean(shares)}


def _base_pictures(setup: TrialSetup, paints: StrengthPainter) -> BasePictures:
    """Return what the base paints of the prompts, painted and encoded once for all trials.

    `tune_with` does not use it, and paints the base by itself.
    """
    texts = tuple(prompt.text for prompt in paints.prompts)
    if texts not in setup.base_pictures:
        images, seconds = _timed(paints, 0.0)
        setup.base_pictures[texts] = BasePictures(setup.encoder.features(images), seconds)
    return setup.base_pictures[texts]


def _other_pictures(setup: TrialSetup, other: OtherOverlay, prompts: Sequence[TunePrompt]) -> PictureFeatures:
    """Return the features of what the other overlay alone paints of the prompts, painted once for all trials."""
    texts = tuple(prompt.text for prompt in prompts)
    if texts not in setup.other_pictures:
        setup.other_pictures[texts] = paint_other(setup.encoder, other, prompts, sampling_steps(setup.base))
    return setup.other_pictures[texts]


def _timed(paints: StrengthPainter, strength: float) -> tuple[list[Image.Image], float]:
    start = time.perf_counter()
    images = paints.paint(strength)
    return images, time.perf_counter() - start


def called_by(setup: TrialSetup, kind: str) -> str:
    """Return the name of the overlays if the captions of this kind's training had it, else ""."""
    if kind in UNTRAINED_KINDS:
        return ""
    lines = setup.plan(kind).caption_template(setup.name).lines
    return setup.name if any(NAME_PLACEHOLDER in line for line in lines) else ""


def _command(setup: TrialSetup, kind: str, seed: int, steps: int) -> str:
    words: list[str | Path] = ["velatura", "train", kind, setup.data, "--name", setup.name]
    if setup.base_argument != "tiny":
        words += ["--base", setup.base_argument]
    if kind not in UNTRAINED_KINDS:
        rate = setup.plan(kind, steps).learning_rate
        words += ["--for", setup.purpose, "--steps", f"{steps}", "--rate", rate, "--seed", f"{seed}"]
    return command_line(*words)


def _mean(values: torch.Tensor) -> float:
    return float(values.mean())
