"""What the base guesses of a picture, drawn towards its prompts and away from its negative prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.hearing import hearing
from velatura.prompts.grammar import Emphasis
from velatura.prompts.prompt import Prompt, Row, Voice, row_at
from velatura.prompts.timeline import Timing
from velatura.sampling.conditioning import chunks_of, conditioning
from velatura.sampling.samplers import Course

MOST_TEXTS = 256  # kept of a lexicon; an SD1's takes 240 KB
KEPT = 8  # batches of conditioning: prompts that take turns come back to the same tensors, as overlays need it

Spoken = Sequence[tuple[float, ...]]  # of overlays that change what words say: one strength, or one for each row

# (the picture of each row of a batch, how many rows are negative prompts)
Reach = Callable[[Sequence[int], int], Spoken]


@dataclass(frozen=True)
class Pair:
    """What one picture is told: prompt and negative prompt, each as rows over the model's calls."""

    wanted: Sequence[Row]
    unwanted: Sequence[Row]

    @classmethod
    def of(cls, prompt: Prompt, negative: Prompt, timing: Timing, emphasis: Emphasis) -> Pair:
        """Lay a prompt and a negative prompt out over the model's calls."""
        return cls(prompt.rows(timing, emphasis), negative.rows(timing, emphasis))

    @property
    def is_plain(self) -> bool:
        """Whether the prompt is one text that stays the same and counts once."""
        return len(self.wanted) == 1 and self.counts_once

    @property
    def counts_once(self) -> bool:
        """Whether the prompt is one text at each step, so that without guidance the negative prompt has no say."""
        return all([voice.weight for voice in row.voices] == [1.0] for row in self.wanted)

    @property
    def voices(self) -> list[Voice]:
        """All that is ever said, once for each row that says it."""
        return [voice for rows in (self.wanted, self.unwanted) for row in rows for voice in row.voices]

    def chunk_count(self, base: Base) -> int:
        """Chunks of the longest text."""
        sides = ((self.wanted, False), (self.unwanted, True))
        return max(
            len(chunks_of(base.text, voice, negative=negative))
            for rows, negative in sides
            for row in rows
            for voice in row.voices
        )


@dataclass(frozen=True)
class Guidance:
    """How much prompts count against negative prompts.

    scale: 1 is no guidance. spared_below: the noise level below which every other call of the model goes without
    negative prompts (the webui's NGMS).
    """

    scale: float
    spared_below: float = 0.0
    clip_skip: int | None = None
    restores_mean: bool = True


