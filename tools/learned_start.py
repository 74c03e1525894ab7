"""python -m tools.learned_start ACTION: meta-learn weights from which styles are learned in few steps.

learn    Reptile (Nichol et al. 2018) over random styles, from the last snapshot until the time is up
measure  train styles that nothing saw for 30 steps, with the start and without, and let the classifier look;
         trials that are done already are not repeated
table    print what was measured

"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import velatura
from tools.drawing.scene import caption
from tools.learning.factors import PARAMETERS
from tools.learning.trial import judge_overlay, style_folder, train_with_plan
from tools.random_styles import RandomStyle, random_style
from tools.tiny_base.data import training_scene
from tools.tiny_base.judge import open_judge
from velatura.base.conditioning import Conditioning
from velatura.overlays.overlay import Overlay
from velatura.training.loss import LossWeighting, denoising_errors

STYLES = ("neon", "blueprint", "oil", "halftone", "mosaic")
STEPS, BATCH_SIZE, PROMPTS = 30, 8, 32
CAPTION_DROPOUT, INVERSE_SNR = 0.3, 0.75
INNER_STEPS, INNER_BATCH_SIZE, PICTURES_PER_STYLE = 8, 4, 8
FIRST_META_RATE, LAST_META_RATE = 0.5, 0.1  # share of the way to the weights of a style, falling over the styles
FIRST_STYLE_SEED, FIRST_SCENE_SEED = 2_000_000, 75_000_000  # seeds that nothing else uses
SNAPSHOT_STYLES = 10


def learn(kind: str, work: Path, style_count: int, minutes: float) -> None:
    """Move the weights towards those of one random style after another, and keep a snapshot of every ten."""
    base = velatura.tiny()
    overlay, path, started = PARAMETERS[kind].make(base, 0), _snapshot_path(kind, work), time.monotonic()
    done = _restore(overlay, path)
    while done < style_count and time.monotonic() - started < 60 * minutes:
        share = done / style_count
        loss = _reptile_step(base, overlay, done, FIRST_META_RATE * (1 - share) + LAST_META_RATE * share, kind)
        done += 1
        if done % SNAPSHOT_STYLES == 0 or done == style_count:
            _keep(overlay, path, done)
            print(
                f"{kind}: {done} of {style_count} styles, loss {loss:.4f}, {time.process_time():.0f} CPU s", flush=True
            )


def _reptile_step(base: velatura.Base, overlay: Overlay, number: int, meta_rate: float, kind: str) -> float:
    """Learn one style for some steps, go a part of the way there, and return the last loss."""
    weights = overlay.trainable_parameters
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    latents, captions = encode_style(base, random_style(FIRST_STYLE_SEED + number), number)
    generator = torch.Generator().manual_seed(number)
    optimizer = torch.optim.AdamW(weights.values(), PARAMETERS[kind].rate, weight_decay=0)
    overlay.train()
    loss = torch.zeros(())
    with velatura.attach(base, overlay):
        for _ in range(INNER_STEPS):
            loss = _inner_loss(base, latents, captions, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(before[name].lerp(weight, meta_rate))
    return loss.item()


def encode_style(base: velatura.Base, style: RandomStyle, number: int) -> tuple[Tensor, Tensor]:
    """Return latents of drawings in a style, and the contexts of their captions and of the empty one, last."""
    scenes = [training_scene(FIRST_SCENE_SEED + number * PICTURES_PER_STYLE + i) for i in range(PICTURES_PER_STYLE)]
    pictures = torch.from_numpy(np.stack([np.asarray(style.paint(scene), dtype=np.float32) for scene in scenes]))
    captions = [caption(scene, Random(scene.seed), style_word="") for scene in scenes]
    return base.encode(pictures.permute(0, 3, 1, 2) / 127.5 - 1), base.text.encode([*captions, ""])


def _inner_loss(base: velatura.Base, latents: Tensor, captions: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.randint(len(latents), (INNER_BATCH_SIZE,), generator=generator)
    is_dropped = torch.rand(INNER_BATCH_SIZE, generator=generator) < CAPTION_DROPOUT
    errors = denoising_errors(
        base,
        latents[rows],
        Conditioning(captions[torch.where(is_dropped, len(latents), rows)]),
        torch.randn(latents[rows].shape, generator=generator),
        torch.randint(1000, (INNER_BATCH_SIZE,), generator=generator),
        weighting=LossWeighting(inverse_snr=INVERSE_SNR),
    )
    return errors.mean()


def measure(kind: str, work: Path, results: Path) -> None:
    """Train every style by the same short plan with the start and without, and keep what the judge sees."""
    base, judge = velatura.tiny(), open_judge()
    plan = velatura.Plan(
        steps=STEPS,
        learning_rate=PARAMETERS[kind].rate,
        schedule="cosine",
        batch_size=BATCH_SIZE,
        caption_dropout=CAPTION_DROPOUT,
        inverse_snr=INVERSE_SNR,
        validation_pictures=0,
        snapshot_every=0,
        end_sheet=False,
        cache=False,
    )
    done = {(record["kind"], record["style"], record["start"]) for record in read_results(results)}
    for style in STYLES:
        for start in (False, True):
            if (kind, style, start) in done:
                continue
            overlay = PARAMETERS[kind].make(base, 0)
            style_count = _restore(overlay, _snapshot_path(kind, work)) if start else 0
            overlay = train_with_plan(base, overlay, plan, style_folder(style, work), work / f"run-start-{kind}")
            shares = judge_overlay(base, judge, overlay, style, count=PROMPTS)
            shares = {name: round(share, 3) for name, share in shares.items()}
            record = {"kind": kind, "style": style, "start": start, "styles": style_count, "shares": shares}
            with results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the shares in the style, and of these with the subject asked for, without and with the start."""
    lines = ["| trained | style | from nothing: style, with subject | from the start: style, with subject |"]
    lines.append("|---|---|---|---|")
    by_key = {(record["kind"], record["style"], record["start"]): record["shares"] for record in results}
    for kind, style, start in by_key:
        if not start and (kind, style, True) in by_key:
            without, learned = by_key[kind, style, False], by_key[kind, style, True]
            cells = [f"{shares['learned']:.2f}, {shares['score']:.2f}" for shares in (without, learned)]
            lines.append(f"| {kind} | {style} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the records of all finished trials."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _snapshot_path(kind: str, work: Path) -> Path:
    return work / f"start-{kind}.pt"


def _restore(overlay: Overlay, path: Path) -> int:
    """Load the last snapshot, if there is one, and return how many styles it has seen."""
    if not path.exists():
        return 0
    snapshot = torch.load(path, weights_only=True)
    overlay.load_state_dict(snapshot["weights"])
    return snapshot["styles"]


def _keep(overlay: Overlay, path: Path, style_count: int) -> None:
    beside = path.with_suffix(".part")
    torch.save({"weights": overlay.state_dict(), "styles": style_count}, beside)
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("learn", "measure", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--kind", choices=("hypernetwork", "convolutions"), default="hypernetwork")
    parser.add_argument("--styles", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = arguments.work / "learned_start.jsonl"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.action == "learn":
        learn(arguments.kind, arguments.work, arguments.styles, arguments.minutes)
    elif arguments.action == "measure":
        if not _snapshot_path(arguments.kind, arguments.work).exists():
            parser.error(f"{_snapshot_path(arguments.kind, arguments.work)} is missing: do `learn` first")
        measure(arguments.kind, arguments.work, results)
    print(table(read_results(results)))


if __name__ == "__main__":
    main()
