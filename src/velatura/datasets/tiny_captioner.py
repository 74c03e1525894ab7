"""Captions by the tiny base itself, which knows the small world that was drawn for it and no other."""

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from velatura.formats.folder_weights import weights
from velatura.tensors import open_state
from velatura.tiny import DATA, tiny

SUBJECTS = (
    *("house", "tree", "boat", "fish", "cat", "bird", "flower", "mug", "star", "car", "rocket", "mushroom", "balloon"),
    *("lighthouse", "umbrella", "apple", "butterfly", "crown", "bell", "key"),
)
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "white", "black")
TIMELESS = ("under the sea", "in space", "in a room")
PLACES = (
    *(
        "on the beach",
        "in the desert",
        "in the snow",
        "in the forest",
        "in a meadow",
        "in the mountains",
        "in the city",
    ),
    *TIMELESS,
)
TIMES = ("by day", "at sunset", "at night")
PICTURE_PIXELS = 64
AT_ONCE = 256
NOISY_TIMESTEPS = (300, 500, 700)  # of 0 to 999; three find as many subjects as six


class TinyCaptioner:
    """Says of a picture which subject of which colour is where, and at which time.

    Colour, place and time are those whose caption is nearest to the picture in the base's CLIP, which hardly knows the
    subjects apart: it finds 9 of 100. The UNet knows them, so the subject is the one whose name helps it most to take
    noise away (Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier"): it
    found 34 of 40 in one set of drawings, fewer than 14 of 20 in another.
    """

    def __init__(self) -> None:
        self._base = tiny()
        self._text = self._base.text.towers[0]
        self._vision, self._projection = _image_tower(DATA / "tiny" / "clip_vision")

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """Such as "a red house on the beach at night"."""
        pixels = _pixels(image)
        colour, place, time = self._surroundings(pixels)
        settings = [f"{_a(colour)} {thing} {place} {time}".strip() for thing in SUBJECTS]
        return settings[self._easiest(pixels, settings)]

    def _surroundings(self, pixels: Tensor) -> tuple[str, str, str]:
        seen = F.normalize(cast("Tensor", self._vision(pixel_values=pixels).image_embeds), dim=-1)
        settings, said = self._settings
        return settings[int((said @ seen[0]).argmax())]

    @cached_property
    def _settings(self) -> tuple[list[tuple[str, str, str]], Tensor]:
        """Colours, places and times, and what the text tower says of them, the mean over all subjects."""
        times = {place: ("",) if place in TIMELESS else TIMES for place in PLACES}
        settings = [(colour, place, time) for colour, place in product(COLOURS, PLACES) for time in times[place]]
        texts = [f"{_a(colour)} {thing} {place} {time}" for colour, place, time in settings for thing in SUBJECTS]
        said = torch.cat([self._said(texts[first : first + AT_ONCE]) for first in range(0, len(texts), AT_ONCE)])
        return settings, F.normalize(said.view(len(settings), len(SUBJECTS), -1).mean(dim=1), dim=-1)

    def _said(self, texts: list[str]) -> Tensor:
        """What the text tower says (texts, features), of length 1."""
        ids = self._text.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        pooled = self._text.model(input_ids=cast("Tensor", ids)).pooler_output
        return F.normalize(cast("Tensor", pooled) @ self._projection.T, dim=-1)

    def _easiest(self, pixels: Tensor, texts: Sequence[str]) -> int:
        """Which text helps the UNet most: the least mean squared error over a few noises."""
        said, latents = self._base.text.conditioning(texts), self._base.encode(pixels)
        errors = torch.zeros(len(texts))
        for seed, timestep in enumerate(NOISY_TIMESTEPS):
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
            noisy = self._base.schedule.add_noise(latents, noise, torch.tensor([timestep]))
            found = self._base.predict(noisy.expand(len(texts), -1, -1, -1), torch.full((len(texts),), timestep), said)
            errors += (found - noise).square().flatten(1).mean(1)
        return int(errors.argmin())


def _pixels(image: Image.Image) -> Tensor:
    """The picture (1, 3, 64, 64), from -1 to 1."""
    size = PICTURE_PIXELS, PICTURE_PIXELS
    values = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.tensor(values / 127.5 - 1).permute(2, 0, 1)[None]


def _image_tower(folder: Path) -> tuple[nn.Module, Tensor]:
    untyped: Any = CLIPVisionConfig
    vision = cast("nn.Module", CLIPVisionModelWithProjection(untyped.from_pretrained(folder, local_files_only=True)))
    vision.float()
    vision.load_state_dict({key: value.float() for key, value in weights(folder, "model").tensors.items()})
    projection = open_state(folder / "text_projection.safetensors").tensors["text_projection.weight"]
    return vision.eval(), projection.float()


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
