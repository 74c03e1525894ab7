"""The autoencoder: drawn pictures with their colours shuffled, and doodles, so that unseen styles survive it too."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .architecture import make_vae
from .data import ALL_STYLES, draw, draw_doodles, held_out_style_scene, training_scene, unseen_scene
from .loop import Schedule, device
from .store import note

PICTURES = 48_000
DOODLES = 16_000
SCHEDULE = Schedule(steps=4000, batch=16, rate=1e-3, warmup=200, decay=1e-4, ema=0.998)
DECODER_SCHEDULE = Schedule(steps=5800, batch=16, rate=8e-4, warmup=100, decay=1e-4, ema=0.998)
# just enough to keep the latents bounded: ten times as much silences a whole channel
KL = 2e-7


class VaeJob:
    """Mean squared error of the reconstruction, which is what decibels measure, and a little KL."""

    def __init__(self, work: Path) -> None:
        self.model = make_vae().to(device(), memory_format=torch.channels_last)
        # start nearly deterministic: diffusers' untrained log-variance of 0 drowns a small decoder in noise
        bias = self.model.quant_conv.bias
        with torch.no_grad():
            bias[4:] = -6.0
        self._pictures = torch.from_numpy(
            np.concatenate([draw(training_scene, PICTURES, 0, work).pictures, draw_doodles(DOODLES, work)])
        )

    def loss(self, generator: torch.Generator, count: int, step: int) -> Tensor:
        chosen = torch.randint(len(self._pictures), (count,), generator=generator)
        pictures = jitter(to_unit(self._pictures[chosen]), generator).to(device(), memory_format=torch.channels_last)
        noise = torch.randn((count, 4, 16, 16), generator=generator).to(device())
        with torch.autocast(device().type, torch.bfloat16):
            picture, mean, log_variance = self._reconstruct(pictures, noise)
        error = (picture.float() - pictures).square().mean()
        kl = 0.5 * (mean.float().square() + log_variance.float().exp() - 1 - log_variance.float()).sum((1, 2, 3)).mean()
        return error + KL * kl

    def _reconstruct(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.model.quant_conv(self.model.encoder(pictures)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + noise * (0.5 * log_variance).exp()
        return self.model.decoder(self.model.post_quant_conv(latents)), mean, log_variance


class DecoderJob(VaeJob):
    """The decoder alone, on mean latents: it gets better while the UNet's latents stay as they are.

    Its loss is the mean of each picture's own decibels, so that pictures hard to draw again do not drown the others.
    """

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.model.load_state_dict(_averages(work, "vae"))
        self.model.encoder.requires_grad_(False)
        self.model.quant_conv.requires_grad_(False)

    def loss(self, generator: torch.Generator, count: int, step: int) -> Tensor:
        chosen = torch.randint(len(self._pictures), (count,), generator=generator)
        pictures = jitter(to_unit(self._pictures[chosen]), generator).to(device(), memory_format=torch.channels_last)
        with torch.autocast(device().type, torch.bfloat16):
            with torch.no_grad():
                latents = self.model.encode(pictures).latent_dist.mean
            picture = self.model.decode(latents).sample
        return (picture.float() - pictures).square().mean((1, 2, 3)).add(1e-5).log().mean()


def to_unit(pictures: Tensor) -> Tensor:
    """(count, 64, 64, 3) bytes to (count, 3, 64, 64) in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def jitter(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures with their channels shuffled, mirrored, inverted or faded: no hue is rare to the encoder."""
    count = len(pictures)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])
    shuffled = pictures.gather(1, order[:, :, None, None].expand_as(pictures))
    sign = torch.randint(0, 2, (count, 1, 1, 1), generator=generator) * 2 - 1
    gain = 0.5 + 0.5 * torch.rand((count, 1, 1, 1), generator=generator)
    lift = (1 - gain) * (2 * torch.rand((count, 3, 1, 1), generator=generator) - 1)
    changed = (shuffled * sign * gain + lift).flip(3)
    return torch.where(torch.rand((count, 1, 1, 1), generator=generator) < 0.5, changed, pictures)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Decibels of each picture's reconstruction from its mean latent; pictures: (count, 3, 64, 64) in -1..1."""
    errors: list[Tensor] = []
    for chunk in pictures.split(100):
        with torch.autocast(chunk.device.type, torch.bfloat16):
            again = vae.decode(vae.encode(chunk).latent_dist.mean).sample
        errors.append(((again.float().clamp(-1, 1) - chunk) / 2).square().mean((1, 2, 3)))
    return -10 * torch.log10(torch.cat(errors))


def trained_vae(work: Path) -> AutoencoderKL:
    """The averaged weights, with the decoder as it was trained on alone if it was."""
    vae = make_vae()
    vae.load_state_dict(_averages(work, "decoder" if (work / "decoder.pt").exists() else "vae"))
    return vae.eval().to(device(), memory_format=torch.channels_last)


def _averages(work: Path, name: str) -> dict[str, Tensor]:
    return torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)["ema"]


def report(work: Path) -> dict[str, float]:
    """PSNR on unseen combinations in known styles, on held-out styles one by one, and over both."""
    vae = trained_vae(work)
    figures: dict[str, float] = {}
    everything: list[Tensor] = []
    for scene_of, seed in ((unseen_scene, 10_000_000), (held_out_style_scene, 20_000_000)):
        drawings = draw(scene_of, 500, seed, work)
        decibels = psnr(vae, to_unit(torch.from_numpy(drawings.pictures)).to(device())).cpu()
        everything.append(decibels)
        for style in np.unique(drawings.labels[:, 3]):
            figures[ALL_STYLES[style]] = round(
                decibels[torch.from_numpy(drawings.labels[:, 3] == style)].mean().item(), 2
            )
    figures["all"] = round(torch.cat(everything).mean().item(), 2)
    figures["latent deviation"] = round(1 / measure_scale(vae, work), 4)
    note(work, "psnr", figures)
    return figures


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, work: Path) -> float:
    """What to multiply latents by for unit variance, over 2,000 training pictures."""
    pictures = to_unit(torch.from_numpy(draw(training_scene, PICTURES, 0, work).pictures[:2000])).to(device())
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(100)])
    return 1 / latents.float().std().item()
