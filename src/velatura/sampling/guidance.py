"""What the base guesses of a picture, drawn towards its prompts and away from its negative prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import encoding_row
from velatura.prompts.emphasis import EmphasisMode
from velatura.prompts.prompt import Prompt, ScheduledPrompt, WeightedText, scheduled_prompt_at
from velatura.prompts.prompt_editing import Timing
from velatura.sampling.conditioning import chunks_of, encode_prompts
from velatura.sampling.samplers import Trajectory

MAX_CACHED_TEXTS = 256  # kept of a lexicon; an SD1's takes 240 KB
MAX_CACHED_BATCHES = (
    8  # batches of conditioning: prompts that take turns come back to the same tensors, as overlays need it
)

TextStrengths = Sequence[tuple[float, ...]]  # of overlays that change what words say: one strength, or one for each row

# (the picture of each row of a batch, how many rows are negative prompts)
RowStrengthSetter = Callable[[Sequence[int], int], TextStrengths]


@dataclass(frozen=True)
class PromptPair:
    """What one picture is told: prompt and negative prompt, each as rows over the model's calls."""

    positive: Sequence[ScheduledPrompt]
    negative: Sequence[ScheduledPrompt]

    @classmethod
    def of(cls, prompt: Prompt, negative: Prompt, timing: Timing, emphasis: EmphasisMode) -> PromptPair:
        """Lay a prompt and a negative prompt out over the model's calls."""
        return cls(prompt.schedule(timing, emphasis), negative.schedule(timing, emphasis))

    @property
    def is_single_static_prompt(self) -> bool:
        """Whether the prompt is one text that stays the same and counts once."""
        return len(self.positive) == 1 and self.is_single_prompt

    @property
    def is_single_prompt(self) -> bool:
        """Whether the prompt is one text at each step, so that without guidance the negative prompt has no say."""
        return all([subprompt.weight for subprompt in row.texts] == [1.0] for row in self.positive)

    @property
    def subprompts(self) -> list[WeightedText]:
        """All that is ever said, once for each row that says it."""
        return [subprompt for rows in (self.positive, self.negative) for row in rows for subprompt in row.texts]

    def chunk_count(self, base: Base) -> int:
        """Chunks of the longest text."""
        sides = ((self.positive, False), (self.negative, True))
        return max(
            len(chunks_of(base.text, subprompt, is_negative=is_negative))
            for rows, is_negative in sides
            for row in rows
            for subprompt in row.texts
        )


@dataclass(frozen=True)
class GuidanceOptions:
    """How much prompts count against negative prompts.

    scale: 1 is no guidance. spared_below: the noise level below which every other call of the model goes without
    negative prompts (the webui's NGMS).
    """

    guidance: float
    skip_uncond_below: float = 0.0
    clip_skip: int | None = None
    restores_mean: bool = True


