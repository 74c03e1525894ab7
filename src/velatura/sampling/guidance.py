"""Classifier-free guidance: denoise a batch towards its prompts and away from its negative prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import encoding_row, guided_rows
from velatura.prompts.prompt import WeightedText, scheduled_prompt_at
from velatura.sampling.conditioning import ConditioningCache, PromptPair, chunks_of
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.samplers import Trajectory

# Overlays cache what they compute from a context, by the tensor itself. Prompts that alternate should therefore come
# back to the same tensors.
MAX_CACHED_BATCHES = 8

# Strengths of the overlays that change what texts are encoded to: one for all rows of a batch, or one for each row
TextStrengths = Sequence[tuple[float, ...]]

# (the picture of each row of a batch, number of rows that are negative prompts) -> text strengths
RowStrengthSetter = Callable[[Sequence[int], int], TextStrengths]


@dataclass(frozen=True)
class GuidanceOptions:
    """Options of guidance: how prompts are encoded, and how strongly they count.

    Attributes:
        guidance: The CFG scale; 1 means no guidance.
        image_guidance: How much the image counts that a pix2pix model edits; 1 means no guidance by it. Other bases
            ignore it.
        skip_uncond_below: The sigma below which every other call of the model leaves out the negative prompts (A1111's
            "Negative guidance minimum sigma", NGMS). 0: never.
        clip_skip: The layer of the text encoder, counted from the end. None: the one that the base was trained with.
        restores_mean: Keep the mean of all token vectors when emphasis is applied.
    """

    guidance: float
    image_guidance: float = 1.0
    skip_uncond_below: float = 0.0
    clip_skip: int | None = None
    restores_mean: bool = True

    @classmethod
    def of(cls, recipe: Recipe) -> GuidanceOptions:
        """Return the options that a recipe asks for."""
        return cls(
            recipe.guidance,
            image_guidance=1.0 if recipe.image_guidance is None else recipe.image_guidance,
            skip_uncond_below=recipe.skip_negative_below,
            clip_skip=recipe.clip_skip if recipe.clip_skip > 1 else None,
            restores_mean=recipe.emphasis == "Original",
        )


class GuidedDenoiser:
    """Denoises a batch of pictures by their prompts; prompts change with the number of calls that it has had.

    The rows of the model's batch are the negative prompts, one for each picture, and then the prompts, several for a
    picture whose prompt joins texts by AND. A pix2pix model with image guidance has the negative prompts twice: first
    without the image, and then with it.

    Attributes:
        is_guided: True if negative prompts are used.
        has_image_guidance: True if a pix2pix model guides by its image and by the prompt separately.
        denoised: The result of the last call, (pictures, 4, height, width).
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
        image_condition: Tensor | None = None,
    ) -> None:
        """Prepare to denoise; nothing is encoded yet.

        Args:
            base: The base.
            trajectory: Gives the timestep of each sigma.
            pairs: The prompts of each picture.
            options: The guidance.
            conditioning_cache: Keeps what texts are encoded to.
            set_strengths: Called before each call of the model with the pictures of the rows.
            image_condition: What an inpainting or pix2pix UNet reads beside the latents, (pictures, channels, height,
                width). None for other bases.
        """
        self._base, self._trajectory, self._pairs, self._options = base, trajectory, pairs, options
        self._conditioning_cache, self._set_strengths = conditioning_cache, set_strengths
        self._image_condition = image_condition
        self.has_image_guidance = base.image_condition == "pix2pix" and options.image_guidance != 1
        is_text_guided = options.guidance != 1 or not all(pair.is_single_prompt for pair in pairs)
        self.is_guided = is_text_guided or self.has_image_guidance
        self._chunk_count = max(pair.chunk_count(base) for pair in pairs)
        self._call_counter = count()
        self.denoised = torch.empty(0)
        self._batch_conditionings: dict[object, Conditioning] = {}

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Estimate the clean latents from noisy ones.

        Args:
            latents: (pictures, 4, height, width).
            sigma: The noise level, 0-d.
        """
        call_index = next(self._call_counter)
        skips_uncond = (
            call_index % 2 == 1
            and float(sigma) < self._options.skip_uncond_below
            and not self.has_image_guidance  # as in A1111
        )
        texts_by_picture = [scheduled_prompt_at(pair.positive, call_index).texts for pair in self._pairs]
        negatives: list[WeightedText] = []
        if self.is_guided and not skips_uncond:
            negatives = [scheduled_prompt_at(pair.negative, call_index).texts[0] for pair in self._pairs]
        positives = [text for texts in texts_by_picture for text in texts]
        positive_pictures = [picture for picture, texts in enumerate(texts_by_picture) for _ in texts]
        row_pictures = [*range(len(negatives)), *positive_pictures]
        if self.has_image_guidance:
            row_pictures = [*range(len(negatives)), *row_pictures]
            negatives = negatives * 2
        text_strengths = self._set_strengths(row_pictures, len(negatives))
        cond = self._batch_conditioning(negatives, positives, text_strengths)
        with guided_rows(len(negatives)):
            denoised_rows = self._denoise_rows(latents[row_pictures], sigma, cond, self._row_conditions(row_pictures))
        self.denoised = self._combine_rows(denoised_rows, texts_by_picture, len(negatives))
        return self.denoised

    def token_ids(self, picture: int) -> list[int]:
        """Return the tokens of a picture's first prompt, with start, end and padding of all chunks."""
        encoder, text = self._base.text.encoders[0], self._base.text
        chunks = chunks_of(text, self._pairs[picture].positive[0].texts[0])
        padded_chunks = [*chunks, *([] for _ in range(self._chunk_count - len(chunks)))]
        return [token for chunk in padded_chunks for token in encoder.pad_to_77([piece.token for piece in chunk])]

    @property
    def row_groups(self) -> int:
        """Return how often a call of the model holds each picture whose prompt is one text."""
        return 1 + self.is_guided + self.has_image_guidance

    def _row_conditions(self, row_pictures: Sequence[int]) -> Tensor | None:
        """Return the image condition of every row: of its picture, or zeros where the image is left out."""
        if self._image_condition is None:
            return None
        conditions = self._image_condition[row_pictures]
        if self.has_image_guidance:
            conditions[: len(self._pairs)] = 0
        return conditions

    def _denoise_rows(
        self, latents: Tensor, sigma: Tensor, cond: Conditioning, image_conditions: Tensor | None
    ) -> Tensor:
        """Denoise every row by its own conditioning.

        The UNet predicts the noise, or v = alpha * noise - sigma * x (Salimans and Ho 2022), of latents that are scaled
        to variance 1 by c_in (Karras et al. 2022, table 1).
        """
        c_in = 1 / (1 + sigma**2).sqrt()
        timesteps = self._trajectory.timestep(sigma).expand(len(latents))
        prediction = self._base.predict(latents * c_in, timesteps, cond, image_condition=image_conditions)
        if self._base.family.prediction == "v_prediction":
            return latents * c_in**2 - prediction * sigma * c_in
        return latents - prediction * sigma

    def _combine_rows(
        self, denoised_rows: Tensor, texts_by_picture: Sequence[Sequence[WeightedText]], negative_count: int
    ) -> Tensor:
        """Combine the rows of each picture: uncond + guidance * sum of weight * (cond - uncond).

        With image guidance, the image is guided by as well (Brooks et al. 2023, eq. 3): uncond is the negative prompt
        with the image, and without_image + image_guidance * (uncond - without_image) takes its place at the front.
        """
        cond_rows = iter(denoised_rows[negative_count:])
        conds_by_picture = [[next(cond_rows) for _ in texts] for texts in texts_by_picture]
        combined: list[Tensor] = []
        for picture, (texts, conds) in enumerate(zip(texts_by_picture, conds_by_picture, strict=True)):
            if self.has_image_guidance:
                without_image, uncond = denoised_rows[picture], denoised_rows[len(self._pairs) + picture]
                start = without_image + self._options.image_guidance * (uncond - without_image)
                combined.append(start + self._guidance_change(uncond, texts, conds))
            elif negative_count:
                uncond = denoised_rows[picture]
                combined.append(uncond + self._guidance_change(uncond, texts, conds))
            else:
                combined.append(_weighted_mean(texts, conds))
        return torch.stack(combined)

    def _guidance_change(
        self, uncond: Tensor, texts: Sequence[WeightedText], conds: Sequence[Tensor]
    ) -> Tensor | Literal[0]:
        return sum(
            self._options.guidance * text.weight * (cond - uncond) for text, cond in zip(texts, conds, strict=True)
        )

    def _batch_conditioning(
        self, negatives: Sequence[WeightedText], positives: Sequence[WeightedText], text_strengths: TextStrengths
    ) -> Conditioning:
        """Return the conditioning of all rows, and the same tensor again for the same texts and strengths."""
        texts = [*negatives, *positives]
        key = tuple(text.words for text in texts), len(negatives), tuple(text_strengths)
        if key not in self._batch_conditionings:
            rows = [
                self._encode_row(text, row, len(texts), len(negatives), text_strengths)
                for row, text in enumerate(texts)
            ]
            while len(self._batch_conditionings) >= MAX_CACHED_BATCHES:
                del self._batch_conditionings[next(iter(self._batch_conditionings))]
            self._batch_conditionings[key] = Conditioning.concatenate(rows).to(self._base.device, self._base.dtype)
        return self._batch_conditionings[key]

    def _encode_row(
        self, text: WeightedText, row: int, row_count: int, negative_count: int, text_strengths: TextStrengths
    ) -> Conditioning:
        """Encode the text of one row, at the strengths that overlays have in that row."""
        with encoding_row(row=row, rows=row_count):
            return self._conditioning_cache.encode(
                text,
                self._chunk_count,
                clip_skip=self._options.clip_skip,
                restores_mean=self._options.restores_mean,
                is_negative=row < negative_count,
                text_strengths=tuple(strengths[row % len(strengths)] for strengths in text_strengths),
            )


def _weighted_mean(texts: Sequence[WeightedText], conds: Sequence[Tensor]) -> Tensor:
    """Return the mean of the texts' results by weight, which stands for guidance where negative prompts are unused."""
    total = sum(text.weight for text in texts)
    if len(texts) == 1 or total == 0:
        return conds[0]
    return sum(
        (text.weight / total * cond for text, cond in zip(texts, conds, strict=True)), torch.zeros_like(conds[0])
    )
