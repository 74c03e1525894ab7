"""Results of a study: figures of every trial, their means over seeds, and the kind that they recommend."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from statistics import fmean, stdev
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

STUDY_RESULTS_NAME, REPORT_NAME = "study.json", "index.html"  # in the folder of a study; a sweep has a report too
UNTRAINED_KINDS = frozenset({"aesthetic"})  # made at once, the same from every seed

MIN_MEAN_SCORE = 0.02  # of the best kind; below, none has learned anything that shows
MIN_OTHERS_KEPT = 0.7  # below, many other things turn into the subject or into nothing

# What each figure says, in the order of the table
FIGURES = {
    "score": "likeness times the sixth root of prompt kept, at the painted strength nearest to the best",
    "likeness": "share of the way from the base's pictures to the held-out ones",
    "kept": "share of the prompt that is kept",
    "style_distance": "difference of Gram matrices from the held-out pictures; lower is nearer",
    "image_similarity": "CLIP's mean cosine with the held-out pictures",
    "dino": "DINO's mean cosine with the held-out pictures",
    "text_similarity": "CLIP's cosine of pictures with prompts that the data does not hold",
    "base_change": "change of other prompts, which do not call it, place by place; lower keeps the base",
    "others_kept": "share of other things that an overlay of a subject keeps",
    "diversity": "mean difference between pictures of one prompt",
    "together": "score where the other overlay is attached too",
    "other_left": "share of the other overlay's change of pictures that is left where both are attached",
    "strength": "the best strength",
    "training_seconds": "seconds of training",
    "picture_seconds": "seconds that a picture takes longer",
    "bytes": "size of the file",
}


def _check_inner_path(path: str) -> str:
    """Refuse a path that leads out of the folder of a study, as a file of somebody else may hold."""
    if ".." in PurePosixPath(path).parts or path.startswith("/") or "\\" in path or ":" in path:
        raise ValueError("should be a path inside the folder of the study")
    return path


InnerPath = Annotated[str, AfterValidator(_check_inner_path)]


class Curve(BaseModel):
    """Likeness and prompt kept by strength, of one trial."""

    model_config = ConfigDict(frozen=True)

    strengths: tuple[float, ...]
    likeness: tuple[float, ...]
    kept: tuple[float, ...]


class Trial(BaseModel):
    """One trained overlay with its figures.

    Attributes:
        kind: The kind of overlay.
        seed: The seed of its training.
        file: The overlay's file, as a path from the folder of the study.
        steps: The steps that it took.
        command: The command that trains it so.
        figures: The figures by their names, those that could be measured.
        curve: Its curve over the strengths.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    seed: int
    file: InnerPath
    steps: int
    command: str
    figures: dict[str, float]
    curve: Curve


class Spread(BaseModel):
    """Mean and standard deviation over seeds; the deviation is None for a single seed."""

    model_config = ConfigDict(frozen=True)

    mean: float
    deviation: float | None


