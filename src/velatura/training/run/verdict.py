"""Verdict at the end of a run: what the losses and the effect of the overlay say, and which pictures to look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from velatura.base.open_options import OpenOptions

# Measured on the tiny base: 60 steps of 8 of the bundled neon pictures, at four learning rates for each kind. The
# validation loss before the training was 0.52 in all of them.
#
#   hypernet  rate 3e-5   the loss fell by  5 %, inputs of K and V changed by  2 %: nothing to be seen
#             rate 3e-4                    51 %,                              34 %: the style is there
#             rate 3e-3                    62 %,                              94 %: the style drowns the shapes
#             rate 2e-2                    10 %,                            3200 %: coloured noise
#   lora      rate 2e-5                     1 %, outputs of layers changed by 0.1 %: nothing to be seen
#             rate 2e-4                    15 %,                                2 %: hardly anything to be seen
#             rate 2e-3                    58 %,                               16 %: the style is there
#             rate 2e-2                    63 %,                              150 %: the style drowns the shapes
#
# 300 steps by the preset: 71 % and 175 %; at strength 1 shapes begin to dissolve, at 0.5 they are whole
A1111_PT_KINDS = frozenset({"hypernet", "embedding"})  # a LoRA's .safetensors is read as it is
MIN_LOSS_FALL = 0.1  # share of the validation loss; less, together with
MIN_EFFECT = 0.05  # less than this share of what layers read or return, is little learned
MAX_EFFECT = 1.0
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
        effect: Relative change at strength 1 of what layers read or return, as a mean; None if it was not measured.
        little_learned: The validation loss hardly fell, and the effect is small.
        overpowers: The effect at strength 1 is so large that the overlay may drown the prompt.
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
    little_learned: bool = False
    overpowers: bool = False
    strength: float | None = None
    strength_note: str = ""
    pictures: tuple[Path, ...] = ()
    plot: Path | None = None
    sheet_command: str = ""
    a1111_file: Path | None = None
    a1111_command: str = ""

    def __str__(self) -> str:
        return "\n".join(f"{label:21}{text}" for label, text in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
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

    def _loss_rows(self) -> Iterator[tuple[str, str]]:
        if self.patience:
            reason = f"the validation loss had not fallen for {self.patience} snapshot{'s' * (self.patience != 1)}"
            yield "ended", f"after {self.steps} steps: {reason}"
        if self.result_step is not None and self.result_step != self.steps:
            yield "result", f"the overlay at step {self.result_step}, where the validation loss was lowest"
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
            yield "effect at strength 1", f"changes what layers read or return by {self.effect:.1%}"
        if self.little_learned:
            higher_rate = f"try ten times the rate: {self.rate * RATE_FACTOR_IF_LITTLE:.2g}"
            yield "little was learned", "train for more steps" if self.finds_rate else higher_rate
        if self.strength is not None:
            yield "strength", self.strength_note
        elif self.overpowers:
            yield "strong at strength 1", "it may drown the prompt: try strengths of 0.5 to 0.7, or an earlier snapshot"


def little_was_learned(before: float | None, after: float | None, effect: float | None) -> bool:
    """Return True if the validation loss hardly fell and the effect is small; never without a measured effect.

    Args:
        before, after: Validation losses; None without a validation, which then says nothing.
        effect: Relative change at strength 1, or None. A loss that hardly falls is usual on large bases, so alone it
            says nothing.
    """
    hardly_fell = before is None or after is None or after > (1 - MIN_LOSS_FALL) * before
    return effect is not None and effect < MIN_EFFECT and hardly_fell


def overpowers(effect: float | None) -> bool:
    """Return True if an overlay changes so much at strength 1 that it may drown the prompt."""
    return effect is not None and effect > MAX_EFFECT


def a1111_command(kind: str, file: Path) -> str:
    """Return the command that writes an overlay for A1111's web UI, "" for kinds that it does not read as .pt."""
    return command_line("velatura", "convert", file, file.with_suffix(".pt")) if kind in A1111_PT_KINDS else ""


def sheet_command(kind: str, file: Path, prompt: str, base: str, options: OpenOptions = DEFAULT_OPEN_OPTIONS) -> str:
    """Return the command that paints an overlay at several strengths.

    Args:
        kind: The kind of overlay; an embedding acts by its name in the prompt, at one strength.
        file: Its file in the run folder.
        prompt: A prompt without a tag of the overlay.
        base: The base, as --base takes it.
        options: The options that it was opened with.
    """
    words: list[str | Path] = ["--library", file.parent, *options.command_words(base)]
    if kind == "embedding":
        return command_line("velatura", "generate", prompt, *words)
    prompt = f"{prompt} <{kind}:{file.stem}:{{strength}}>"
    words = ["--x", "strength=0,0.5,1,1.5", *words]
    return command_line("velatura", "grid", prompt, *words, "--out", file.parent / "strengths.png")


def command_line(*words: str | Path) -> str:
    """Quote a command for copying into a shell."""
    one_line = (" ".join(str(word).split()) for word in words)
    return shlex.join("".join(filter(str.isprintable, word)) for word in one_line)