class ConditioningCache:
    """What texts are encoded as by one base, each once, however many pictures say it."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._conditionings: dict[object, Conditioning] = {}

    def encode(
        self,
        subprompt: WeightedText,
        chunk_count: int,
        options: GuidanceOptions,
        *,
        is_negative: bool,
        text_strengths: tuple[float, ...] = (),
    ) -> Conditioning:
        """A batch of one. spoken: the strengths of overlays that have changed what words say since others were."""
        key = subprompt.words, subprompt.emphasis, chunk_count, options.clip_skip, is_negative, text_strengths
        if key not in self._conditionings:
            while len(self._conditionings) >= MAX_CACHED_TEXTS:
                del self._conditionings[next(iter(self._conditionings))]
            self._conditionings[key] = encode_prompts(
                self._base.text,
                [subprompt],
                chunk_count,
                clip_skip=options.clip_skip,
                restores_mean=options.restores_mean,
                is_negative=is_negative,
            )
        return self._conditionings[key]


class GuidedDenoiser:
    """Denoises a batch of pictures as their prompts want it; it counts its calls, by which prompts change.

    pairs: of each picture. guessed: what the last call gave. is_guided: whether negative prompts are heard. Rows of the
    model's batch are the negative prompts, one for each picture, and then the prompts, one for each voice.
    """

    def __init__(
        self,
        base: Base,
        trajectory: Trajectory,
        pairs: Sequence[PromptPair],
        options: GuidanceOptions,
        *,
        conditioning_cache: ConditioningCache,
        set_strengths: RowStrengthSetter,
    ) -> None:
        self._base, self._trajectory, self._pairs, self._options = base, trajectory, pairs, options
        self._conditioning_cache, self._set_strengths = conditioning_cache, set_strengths
        self.is_guided = options.guidance != 1 or not all(pair.is_single_prompt for pair in pairs)
        self._chunk_count = max(pair.chunk_count(base) for pair in pairs)
        self._call_counter = count()
        self.denoised = torch.empty(0)
        self._batch_conditionings: dict[object, Conditioning] = {}

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents that are guessed from noisy ones (pictures, 4, height, width)."""
        call_index = next(self._call_counter)
        skips_uncond = call_index % 2 == 1 and float(sigma) < self._options.skip_uncond_below
        subprompts = [scheduled_prompt_at(pair.positive, call_index).texts for pair in self._pairs]
        negatives = [
            scheduled_prompt_at(pair.negative, call_index).texts[0]
            for pair in self._pairs
            if self.is_guided and not skips_uncond
        ]
        row_pictures = [
            *range(len(negatives)),
            *(picture for picture, picture_subprompts in enumerate(subprompts) for _ in picture_subprompts),
        ]
        text_strengths = self._set_strengths(row_pictures, len(negatives))
        cond = self._batch_conditioning(
            negatives,
            [subprompt for picture_subprompts in subprompts for subprompt in picture_subprompts],
            text_strengths,
        )
        denoised_rows = self._denoise_rows(latents[row_pictures], sigma, cond)
        self.denoised = self._combine_denoised(denoised_rows, subprompts, len(negatives))
        return self.denoised

    def token_ids(self, picture: int) -> list[int]:
        """The ids of all that a picture's first prompt is encoded as, frames and padding too."""
        encoder, text = self._base.text.encoders[0], self._base.text
        chunks = chunks_of(text, self._pairs[picture].positive[0].texts[0])
        padded_chunks = [*chunks, *([] for _ in range(self._chunk_count - len(chunks)))]
        return [token for chunk in padded_chunks for token in encoder.pad_to_77([piece.token for piece in chunk])]

    def _denoise_rows(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The clean latents by each row's words."""
        c_in = 1 / (1 + sigma**2).sqrt()
        prediction = self._base.predict(latents * c_in, self._trajectory.timestep(sigma).expand(len(latents)), cond)
        if self._base.family.prediction == "v_prediction":
            return latents * c_in**2 - prediction * sigma * c_in
        return latents - prediction * sigma

    def _combine_denoised(
        self, denoised_rows: Tensor, subprompts: Sequence[Sequence[WeightedText]], negative_count: int
    ) -> Tensor:
        """Negative + scale * sum of weight * (voice - negative) for each picture, or the prompts' mean without one."""
        cond_rows = iter(denoised_rows[negative_count:])
        conds = [[next(cond_rows) for _ in picture_subprompts] for picture_subprompts in subprompts]
        if not negative_count:
            return torch.stack(
                [
                    _weighted_mean(picture_subprompts, picture_conds)
                    for picture_subprompts, picture_conds in zip(subprompts, conds, strict=True)
                ]
            )
        guided = [
            uncond
            + sum(
                self._options.guidance * subprompt.weight * (cond - uncond)
                for subprompt, cond in zip(picture_subprompts, picture_conds, strict=True)
            )
            for uncond, picture_subprompts, picture_conds in zip(denoised_rows, subprompts, conds, strict=False)
        ]
        return torch.stack(guided)

    def _batch_conditioning(
        self, negatives: Sequence[WeightedText], positives: Sequence[WeightedText], text_strengths: TextStrengths
    ) -> Conditioning:
        """One tensor for as long as nothing else is said: overlays remember what they made of it."""
        subprompts = [*negatives, *positives]
        key = tuple(subprompt.words for subprompt in subprompts), len(negatives), tuple(text_strengths)
        if key not in self._batch_conditionings:
            rows = [
                self._encode_row(subprompt, row, len(subprompts), len(negatives), text_strengths)
                for row, subprompt in enumerate(subprompts)
            ]
            while len(self._batch_conditionings) >= MAX_CACHED_BATCHES:
                del self._batch_conditionings[next(iter(self._batch_conditionings))]
            self._batch_conditionings[key] = Conditioning.concatenate(rows).to(self._base.device, self._base.dtype)
        return self._batch_conditionings[key]

    def _encode_row(
        self, subprompt: WeightedText, row: int, row_count: int, negative_count: int, text_strengths: TextStrengths
    ) -> Conditioning:
        """What a voice says in its row, by the strengths that overlays have there."""
        row_strengths = tuple(strengths[row % len(strengths)] for strengths in text_strengths)
        is_negative = row < negative_count
        with encoding_row(row=row, rows=row_count):
            return self._conditioning_cache.encode(
                subprompt, self._chunk_count, self._options, is_negative=is_negative, text_strengths=row_strengths
            )


def _weighted_mean(subprompts: Sequence[WeightedText], conds: Sequence[Tensor]) -> Tensor:
    """What several voices say together where no negative prompt is heard: their mean by weight."""
    total = sum(subprompt.weight for subprompt in subprompts)
    if len(subprompts) == 1 or total == 0:
        return conds[0]
    return sum(
        (subprompt.weight / total * cond for subprompt, cond in zip(subprompts, conds, strict=True)),
        torch.zeros_like(conds[0]),
    )
