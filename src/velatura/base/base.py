"""The base: a frozen Stable Diffusion, whole."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from velatura.base.conditioning import Conditioning, Framing
from velatura.base.families import Family
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder
from velatura.errors import UnsupportedBase


class Base:
    """A frozen Stable Diffusion: overlays change what flows through it, nothing changes it.

    source is the file that holds the UNet, from which the hash is taken.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text: TextEncoder,
        schedule: Schedule,
        source: Path | None = None,
    ) -> None:
        self.name = name
        self.family = family
        self.unet = unet
        self.vae = vae
        self.text = text
        self.schedule = schedule
        self._source = source
        for part in self._parts:
            part.requires_grad_(False).eval()

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.family.name}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    @property
    def _parts(self) -> tuple[nn.Module, ...]:
        return self.unet, self.vae, *(tower.model for tower in self.text.towers)

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision the UNet computes in."""
        return self.unet.dtype

    @cached_property
    def hash(self) -> str:
        """The first ten hex digits of the sha256 of the UNet's file, or "" where it came from no file."""
        if self._source is None:
            return ""
        with self._source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:10]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move every part, in place, and lay convolutions out with the channels last, where they run fastest."""
        for part in self._parts:
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own only adds a log line
        convolutional: tuple[Any, ...] = (self.unet, self.vae)
        for part in convolutional:
            part.to(memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pixels (batch, 3, height, width) in [-1, 1] into latents of unit variance, in float32.

        The autoencoder gives a distribution: its mean is taken, or a sample where a generator is given.
        """
        vae: Any = self.vae
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.float() * self.family.latent_scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (batch, 4, height, width) into pixels (batch, 3, ...) in [0, 1], in float32."""
        vae: Any = self.vae
        scaled = (latents / self.family.latent_scale).to(self.device, vae.dtype)
        pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @property
    def reads_pooled(self) -> bool:
        """Whether the UNet is told the prompt as one vector, and the picture's sizes, beside the context."""
        return self.unet.config.get("addition_embed_type") == "text_time"

    def predict(
        self, latents: Tensor, timesteps: Tensor, said: Tensor | Conditioning, framing: Framing | None = None
    ) -> Tensor:
        """What the UNet makes of noisy latents, in their own precision: noise, or velocity, as the family predicts.

        latents: (batch, 4, height, width); timesteps: (batch,) or 0-d; said: what the prompts say, or their context
        (batch, tokens, cross width) alone where the base reads no more; framing: the sizes that an SDXL is told, those
        of the latents if none are given.
        """
        told = (said if isinstance(said, Conditioning) else Conditioning(said)).to(self.device, self.dtype)
        more = self._told(told, framing or self._framing(latents)) if self.reads_pooled else None
        noisy, time = latents.to(self.device, self.dtype), timesteps.to(self.device)
        unet: Any = self.unet
        prediction: Tensor = unet(noisy, time, told.context, added_cond_kwargs=more, return_dict=False)[0]
        return prediction.to(latents)

    def _told(self, said: Conditioning, framing: Framing) -> dict[str, Tensor]:
        """What an SDXL's UNet reads beside the context."""
        if said.pooled is None:
            raise UnsupportedBase(
                f"{self.name} reads each prompt as one vector too, beside the context: "
                "give it what base.text.conditioning says, not the context alone"
            )
        time_ids = torch.tensor([framing.time_ids], device=self.device, dtype=self.dtype)
        return {"text_embeds": said.pooled, "time_ids": time_ids.expand(len(said), -1)}

    def _framing(self, latents: Tensor) -> Framing:
        height, width = (side * self.family.latent_factor for side in latents.shape[-2:])
        return Framing((height, width), (height, width))
