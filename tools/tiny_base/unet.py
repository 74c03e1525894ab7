"""The UNet, with the CLIP text tower trained on beside it: epsilon prediction on cached latents."""

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel

from .architecture import SCHEDULER, make_clip, make_compilable, make_unet
from .captions import PICTURES, padded_ids, tokenizer, training_ids
from .clip import trained_clip
from .data import draw, training_scene
from .loop import Schedule, device
from .store import drawing_key, file_key, kept
from .vae import measure_scale, to_unit, trained_vae

SCHEDULE = Schedule(steps=4300, batch=64, rate=1e-3, warmup=100, decay=0.01, ema=0.9992)
CAPTION_DROPOUT = 0.1
# min-SNR weighting (Hang et al. 2023), their value
SNR_LIMIT = 5.0


class UnetJob:
    """Noise a cached latent, predict the noise from it and its caption; one caption in ten is left empty for CFG."""

    def __init__(self, work: Path) -> None:
        words = tokenizer(work)
        unet, text = make_unet(), make_clip(len(words)).text_model
        text.load_state_dict(trained_clip(work, "clip").text_model.state_dict())
        # plain attention trains faster than SDPA at these sizes on a CPU, and compiles well
        unet.set_attn_processor(AttnProcessor())
        make_compilable(unet)
        self.model: nn.Module = nn.ModuleDict({"unet": unet, "text": text})
        self.model.to(device(), memory_format=torch.channels_last)
        self._latents = training_latents(work)
        self._ids, self._empty = training_ids(work), padded_ids(words, [""])[0]
        self._alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
        snr = self._alphas / (1 - self._alphas)
        self._weights = snr.clamp(max=SNR_LIMIT) / snr
        # twice as fast on a CPU; without a compiler at hand it is done the slow way
        able = torch.cuda.is_available() or shutil.which("c++")
        self._compiled = torch.compile(self._predict) if able else self._predict

    def loss(self, generator: torch.Generator, count: int, step: int) -> Tensor:
        chosen = torch.randint(len(self._latents), (count,), generator=generator)
        ids = self._ids[chosen, torch.randint(self._ids.shape[1], (count,), generator=generator)]
        ids[torch.rand(count, generator=generator) < CAPTION_DROPOUT] = self._empty
        latents, times = self._latents[chosen], torch.randint(1000, (count,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self._alphas[times].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).to(device(), memory_format=torch.channels_last)
        with torch.autocast(device().type, torch.bfloat16):
            predicted = self._compiled(noisy, times.to(device()), ids.to(device())).float()
        error = (predicted - noise.to(device())).square().mean((1, 2, 3))
        return (error * self._weights[times].to(device())).mean()

    def _predict(self, noisy: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        parts = self.model
        context = parts["text"](input_ids=ids).last_hidden_state  # pyright: ignore[reportIndexIssue]
        return parts["unet"](noisy, times, context).sample  # pyright: ignore[reportIndexIssue]


@torch.no_grad()
def training_latents(work: Path) -> Tensor:
    """(pictures, 4, 16, 16) mean latents of the training pictures at unit variance."""

    def make() -> NDArray[np.float32]:
        vae, pictures = trained_vae(work), torch.from_numpy(draw(training_scene, PICTURES, 0, work).pictures)
        scale = measure_scale(vae, work)
        parts: list[Tensor] = []
        with torch.autocast(device().type, torch.bfloat16):
            for chunk in pictures.split(250):
                pixels = to_unit(chunk).to(device(), memory_format=torch.channels_last)
                parts.append((vae.encode(pixels).latent_dist.mean.float() * scale).cpu())
        return torch.cat(parts).contiguous().numpy()

    return torch.from_numpy(kept(work, "latents", f"{drawing_key()}-{file_key(work / 'vae.pt')}", make))


def trained_unet(work: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The EMA weights of work/unet.pt: the UNet and its text tower."""
    unet, text = make_unet(), make_clip(len(tokenizer(work))).text_model
    nn.ModuleDict({"unet": unet, "text": text}).load_state_dict(
        torch.load(work / "unet.pt", map_location="cpu", weights_only=True)["ema"]
    )
    return unet.eval(), text.eval()
