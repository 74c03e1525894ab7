"""The base: a frozen Stable Diffusion, whole."""

from __future__ import annotations

import hashlib
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from velatura.base.conditioning import Conditioning, Framing
from velatura.base.families import Family
from velatura.base.offload import Stage
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder
from velatura.errors import UnsupportedBase, VelaturaWarning


class Base:
    """A frozen Stable Diffusion: overlays change what flows through it, nothing changes it.

    source is the file that holds the UNet, from which the hash is taken; vae_source that of an autoencoder which was
    taken in place of the base's own. opened_from is what it was opened by: a path from the root, or hub:OWNER/NAME.
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
        self.vae_source: Path | None = None
        self.opened_from: str | None = None
        self._stage: Stage | None = None
        for part in self._parts:
            part.requires_grad_(False).eval()

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.family.name}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    @property
    def _parts(self) -> tuple[nn.Module, ...]:
        return self.unet, self.vae, *(tower.model for tower in self.text.towers)

    @property
    def device(self) -> torch.device:
        """Where the base computes: where the UNet lives, or where it is brought for that."""
        return self._stage.device if self._stage and self._stage.holds(self.unet) else self._first_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision the UNet computes in."""
        return self._first_weight.dtype

    @property
    def _first_weight(self) -> Tensor:
        """A weight to ask: diffusers' own `dtype` goes through the whole UNet, at every step."""
        unet: Any = self.unet
        return unet.conv_in.weight

    @property
    def byte_count(self) -> int:
        """What all weights take in memory."""
        weights = (each for part in self._parts for each in part.state_dict().values())
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in weights}
        return sum(storages.values())

    @cached_property
    def hash(self) -> str:
        """The first ten hex digits of the sha256 of the UNet's file, or "" where it came from no file."""
        return _short_hash(self._source)

    @cached_property
    def vae_hash(self) -> str:
        """The same of the file of another autoencoder than its own."""
        return _short_hash(self.vae_source)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move every part, in place, and lay convolutions out with the channels last, where they run fastest.

        With a device, what was offloaded goes there for good.
        """
        if self._stage and device is not None:
            self._stage.close()
            self._stage = None
        for part in self._parts:
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own only adds a log line
        convolutional: tuple[Any, ...] = (self.unet, self.vae)
        for part in convolutional:
            part.to(memory_format=torch.channels_last)
        return self

    def offload(self, device: str | torch.device) -> Self:
        """Keep every part in the CPU's memory, and only that on the device which computes, for small GPUs.

        Warns of a CPU as the device, where it saves nothing.
        """
        if torch.device(device).type == "cpu":
            warnings.warn("offload saves nothing on a CPU, where all parts are anyway", VelaturaWarning, stacklevel=2)
        self.to("cpu")
        towers = tuple(tower.model for tower in self.text.towers)
        self._stage = Stage([towers, (self.unet,), (self.vae,)], torch.device(device))
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pixels (batch, 3, height, width) in [-1, 1] into latents of unit variance, in float32.

        The autoencoder gives a distribution: its mean is taken, or a sample where a generator is given.
        """
        posterior = self._posterior(pixels)
        latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.float() * self.family.latent_scale

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of that distribution and its standard deviation, each as latents."""
        posterior = self._posterior(pixels)
        scale = self.family.latent_scale
        return posterior.mean.float() * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (batch, 4, height, width) into pixels (batch, 3, ...) in [0, 1], in float32."""
        pixels = self._decoded(latents)
        if self._overflowed(latents, pixels):
            pixels = self._decoded(latents)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        posterior = self._encoded(pixels)
        return self._encoded(pixels) if self._overflowed(pixels, posterior.mode()) else posterior

    def _encoded(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        vae: Any = self.vae
        return vae.encode(pixels.to(self.device, vae.dtype)).latent_dist

    def _decoded(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.decode((latents / self.family.latent_scale).to(self.device, vae.dtype), return_dict=False)[0]

    def _overflowed(self, read: Tensor, made: Tensor) -> bool:
        """Whether the autoencoder made no numbers of numbers; it computes in float32 from then on."""
        dtype = self.vae.dtype
        if dtype == torch.float32 or made.isfinite().all() or not read.isfinite().all():
            return False
        precision = str(dtype).removeprefix("torch.")
        said = f"{self.name}'s autoencoder overflows in {precision}: it computes in float32 from now on"
        warnings.warn(said, VelaturaWarning, stacklevel=5)
        nn.Module.to(self.vae, dtype=torch.float32)
        return True

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
        time_ids = torch.tensor([framing.time_ids], device=self.device, dtype=torch.float32)  # exact, unlike in half
        return {"text_embeds": said.pooled, "time_ids": time_ids.expand(len(said), -1)}

    def _framing(self, latents: Tensor) -> Framing:
        height, width = (side * self.family.latent_factor for side in latents.shape[-2:])
        return Framing((height, width), (height, width))


def _short_hash(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:10]
