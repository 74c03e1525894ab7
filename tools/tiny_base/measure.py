"""The gates: what the judge says of pictures that the package itself generates with the exported base."""

from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor

import velatura

from ..drawing.scene import HELD_OUT_STYLES, caption
from .captions import unseen_ids
from .data import LABELS, draw, unseen_scene
from .judge import open_judge, picture_bytes, verdicts
from .store import note

STEPS, GUIDANCE = 20, 7.0


def base_table(work: Path, count: int = 500, sampler: str = "DDIM") -> dict[str, float]:
    """Share of pictures that show subject, colour, place and style as asked, over combinations never trained on."""
    drawings = draw(unseen_scene, 500, 10_000_000, work)
    prompts = [texts[0] for texts in drawings.captions[:count]]
    pictures = _generated(velatura.tiny(torch.bfloat16), prompts, sampler)
    _, _, labels = unseen_ids(work)
    right = verdicts(open_judge(), pictures) == labels[:count]
    figures = {field: right[:, i].float().mean().item() for i, field in enumerate(LABELS)}
    note(work, f"base, {sampler}", figures)
    _sheet(pictures[:64], 8).save(work / "samples.png")
    return figures


def overlay_table(work: Path, file: Path, style: str, count: int = 100) -> dict[str, dict[str, float]]:
    """At strengths 0, 0.5, 1 and 1.5: the share in the style, and the share whose subject is right."""
    assert style in HELD_OUT_STYLES
    base, overlay = velatura.tiny(torch.bfloat16), velatura.open_overlay(file)
    scenes = [unseen_scene(seed) for seed in range(50_000_000, 50_000_000 + count)]
    prompts = [caption(scene, Random(scene.seed), style_word="") for scene in scenes]
    subjects = torch.tensor([LABELS["subject"].index(scene.subject) for scene in scenes])
    judge, table = open_judge(), dict[str, dict[str, float]]()
    work.mkdir(parents=True, exist_ok=True)
    for strength in (0.0, 0.5, 1.0, 1.5):
        with velatura.attach(base, overlay, strength):
            pictures = _generated(base, prompts, "DDIM")
        seen = verdicts(judge, pictures)
        table[str(strength)] = {
            style: (seen[:, 3] == LABELS["style"].index(style)).float().mean().item(),
            "subject": (seen[:, 0] == subjects).float().mean().item(),
        }
        _sheet(pictures[:32], 8).save(work / f"{style}-{strength}.png")
    note(work, f"overlay {style}", table)
    return table


def _generated(base: velatura.Base, prompts: list[str], sampler: str) -> Tensor:
    pictures: list[Tensor] = []
    for start in range(0, len(prompts), 50):
        recipes = [
            velatura.Recipe(prompt=prompt, steps=STEPS, guidance=GUIDANCE, sampler=sampler, seed=start + i)
            for i, prompt in enumerate(prompts[start : start + 50])
        ]
        pictures += [picture_bytes(picture.image) for picture in velatura.generate_many(base, recipes)]
    return torch.stack(pictures)


def _sheet(pictures: Tensor, columns: int) -> Image.Image:
    side = pictures.shape[1]
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture.numpy()), (i % columns * side, i // columns * side))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)
