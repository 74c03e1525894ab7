"""Verdict at the end of a run: what the losses and the effect of the overlay say, and which pictures to look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from velatura.base.open_options import OpenOptions
from velatura.errors import quantity

# Measured on the tiny base, by run/prompt_effect.py and by what pictures show: see docs/training.md
A1111_PT_KINDS = frozenset({"hypernet", "embedding"})  # a LoRA's .safetensors is read as it is
MIN_LOSS_FALL = 0.1  # share of the validation loss; less, together with
MIN_EFFECT = 0.33  # less than this share of what a prompt changes, is little learned: pictures hardly differ
MIN_PROMPT_LEFT = 0.2  # of the effect of a prompt; with less, pictures lose it
LOWER_STRENGTHS = (0.8, 0.6, 0.4, 0.2)  # tried in this order if an overlay overpowers at 1
RATE_FACTOR_IF_LITTLE = 10
DEFAULT_OPEN_OPTIONS = OpenOptions()


@dataclass(frozen=True)
class Verdict:
    """Verdict on a finished run; `str` gives it in lines.

    Losses alone do not tell a good overlay from a spoilt one: on the tiny base, a run on eight neon drawings and four
    photographs reached a validation loss of 0.196 and painted wrecks, and a run on sixteen neon drawings reached 0.183
    and painted clean pictures. So the verdict never calls a run good, and names the pictures to look at.

    Attributes:
        file: The file of the overlay.
        kind: The kind of overlay.
        steps: Steps taken.
        rate: The highest learning rate that served in the end, after the rescues.
        result_step: Step of the overlay in the file, if it is not the last one: the best one.
        patience: The number of snapshots without a lower validation loss that ended the run before its last step; 0 if
            nothing did.
        finds_rate: The optimizer (Prodigy) finds the rate by itself.
        rescues: How often the run went back to a snapshot and continued at a lower rate.
        validation_before: Validation loss of the untrained overlay, None without a validation.
        validation_after: Validation loss of the final overlay.
        best: The file of the overlay with the lowest validation loss, if there is one.
        best_step: Its step.
        best_loss: Its validation loss.
        high_noise_before: Validation loss at high noise of the untrained overlay, None without a validation.
        high_noise_after: That of the final overlay.
        effect: How much the overlay changes predictions at strength 1, as a share of what a prompt changes, see
            run/prompt_effect.py; None if it was not measured.
        prompt_left: How much of the effect of a prompt is left at strength 1.
        little_learned: The validation loss hardly fell, and the effect is small.
        overpowers: So little of the prompt is left at strength 1 that pictures may not show it.
        milder_strength: The highest lower strength, among a few, at which the overlay does not overpower.
        strength: The strength that serves best, measured at the end of the run; None if it was not measured.
        strength_note: What was measured.
        pictures: Sheets of pictures to look at.
        plot: The plot of the losses.
        sheet_command: A command that paints the overlay at several strengths, if no sheet was painted.
        a1111_file: The file for A1111's web UI, if the run wrote one.
        a1111_command: A command that writes one, for kinds that A1111 reads as .pt.
    """

    file: Path
    kind: str
    steps: int
    rate: float
    result_step: int | None = None
    patience: int = 0
    finds_rate: bool = False
    rescues: int = 0
    validation_before: float | None = None
    validation_after: float | None = None
    best: Path | None = None
    best_step: int | None = None
    best_loss: float | None = None
    high_noise_before: float | None = None
    high_noise_after: float | None = None
    effect: float | None = None
    prompt_left: float | None = None
    little_learned: bool = False
    overpowers: bool = False
    milder_strength: float | None = None
    strength: float | None = None
    strength_note: str = ""
    pictures: tuple[Path, ...] = ()
    plot: Path | None = None
    sheet_command: str = ""
    a1111_file: Path | None = None
    a1111_command: str = ""

    def __str__(self) -> str:
        return "\n".join(f"{label:21}{text}" for label, text in self._rows())

    def judgement(self) -> Iterator[tuple[str, str]]:
        """Yield what the run judges, as labels and texts: how it ended, how strong the overlay is, and what to try."""
        yield from self._end_rows()
        yield from self._effect_rows()

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield from self._end_rows()
        yield from self._loss_rows()
        yield from self._effect_rows()
        for picture in self.pictures:
            yield "look at", f"{picture}"
        if self.sheet_command:
            yield "paint and look", self.sheet_command
        if self.plot is not None:
            yield "losses", f"{self.plot}; they do not tell whether the pictures are good"
        if self.a1111_file is not None:
            yield "for A1111", f"{self.a1111_file}"
        elif self.a1111_command:
            yield "for A1111", self.a1111_command

    def _end_rows(self) -> Iterator[tuple[str, str]]:
        if self.patience:
            reason = f"the validation loss had not fallen for {self.patience} snapshot{'s' * (self.patience != 1)}"
            yield "ended", f"after {quantity(self.steps, 'step')}: {reason}"
        if self.result_step is not None and self.result_step != self.steps:
            yield "result", f"the overlay at step {self.result_step}, where the validation loss was lowest"

    def _loss_rows(self) -> Iterator[tuple[str, str]]:
        if self.validation_before is not None and self.validation_after is not None:
            yield "validation loss", f"{self.validation_before:.3g} before, {self.validation_after:.3g} after"
        if self.high_noise_before is not None and self.high_noise_after is not None:
            yield "at high noise", f"{self.high_noise_before:.3g} before, {self.high_noise_after:.3g} after"
        if self.best is not None:
            yield "best snapshot", f"{self.best}, step {self.best_step}, validation loss {self.best_loss:.3g}"
        if self.rescues:
            times = f"{self.rescues} time{'s' * (self.rescues != 1)}"
            yield "rescues", f"went back {times}; a learning rate of {self.rate:.2g} served: begin with that next time"

    def _effect_rows(self) -> Iterator[tuple[str, str]]:
        if self.effect is not None:
            left = ""
            if self.strength is None and self.prompt_left is not None:  # else pictures say better what is kept
                left = f"; {max(0.0, self.prompt_left):.0%} of what a prompt does is left"
            yield "effect at strength 1", f"changes predictions {self.effect:.2g} times as much as a prompt does{left}"
        if self.little_learned:
            higher_rate = f"try ten times the rate: {self.rate * RATE_FACTOR_IF_LITTLE:.2g}"
            yield "little was learned", "train for more steps" if self.finds_rate else higher_rate
        if self.strength is not None:
            yield "strength", self.strength_note
        elif self.overpowers:
            yield "strong at strength 1", f"pictures may not show the prompt: {self._advice_if_strong()}"

    def _advice_if_strong(self) -> str:
        """Return what to do with an overlay that overpowers the prompt, by what was measured."""
        if self.milder_strength is None:
            lowest = f"not even at {LOWER_STRENGTHS[-1]:g} is enough of it left"
            return f"{lowest}; use an earlier snapshot, or train for fewer steps or at a lower rate"
        tag = f"<{self.kind}:{self.file.stem}:{self.milder_strength:g}>"
        return f"at {self.milder_strength:g} they do; write {tag}, or use an earlier snapshot"


def little_was_learned(before: float | None, after: float | None, effect: float | None) -> bool:
    """Return True if the validation loss hardly fell and the effect is small; never without a measured effect.

    Args:
        before, after: Validation losses; None without a validation, which then says nothing.
        effect: Relative change at strength 1, or None. A loss that hardly falls is usual on large bases, so alone it
            says nothing.
    """
    hardly_fell = before is None or after is None or after > (1 - MIN_LOSS_FALL) * before
    return effect is not None and effect < MIN_EFFECT and hardly_fell


def overpowers(prompt_left: float | None) -> bool:
    """Return True if so little of the effect of a prompt is left that pictures may not show it."""
    return prompt_left is not None and prompt_left < MIN_PROMPT_LEFT


def a1111_command(kind: str, file: Path) -> str:
    """Return the command that writes an overlay for A1111's web UI, "" for kinds that it does not read as .pt."""
    return command_line("velatura", "convert", file, file.with_suffix(".pt")) if kind in A1111_PT_KINDS else ""


def sheet_command(kind: str, file: Path, prompt: str, base: str, options: OpenOptions = DEFAULT_OPEN_OPTIONS) -> str:
    """Return the command that paints an overlay at several strengths.

    Args:
        kind: The kind of overlay.
        file: Its file in the run folder.
        prompt: A prompt without a tag of the overlay; that of an embedding holds its name.
        base: The base, as --base takes it.
        options: The options that it was opened with.
    """
    words: list[str | Path] = ["--library", file.parent, *options.command_words(base)]
    prompt = f"{prompt} <{kind}:{file.stem}:{{strength}}>"
    words = ["--x", "strength=0,0.5,1,1.5", *words]
    return command_line("velatura", "grid", prompt, *words, "--out", file.parent / "strengths.png")


def command_line(*words: str | Path) -> str:
    """Quote a command for copying into a shell."""
    one_line = (" ".join(str(word).split()) for word in words)
    return shlex.join("".join(filter(str.isprintable, word)) for word in one_line)
