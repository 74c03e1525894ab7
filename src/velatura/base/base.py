"""Base: a complete, frozen Stable Diffusion."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from velatura.base.conditioning import Conditioning, MicroConditioning
from velatura.base.families import Family
from velatura.base.image_condition import (
    CONDITION_BY_CHANNELS,
    LATENT_CHANNELS,
    ImageConditionKind,
    blank_condition,
)
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.open_options import OpenOptions
from velatura.base.text_encoder import TextEncoder
from velatura.errors import UnsupportedBase, warn
from velatura.files import short_hash

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from velatura.base.offload import ModelOffloader


class Base:
    """A frozen Stable Diffusion. Overlays change the activations that flow through it; its weights stay as they are.

    Args:
        name: Name of the base, shown in recipes.
        family: Family of the architecture, such as FAMILIES["SD1"].
        unet, vae, text, schedule: Parts of the model.
        source: File with the UNet's weights, of which the hash is taken; None for a base that was built in memory.
        vae_source: File of another VAE that replaces the base's own; None for the base's own.
        text_sources: Files of text encoders that replace the base's own; empty for the base's own.
        opened_from: Absolute path, or hub:OWNER/NAME, by which the base can be opened again.

    Attributes:
        open_options: Options that `open_base` was called with.
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
        vae_source: Path | None = None,
        text_sources: tuple[Path, ...] = (),
        opened_from: str | None = None,
    ) -> None:
        self.name = name
        self.family = family
        self.unet = unet
        self.vae = vae
        self.text = text
        self.schedule = schedule
        self._source = source
        self.vae_source = vae_source
        self.text_sources = text_sources
        self.opened_from = opened_from
        self.open_options = OpenOptions()
        self._offloader: ModelOffloader | None = None
        self._blank_conditions: dict[tuple[int, int], Tensor] = {}
        for model in self.models:
            model.requires_grad_(False).eval()

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.family.name}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return the UNet, the autoencoder and the text encoders."""
        return self.unet, self.vae, *(encoder.model for encoder in self.text.encoders)

    @property
    def device(self) -> torch.device:
        """Return the device on which the base computes: the UNet's, or the offloader's target."""
        if self._offloader and self._offloader.has_model(self.unet):
            return self._offloader.device
        return self._first_weight.device

    @property
    def is_offloaded(self) -> bool:
        """True if the models are kept in the CPU's memory, and only the one that computes is moved to the device."""
        return self._offloader is not None

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision in which the UNet computes."""
        return self._first_weight.dtype

    @property
    def _first_weight(self) -> Tensor:
        """Return one weight of the UNet. diffusers' own `dtype` walks over the whole UNet, which is slow."""
        unet: Any = self.unet
        return unet.conv_in.weight

    @property
    def byte_count(self) -> int:
        """Return the bytes that all weights take in memory; shared storages count once."""
        weights = (tensor for model in self.models for tensor in model.state_dict().values())
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights}
        return sum(storages.values())

    @cached_property
    def hash(self) -> str:
        """Return the first ten hex digits of the SHA-256 of the UNet's file, or "" for a base without a file."""
        return short_hash(self._source) if self._source else ""

    @cached_property
    def vae_hash(self) -> str:
        """Return the same hash of the file of the replacement VAE, or "" for the base's own VAE."""
        return short_hash(self.vae_source) if self.vae_source else ""

    @cached_property
    def text_hash(self) -> str:
        """Return the same hashes of the files of the replacement text encoders, or "" for the base's own."""
        return ", ".join(short_hash(path) for path in self.text_sources)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all parts in place, and store convolutions channels-last, which is the fastest layout.

        Args:
            device: Target device; None keeps the device. A device ends offloading.
            dtype: Target precision; None keeps the precision.
        """
        if self._offloader and device is not None:
            self._offloader.remove_hooks()
            self._offloader = None
        self._blank_conditions.clear()
        for model in self.models:
            nn.Module.to(model, device=device, dtype=dtype)  # diffusers' own only adds a log line
        convolutional_models: tuple[Any, ...] = (self.unet, self.vae)
        for model in convolutional_models:
            model.to(memory_format=torch.channels_last)
        return self

    def offload(self, device: str | torch.device) -> Self:
        """Keep all parts in CPU memory, and move only the part that computes to the device, for small GPUs.

        Warns if the device is a CPU.
        """
        from velatura.base.offload import ModelOffloader

        if torch.device(device).type == "cpu":
            warn("offload saves nothing on a CPU: all parts are in its memory anyway")
        self.to("cpu")
        text_models = tuple(encoder.model for encoder in self.text.encoders)
        self._offloader = ModelOffloader([text_models, (self.unet,), (self.vae,)], torch.device(device))
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pixels into latents of unit variance.

        Args:
            pixels: (batch, 3, height, width) in [-1, 1].
            generator: Source of noise for a sample of the VAE's distribution; None takes the mean.

        Returns:
            Latents (batch, 4, height / 8, width / 8) in float32; / 4 for the tiny base.
        """
        posterior = self._posterior(pixels)
        latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.float() * self.family.scaling_factor

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels (batch, 3, height, width) into the mean and standard deviation of the VAE's distribution."""
        posterior = self._posterior(pixels)
        scale = self.family.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (batch, 4, height / 8, width / 8) into pixels (batch, 3, height, width) in [0, 1], float32."""
        pixels = self._decode_latents(latents)
        if self._vae_overflowed(latents, pixels):
            self._upcast_vae()
            pixels = self._decode_latents(latents)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        posterior = self._encode_pixels(pixels)
        if self._vae_overflowed(pixels, posterior.mode()):
            self._upcast_vae()
            posterior = self._encode_pixels(pixels)
        return posterior

    def _encode_pixels(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        vae: Any = self.vae
        return vae.encode(pixels.to(self.device, vae.dtype)).latent_dist

    def _decode_latents(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.decode((latents / self.family.scaling_factor).to(self.device, vae.dtype), return_dict=False)[0]

    def _vae_overflowed(self, source: Tensor, result: Tensor) -> bool:
        """Return True if finite inputs gave NaN or infinity in half precision."""
        if self.vae.dtype == torch.float32 or result.isfinite().all():
            return False
        return bool(source.isfinite().all())

    def _upcast_vae(self) -> None:
        precision = str(self.vae.dtype).removeprefix("torch.")
        warn(f"{self.name}'s autoencoder overflows in {precision}: it computes in float32 from now on")
        nn.Module.to(self.vae, dtype=torch.float32)

    @property
    def input_channels(self) -> int:
        """Return the channels that the UNet reads: 4 for latents alone, 9 for inpainting, 8 for pix2pix."""
        return int(self.unet.config["in_channels"])

    @property
    def latent_channels(self) -> int:
        """Return the channels of the latents, without those of an image condition."""
        return LATENT_CHANNELS if self.image_condition else self.input_channels

    @property
    def image_condition(self) -> ImageConditionKind | None:
        """Return what the UNet reads beside the latents: "inpainting", "pix2pix", or None for nothing."""
        return CONDITION_BY_CHANNELS.get(self.input_channels)

    @property
    def needs_pooled(self) -> bool:
        """Return True if the UNet reads pooled prompts and picture sizes beside the context, as SDXL does."""
        return self.unet.config.get("addition_embed_type") == "text_time"

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cond: Tensor | Conditioning,
        micro_cond: MicroConditioning | None = None,
        *,
        image_condition: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or velocity, depending on the family, with the UNet.

        Args:
            latents: (batch, 4, height / 8, width / 8), noisy.
            timesteps: (batch,) or a scalar, 0 to 999.
            cond: Conditioning of the prompts; a context (batch, tokens, cross-attention width) is enough if the base
                reads no pooled prompts.
            micro_cond: Picture sizes for an SDXL; None means the size of the latents, without a crop.
            image_condition: What an inpainting or pix2pix UNet reads beside the latents, one for each of them or one
                for all: see `velatura.base.image_condition`. None means no image (`blank_condition`).

        Returns:
            Prediction of the latents' shape, precision and device.

        Raises:
            UnsupportedBase: if the base needs pooled prompts and `cond` is a context alone, or if the image condition
                is not one for this base.
        """
        conditioning = (cond if isinstance(cond, Conditioning) else Conditioning(cond)).to(self.device, self.dtype)
        added_cond: dict[str, Tensor] | None = None
        if self.needs_pooled:
            added_cond = self._added_cond(conditioning, micro_cond or self._default_micro_conditioning(latents))
        noisy, time = latents.to(self.device, self.dtype), timesteps.to(self.device)
        if self.image_condition or image_condition is not None:
            noisy = self._add_image_condition(noisy, image_condition)
        unet: Any = self.unet
        prediction: Tensor = unet(noisy, time, conditioning.context, added_cond_kwargs=added_cond, return_dict=False)[0]
        return prediction.to(latents)

    def _add_image_condition(self, latents: Tensor, image_condition: Tensor | None) -> Tensor:
        """Append the channels of an image condition, or those of no image, to noisy latents."""
        if image_condition is None:
            image_condition = self._blank_condition(*latents.shape[-2:])
        expected, found = self.input_channels - latents.shape[1], image_condition.shape[1]
        if expected != found:
            raise UnsupportedBase(
                f"{self.name} reads {expected} channels beside the latents, and the image condition has {found}: make "
                "one for this base (velatura.base.image_condition)"
            )
        return torch.cat([latents, image_condition.to(latents).expand(len(latents), -1, -1, -1)], dim=1)

    @torch.inference_mode(mode=False)
    def _blank_condition(self, height: int, width: int) -> Tensor:
        """Return the image condition of no image, which is encoded once for each size."""
        size = (height, width)
        if size not in self._blank_conditions:
            self._blank_conditions[size] = blank_condition(self, height, width)
        return self._blank_conditions[size]

    def _added_cond(self, conditioning: Conditioning, micro_cond: MicroConditioning) -> dict[str, Tensor]:
        """Return the pooled prompts and the sizes in the form that diffusers' SDXL UNet reads."""
        if conditioning.pooled is None:
            raise UnsupportedBase(
                f"{self.name} reads a pooled vector of each prompt beside the context: "
                "pass the result of base.text.conditioning(), not the context alone"
            )
        # float32, as half precision would round the sizes
        time_ids = torch.tensor([micro_cond.time_ids], device=self.device, dtype=torch.float32)
        return {"text_embeds": conditioning.pooled, "time_ids": time_ids.expand(len(conditioning), -1)}

    def _default_micro_conditioning(self, latents: Tensor) -> MicroConditioning:
        height, width = (side * self.family.vae_scale_factor for side in latents.shape[-2:])
        return MicroConditioning((height, width), (height, width))
