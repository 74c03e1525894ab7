"""The CLIP pair: first both towers against each other, later the vision tower against the text tower the UNet tuned."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from .architecture import make_clip
from .captions import PICTURES, tokenizer, training_ids, unseen_ids
from .data import draw, training_scene
from .loop import Schedule, device
from .store import note
from .vae import to_unit

SCHEDULE = Schedule(steps=200, batch=192, rate=1.5e-3, warmup=40, decay=0.05, ema=0.98)
VISION_SCHEDULE = Schedule(steps=600, batch=192, rate=1e-3, warmup=50, decay=0.05, ema=0.99)


class ClipJob:
    """InfoNCE over the pictures and captions of one process's share of the batch (Radford et al. 2021)."""

    def __init__(self, work: Path) -> None:
        self.model: nn.Module = make_clip(len(tokenizer(work))).to(device())
        self._pictures = torch.from_numpy(draw(training_scene, PICTURES, 0, work).pictures)
        self._ids = training_ids(work)

    def loss(self, generator: torch.Generator, count: int, step: int) -> Tensor:
        chosen = torch.randint(len(self._pictures), (count,), generator=generator)
        saying = torch.randint(self._ids.shape[1], (count,), generator=generator)
        pictures = to_unit(self._pictures[chosen]).to(device())
        with torch.autocast(device().type, torch.bfloat16):
            logits = self._logits(pictures, self._ids[chosen, saying].to(device())).float()
        target = torch.arange(count, device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def _logits(self, pictures: Tensor, ids: Tensor) -> Tensor:
        return clip_logits(self.model, pictures, ids)  # pyright: ignore[reportArgumentType]


class VisionJob(ClipJob):
    """The same loss with the text tower frozen as the UNet's training left it."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        clip = trained_clip(work, "clip")
        tuned = torch.load(work / "unet.pt", map_location="cpu", weights_only=True)["ema"]
        prefix = "text."
        text = {key.removeprefix(prefix): value for key, value in tuned.items() if key.startswith(prefix)}
        clip.text_model.load_state_dict(text)
        self.model.load_state_dict(clip.state_dict())
        self.model.text_model.requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def clip_logits(clip: CLIPModel, pictures: Tensor, ids: Tensor) -> Tensor:
    """(pictures, captions) cosine similarities times the learned scale."""
    seen = clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output)
    said = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
    return F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T * clip.logit_scale.exp().clamp(max=100)


def trained_clip(work: Path, name: str) -> CLIPModel:
    """The EMA weights of work/NAME.pt."""
    clip = make_clip(len(tokenizer(work)))
    clip.load_state_dict(torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)["ema"])
    return clip.eval()


@torch.no_grad()
def report(work: Path, name: str) -> float:
    """Share of 500 unseen drawings whose own caption is the best of 100 (five rounds)."""
    clip = trained_clip(work, name)
    pictures, ids, _ = unseen_ids(work)
    right = 0
    for start in range(0, 500, 100):
        part = slice(start, start + 100)
        logits = clip_logits(clip, to_unit(pictures[part]), ids[part])
        right += int((logits.argmax(1) == torch.arange(100)).sum())
    note(work, f"{name} caption of 100", right / 500)
    return right / 500
