"""A classifier of drawings, trained apart from the base, that says what a generated picture shows."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from velatura.training.precision import training_dtype

from .data import LABELS, any_scene, draw
from .loop import Schedule, device
from .store import note
from .vae import to_unit

PICTURES = 24_000
SCHEDULE = Schedule(steps=1800, batch=128, rate=2e-3, warmup=100, decay=0.05, ema=0.99)
WIDTHS = (32, 64, 128, 192)
FILE = Path(__file__).with_name("judge.safetensors")  # a trained one
# a blueprint has no colour, a neon tube shows black as violet: the judge neither learns nor answers there
COLOURLESS = [LABELS["style"].index(style) for style in ("blueprint", "neon")]


class Judge(nn.Module):
    """Residual blocks at 32, 16, 8 and 4 pixels, then one linear head for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, stride=2, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            self.blocks.append(_Block(before, after, stride=1 if before == after else 2))
        self.heads = nn.ModuleDict({field: nn.Linear(2 * WIDTHS[-1], len(names)) for field, names in LABELS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits by label of (count, 3, 64, 64) pictures in -1..1."""
        features = self.stem(pictures)
        for block in self.blocks:
            features = block(features)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return {field: head(pooled) for field, head in self.heads.items()}


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, before), nn.GroupNorm(8, after)])
        self.shortcut = nn.Conv2d(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norms[0](x)))
        return self.shortcut(x) + self.second(F.silu(self.norms[1](h)))


class JudgeJob:
    """Cross-entropy of every label on drawings blurred, noised, mirrored and shifted a little."""

    def __init__(self, work: Path) -> None:
        self.model: nn.Module = Judge().to(device(), memory_format=torch.channels_last)
        drawings = draw(any_scene, PICTURES, 30_000_000, work)
        self._pictures, self._labels = torch.from_numpy(drawings.pictures), torch.from_numpy(drawings.labels)

    def loss(self, generator: torch.Generator, count: int, step: int) -> Tensor:
        chosen = torch.randint(len(self._pictures), (count,), generator=generator)
        pictures = _worn(to_unit(self._pictures[chosen]), generator).to(device(), memory_format=torch.channels_last)
        labels = self._labels[chosen].to(device())
        labels[:, 1][torch.isin(labels[:, 3], torch.tensor(COLOURLESS, device=labels.device))] = -100
        with torch.autocast(device().type, torch.bfloat16, enabled=training_dtype(device()) is torch.bfloat16):
            logits = self.model(pictures)
        losses = [
            F.cross_entropy(logits[field].float(), labels[:, i], label_smoothing=0.05) for i, field in enumerate(LABELS)
        ]
        return torch.stack(losses).sum()


def _worn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Drawings as a decoder might give them back: softened, noisy, off in contrast, mirrored or moved by up to 4 px."""
    count = len(pictures)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand((count, 1, 1, 1), generator=generator) * 0.8
    pictures = pictures.lerp(soft, share)
    pictures = pictures + 0.08 * torch.rand((count, 1, 1, 1), generator=generator) * torch.randn(
        pictures.shape, generator=generator
    )
    gain = 0.9 + 0.2 * torch.rand((count, 1, 1, 1), generator=generator)
    mirrored = torch.where(torch.rand((count, 1, 1, 1), generator=generator) < 0.5, pictures.flip(3), pictures) * gain
    dx, dy = torch.randint(0, 9, (2,), generator=generator).tolist()
    return F.pad(mirrored, (4, 4, 4, 4), mode="replicate")[:, :, dy : dy + 64, dx : dx + 64]


def open_judge() -> Judge:
    """The judge that lies beside this module."""
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(FILE).items()})
    return judge.eval()


def judge_mark() -> str:
    """A mark of the judge's file, by which results of different judges are told apart."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:8]


def trained_judge(work: Path) -> Judge:
    """The EMA weights of work/judge.pt."""
    judge = Judge()
    judge.load_state_dict(torch.load(work / "judge.pt", map_location="cpu", weights_only=True)["ema"])
    return judge.eval()


def export_judge(work: Path) -> None:
    """Put the trained judge beside this module, in fp16."""
    weights = trained_judge(work).state_dict()
    save_file({key: value.half().contiguous() for key, value in weights.items()}, FILE)


@torch.no_grad()
def verdicts(judge: Judge, pictures: Tensor) -> Tensor:
    """(count, 4) label indices of (count, 64, 64, 3) bytes, in the order of LABELS."""
    parts = [judge(to_unit(chunk)) for chunk in pictures.split(200)]
    return torch.cat([torch.stack([part[field].argmax(1) for field in LABELS], dim=1) for part in parts])


def report(work: Path) -> dict[str, float]:
    """Accuracy by label on 2,000 drawings the judge never saw."""
    drawings = draw(any_scene, 2000, 40_000_000, work)
    labels = torch.from_numpy(drawings.labels)
    right = verdicts(trained_judge(work), torch.from_numpy(drawings.pictures)) == labels
    coloured = ~torch.isin(labels[:, 3], torch.tensor(COLOURLESS))
    figures = {field: round(right[:, i].float().mean().item(), 4) for i, field in enumerate(LABELS)}
    figures["colour"] = round(right[coloured, 1].float().mean().item(), 4)
    note(work, "judge", figures)
    return figures


def picture_bytes(image: object) -> Tensor:
    """(64, 64, 3) bytes of a PIL image."""
    return torch.from_numpy(np.array(image))