class Lexicon:
    """What texts are encoded as by one base, each once, however many pictures say it."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._known: dict[object, Conditioning] = {}

    def look_up(
        self, voice: Voice, chunk_count: int, guidance: Guidance, *, negative: bool, spoken: tuple[float, ...] = ()
    ) -> Conditioning:
        """A batch of one. spoken: the strengths of overlays that have changed what words say since others were."""
        key = voice.words, voice.emphasis, chunk_count, guidance.clip_skip, negative, spoken
        if key not in self._known:
            while len(self._known) >= MOST_TEXTS:
                del self._known[next(iter(self._known))]
            self._known[key] = conditioning(
                self._base.text,
                [voice],
                chunk_count,
                clip_skip=guidance.clip_skip,
                restores_mean=guidance.restores_mean,
                negative=negative,
            )
        return self._known[key]


class Guide:
    """Denoises a batch of pictures as their prompts want it; it counts its calls, by which prompts change.

    pairs: of each picture. guessed: what the last call gave. is_guided: whether negative prompts are heard. Rows of the
    model's batch are the negative prompts, one for each picture, and then the prompts, one for each voice.
    """

    def __init__(
        self,
        base: Base,
        course: Course,
        pairs: Sequence[Pair],
        guidance: Guidance,
        *,
        lexicon: Lexicon,
        reach: Reach,
    ) -> None:
        self._base, self._course, self._pairs, self._guidance = base, course, pairs, guidance
        self._lexicon, self._reach = lexicon, reach
        self.is_guided = guidance.scale != 1 or not all(pair.counts_once for pair in pairs)
        self._chunk_count = max(pair.chunk_count(base) for pair in pairs)
        self._calls = count()
        self.guessed = torch.empty(0)
        self._batches: dict[object, Conditioning] = {}

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents that are guessed from noisy ones (pictures, 4, height, width)."""
        call = next(self._calls)
        spared = call % 2 == 1 and float(sigma) < self._guidance.spared_below
        voices = [row_at(pair.wanted, call).voices for pair in self._pairs]
        unwanted = [row_at(pair.unwanted, call).voices[0] for pair in self._pairs if self.is_guided and not spared]
        places = [*range(len(unwanted)), *(place for place, each in enumerate(voices) for _ in each)]
        spoken = self._reach(places, len(unwanted))
        said = self._said(unwanted, [voice for each in voices for voice in each], spoken)
        guesses = self._guesses(latents[places], sigma, said)
        self.guessed = self._guided_by(guesses, voices, len(unwanted))
        return self.guessed

    def tokens(self, picture: int) -> list[int]:
        """The ids of all that a picture's first prompt is encoded as, frames and padding too."""
        tower, text = self._base.text.towers[0], self._base.text
        chunks = chunks_of(text, self._pairs[picture].wanted[0].voices[0])
        filled = [*chunks, *([] for _ in range(self._chunk_count - len(chunks)))]
        return [token for chunk in filled for token in tower.framed([piece.token for piece in chunk])]

    def _guesses(self, latents: Tensor, sigma: Tensor, said: Conditioning) -> Tensor:
        """The clean latents by each row's words."""
        narrow = 1 / (1 + sigma**2).sqrt()
        prediction = self._base.predict(latents * narrow, self._course.timestep(sigma).expand(len(latents)), said)
        if self._base.family.prediction == "v_prediction":
            return latents * narrow**2 - prediction * sigma * narrow
        return latents - prediction * sigma

    def _guided_by(self, guesses: Tensor, voices: Sequence[Sequence[Voice]], negatives: int) -> Tensor:
        """Negative + scale * sum of weight * (voice - negative) for each picture, or the prompts' mean without one."""
        rest = iter(guesses[negatives:])
        wanted = [[next(rest) for _ in each] for each in voices]
        if not negatives:
            return torch.stack([_mean(each, guess) for each, guess in zip(voices, wanted, strict=True)])
        drawn = [
            low + sum(self._guidance.scale * v.weight * (high - low) for v, high in zip(each, guess, strict=True))
            for low, each, guess in zip(guesses, voices, wanted, strict=False)
        ]
        return torch.stack(drawn)

    def _said(self, unwanted: Sequence[Voice], wanted: Sequence[Voice], spoken: Spoken) -> Conditioning:
        """One tensor for as long as nothing else is said: overlays remember what they made of it."""
        voices = [*unwanted, *wanted]
        key = tuple(voice.words for voice in voices), len(unwanted), tuple(spoken)
        if key not in self._batches:
            rows = [self._encode(voice, row, len(voices), len(unwanted), spoken) for row, voice in enumerate(voices)]
            while len(self._batches) >= KEPT:
                del self._batches[next(iter(self._batches))]
            self._batches[key] = Conditioning.joined(rows).to(self._base.device, self._base.dtype)
        return self._batches[key]

    def _encode(self, voice: Voice, row: int, rows: int, negatives: int, spoken: Spoken) -> Conditioning:
        """What a voice says in its row, by the strengths that overlays have there."""
        own = tuple(each[row % len(each)] for each in spoken)
        negative = row < negatives
        with hearing(row=row, rows=rows):
            return self._lexicon.look_up(voice, self._chunk_count, self._guidance, negative=negative, spoken=own)


def _mean(voices: Sequence[Voice], guesses: Sequence[Tensor]) -> Tensor:
    """What several voices say together where no negative prompt is heard: their mean by weight."""
    total = sum(voice.weight for voice in voices)
    if len(voices) == 1 or total == 0:
        return guesses[0]
    return sum(
        (voice.weight / total * guess for voice, guess in zip(voices, guesses, strict=True)),
        torch.zeros_like(guesses[0]),
    )
