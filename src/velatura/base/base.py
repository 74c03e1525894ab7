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

from velatura.base.conditioning import Conditioning, MicroConditioning
from velatura.base.families import Family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.offload import ModelOffloader
from velatura.base.text_encoder import TextEncoder
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
        schedule: NoiseSchedule,
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
        self._offloader: ModelOffloader | None = None
        for model in self._models:
            model.requires_grad_(False).eval()

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.family.name}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    @property
    def _models(self) -> tuple[nn.Module, ...]:
        return self.unet, self.vae, *(encoder.model for encoder in self.text.encoders)

    @property
    def device(self) -> torch.device:
        """Where the base computes: where the UNet lives, or where it is brought for that."""
        return (
            self._offloader.device
            if self._offloader and self._offloader.has_model(self.unet)
            else self._first_weight.device
        )

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
        weights = (tensor for model in self._models for tensor in model.state_dict().values())
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights}
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
        if self._offloader and device is not None:
            self._offloader.remove_hooks()
            self._offloader = None
        for model in self._models:
            nn.Module.to(model, device=device, dtype=dtype)  # diffusers' own only adds a log line
        convolutional_models: tuple[Any, ...] = (self.unet, self.vae)
        for model in convolutional_models:
            model.to(memory_format=torch.channels_last)
        return self

    def offload(self, device: str | torch.device) -> Self:
        """Keep every part in the CPU's memory, and only that on the device which computes, for small GPUs.

        Warns of a CPU as the device, where it saves nothing.
        """
        if torch.device(device).type == "cpu":
            warnings.warn("offload saves nothing on a CPU, where all parts are anyway", VelaturaWarning, stacklevel=2)
        self.to("cpu")
        text_models = tuple(encoder.model for encoder in self.text.encoders)
        self._offloader = ModelOffloader([text_models, (self.unet,), (self.vae,)], torch.device(device))
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pixels (batch, 3, height, width) in [-1, 1] into latents of unit variance, in float32.

        The autoencoder gives a distribution: its mean is taken, or a sample where a generator is given.
        """
        posterior = self._posterior(pixels)
        latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.float() * self.family.scaling_factor

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of that distribution and its standard deviation, each as latents."""
        posterior = self._posterior(pixels)
        scale = self.family.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (batch, 4, height, width) into pixels (batch, 3, ...) in [0, 1], in float32."""
        pixels = self._decode_latents(latents)
        if self._upcast_after_overflow(latents, pixels):
            pixels = self._decode_latents(latents)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        posterior = self._encode_pixels(pixels)
        return self._encode_pixels(pixels) if self._upcast_after_overflow(pixels, posterior.mode()) else posterior

    def _encode_pixels(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        vae: Any = self.vae
        return vae.encode(pixels.to(self.device, vae.dtype)).latent_dist

    def _decode_latents(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.decode((latents / self.family.scaling_factor).to(self.device, vae.dtype), return_dict=False)[0]

    def _upcast_after_overflow(self, source: Tensor, result: Tensor) -> bool:
        """Whether the autoencoder made no numbers of numbers; it computes in float32 from then on."""
        dtype = self.vae.dtype
        if dtype == torch.float32 or result.isfinite().all() or not source.isfinite().all():
            return False
        precision = str(dtype).removeprefix("torch.")
        message = f"{self.name}'s autoencoder overflows in {precision}: it computes in float32 from now on"
        warnings.warn(message, VelaturaWarning, stacklevel=5)
        nn.Module.to(self.vae, dtype=torch.float32)
        return True

    @property
    def needs_pooled(self) -> bool:
        """Whether the UNet is told the prompt as one vector, and the picture's sizes, beside the context."""
        return self.unet.config.get("addition_embed_type") == "text_time"

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cond: Tensor | Conditioning,
        micro_cond: MicroConditioning | None = None,
    ) -> Tensor:
        """What the UNet makes of noisy latents, in their own precision: noise, or velocity, as the family predicts.

        latents: (batch, 4, height, width); timesteps: (batch,) or 0-d; said: what the prompts say, or their context
        (batch, tokens, cross width) alone where the base reads no more; framing: the sizes that an SDXL is told, those
        of the latents if none are given.
        """
        conditioning = (cond if isinstance(cond, Conditioning) else Conditioning(cond)).to(self.device, self.dtype)
        added_cond = (
            self._added_cond(conditioning, micro_cond or self._default_micro_conditioning(latents))
            if self.needs_pooled
            else None
        )
        noisy, time = latents.to(self.device, self.dtype), timesteps.to(self.device)
        unet: Any = self.unet
        prediction: Tensor = unet(noisy, time, conditioning.context, added_cond_kwargs=added_cond, return_dict=False)[0]
        return prediction.to(latents)

    def _added_cond(self, conditioning: Conditioning, micro_cond: MicroConditioning) -> dict[str, Tensor]:
        """What an SDXL's UNet reads beside the context."""
        if conditioning.pooled is None:
            raise UnsupportedBase(
                f"{self.name} reads each prompt as one vector too, beside the context: "
                "give it what base.text.conditioning says, not the context alone"
            )
        time_ids = torch.tensor([micro_cond.time_ids], device=self.device, dtype=torch.float32)  # exact, unlike in half
        return {"text_embeds": conditioning.pooled, "time_ids": time_ids.expand(len(conditioning), -1)}

    def _default_micro_conditioning(self, latents: Tensor) -> MicroConditioning:
        height, width = (side * self.family.vae_scale_factor for side in latents.shape[-2:])
        return MicroConditioning((height, width), (height, width))


def _short_hash(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:10]