class StudyResults(BaseModel):
    """All trials of a study.

    Attributes:
        pictures: The folder of the pictures.
        base: The name of the base.
        budget: The budget in words.
        training_pictures, held_out_pictures: Their numbers.
        trials: The trials, kind after kind.
        together: The file and the strength of another overlay that was attached too, as "ink.pt at 0.6"; None for none.
    """

    model_config = ConfigDict(frozen=True)

    pictures: str
    base: str
    budget: str
    training_pictures: int
    held_out_pictures: int
    trials: tuple[Trial, ...]
    together: str | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds, the best score first."""
        kinds = dict.fromkeys(trial.kind for trial in self.trials)
        return sorted(kinds, key=lambda kind: -self.spread(kind, "score").mean)

    def of_kind(self, kind: str) -> list[Trial]:
        """Return the trials of a kind."""
        return [trial for trial in self.trials if trial.kind == kind]

    def spread(self, kind: str, figure: str) -> Spread:
        """Return the mean of a figure over the seeds of a kind, with its deviation; NaN if it was not measured."""
        values = [trial.figures[figure] for trial in self.of_kind(kind) if figure in trial.figures]
        if not values:
            return Spread(mean=math.nan, deviation=None)
        return Spread(mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None)

    def measured_figures(self) -> list[str]:
        """Return the names of the figures that at least one trial has, in the order of the table."""
        return [name for name in FIGURES if any(name in trial.figures for trial in self.trials)]

    def ties(self) -> list[str]:
        """Return the kinds whose score is within the spread of the best one, which comes first.

        Two scores differ if their difference is more than the root of the sum of their squared standard errors times
        two. With a single seed nothing is known of the spread, so all are. A kind that is the same from every seed has
        no spread.
        """
        best, *others = self.kinds
        return [best, *(kind for kind in others if not self._differs(best, kind))]

    def may_spoil_others(self, kind: str) -> bool:
        """Return True if overlays of this kind often change other things; False if that was not measured."""
        return self.spread(kind, "others_kept").mean < MIN_OTHERS_KEPT

    def recommendation(self) -> str:
        """Say which kind to take and by which figures, and warn if it may spoil other prompts."""
        if self.spread(self.kinds[0], "score").mean < MIN_MEAN_SCORE:
            return "No kind brings pictures nearer to the held-out ones: train for more steps, or give other pictures."
        kind, sentence = self._choose()
        return sentence + self._warning(kind)

    def _choose(self) -> tuple[str, str]:
        """Return the kind to take, and a sentence that says so and why."""
        tied = self.ties()
        best = tied[0]
        reason = f"{self.describe(best, 'score')} of 1 for likeness times the sixth root of prompt kept"
        strength = fmean(strength for trial in self.of_kind(best) if (strength := trial.figures["strength"]) > 0)
        if len(tied) == 1 and len(self.kinds) > 1:
            second = self.kinds[1]
            return best, (
                f"Take {_article(best)} at strength {strength:.2g}: it reaches {reason}, the next one, {second}, "
                f"{self.describe(second, 'score')}."
            )
        if len(tied) == 1:
            return best, f"{_article(best).capitalize()} reaches {reason}, at strength {strength:.2g}."
        if max(len(self.of_kind(kind)) for kind in tied) < 2:
            return best, (
                f"{best.capitalize()} reaches the most, {reason}, but one seed does not tell whether that is chance: "
                "give --seeds 3."
            )
        careful = [kind for kind in tied if not self.may_spoil_others(kind)] or tied
        chosen = min(careful, key=lambda kind: self.spread(kind, "training_seconds").mean)
        why = "trains fastest" if careful == tied else "keeps other prompts"
        return chosen, (
            f"{', '.join(tied).capitalize()} do not differ by more than their spread over seeds "
            f"({self.describe(best, 'score')} and {self.describe(tied[-1], 'score')}): take {_article(chosen)}, "
            f"which {why}."
        )

    def _warning(self, kind: str) -> str:
        """Return a sentence about other prompts if a kind may spoil them, else nothing."""
        if not self.may_spoil_others(kind):
            return ""
        kept = self.describe(kind, "others_kept")
        return f" {kind.capitalize()} may spoil other prompts: {kept} of other things are kept."

    def describe(self, kind: str, figure: str) -> str:
        """Return a figure of a kind in words, as "0.61 ± 0.03"."""
        spread = self.spread(kind, figure)
        if math.isnan(spread.mean):
            return ""
        if figure == "bytes":
            return f"{spread.mean / 1e3:,.0f} kB"
        digits = 1 if figure == "training_seconds" else 2
        deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
        return f"{spread.mean:.{digits}f}{deviation}"

    def __str__(self) -> str:
        columns = ("score", "likeness", "kept", "base_change", "others_kept", "together", "other_left", "strength")
        figures = [name for name in (*columns, "training_seconds", "bytes") if name in self.measured_figures()]
        widths = [max(len(name), 14) + 2 for name in figures]
        head = f"{'':12}" + "".join(f"{name:{width}}" for name, width in zip(figures, widths, strict=True))
        rows = [
            f"{kind:12}" + "".join(f"{self.describe(kind, name):{w}}" for name, w in zip(figures, widths, strict=True))
            for kind in self.kinds
        ]
        return "\n".join([head.rstrip(), *(row.rstrip() for row in rows), self.recommendation()])

    def _differs(self, kind: str, other: str) -> bool:
        variances: list[float] = []  # of the means
        for name in (kind, other):
            deviation = 0.0 if name in UNTRAINED_KINDS else self.spread(name, "score").deviation
            if deviation is None:
                return False
            variances.append(deviation**2 / len(self.of_kind(name)))
        difference = self.spread(kind, "score").mean - self.spread(other, "score").mean
        return difference > 2 * math.sqrt(sum(variances))


def read_results(path: Path) -> StudyResults | None:
    """Read study.json, or return None if it is not there or of another version."""
    try:
        return StudyResults.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
