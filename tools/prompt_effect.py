"""python -m tools.prompt_effect WORK: how much an overlay leaves of a prompt's effect, and what pictures keep of it.

Every kind is trained on the bundled neon pictures for a few steps, at a rate near that of its preset and at others. At
several strengths the effect on predictions is measured, as every training ends with it, and twelve prompts are painted
as `velatura.tune` does. What was measured is kept in tools/prompt_effect.json, and docs/training.md gets the table of
it. What is in WORK already is not trained or measured again: give another WORK after a preset has changed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import velatura
from velatura.compare.likeness import likeness
from velatura.compare.picture_features import PictureEncoder
from velatura.compare.tune import TINY_STEPS, StrengthPainter, kept_share, select_references
from velatura.compare.tune_prompts import tune_prompts
from velatura.files import atomic_write
from velatura.training.run.prompt_effect import PromptEffectMeter

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "training.md"
TABLE = re.compile(r"<!-- table: prompt-effect -->.*?<!-- end -->", re.DOTALL)
PICTURES, SEED = "neon", 0
STEPS, BATCH_SIZE = 50, 4
STRENGTHS = (0.5, 1.0, 1.5)
RATES = {  # of each kind
    "hypernet": ("3e-4", "3e-3", "1e-2"),
    "lora": ("2e-4", "2e-3", "2e-2"),
    "embedding": ("2e-2", "5e-1"),
    "dreambooth": ("6e-4", "2e-3"),
}
NAMES = {"hypernet": "hypernetwork", "lora": "LoRA", "dreambooth": "DreamBooth"}


class Measurement(NamedTuple):
    """One overlay at one strength: its effect on predictions, and what pictures show.

    Attributes:
        kind, rate, strength: What was trained, at which rate, and how strongly it acts.
        change, prompt_left: See `velatura.training.run.prompt_effect.PromptEffect`.
        kept, likeness: As `velatura.tune` measures them.
        own_prompt: Share of pictures to which, of all prompts, their own is nearest by the base's CLIP.
    """

    kind: str
    rate: str
    strength: float
    change: float
    prompt_left: float
    kept: float
    own_prompt: float
    likeness: float


def make(base: velatura.Base, kind: str) -> velatura.Overlay:
    """Return a new overlay of a kind."""
    makers: dict[str, Callable[[], velatura.Overlay]] = {
        "hypernet": lambda: velatura.Hypernetwork.for_base(
            base, layers=(1, 2, 1), activation="relu", name=PICTURES, seed=SEED
        ),
        "lora": lambda: velatura.Lora.for_base(base, targets="conv", name=PICTURES, seed=SEED),
        "embedding": lambda: velatura.Embedding.for_base(base, vectors=4, initial="*", name=PICTURES, seed=SEED),
        "dreambooth": lambda: velatura.Difference.for_base(base, name=PICTURES),
    }
    return makers[kind]()


def open_trained(base: velatura.Base, kind: str, rate: str, work: Path) -> velatura.Overlay:
    """Train an overlay, or open the one that is in the work folder."""
    run = work / f"{kind}-{rate}"
    file = run / f"{PICTURES}.safetensors"
    if not file.exists():
        shutil.rmtree(run, ignore_errors=True)
        fields = {"steps": STEPS, "learning_rate": rate, "batch_size": BATCH_SIZE, "snapshot_every": 0}
        fields |= {"validation_pictures": 0, "warmup": 0}
        plan = velatura.Plan.preset(kind, "tiny").replace(**fields, end_sheet=False, tune=False)
        velatura.train(base, make(base, kind), velatura.tiny_pictures(PICTURES), plan, out=run)
    return velatura.open_overlay(file)


def measure(encoder: PictureEncoder, overlay: velatura.Overlay, kind: str, rate: str) -> list[Measurement]:
    """Measure an overlay at each of the strengths."""
    references = select_references(velatura.tiny_pictures(PICTURES))
    prompts = tune_prompts(overlay, [], is_tiny=True)
    texts = [prompt.text for prompt in prompts]
    painter = StrengthPainter(encoder.base, overlay, prompts, 1, TINY_STEPS)
    features = [encoder.features(painter.paint(strength)) for strength in (0.0, *STRENGTHS)]
    near = likeness(features, encoder.features(references.images)).mean(dim=1)
    kept = kept_share(features, texts).mean(dim=1)
    assert encoder.clip is not None  # the tiny base has one
    text_embeddings = encoder.clip.encode_texts(texts)
    meter = PromptEffectMeter(encoder.base, overlay)
    measured: list[Measurement] = []
    for number, strength in enumerate(STRENGTHS, 1):
        effect, pictures = meter.measure(strength), features[number].clip
        assert pictures is not None
        nearest = (pictures @ text_embeddings.T).argmax(dim=1)
        own_prompt = (nearest == torch.arange(len(texts))).float().mean()
        figures = (effect.change, effect.prompt_left, kept[number], own_prompt, near[number])
        measured.append(Measurement(kind, rate, strength, *(round(float(figure), 4) for figure in figures)))
    return measured


def table(measurements: Sequence[Measurement]) -> str:
    """Return the table, a row for each strength of each overlay."""
    columns = "overlay, learning rate, strength, changes, prompt left, kept in pictures, own prompt by CLIP, likeness"
    rows = [f"| {columns.replace(', ', ' | ')} |"]
    rows.append("|" + "---|" * 8)
    for measurement in measurements:
        kind, rate, strength, change, *shares, likeness_to_pictures = measurement
        cells = (
            NAMES.get(kind, kind),
            f"{float(rate):g}",
            f"{strength:g}",
            f"{change:.2f}",
            *(f"{100 * share:.1f} %" for share in shares),
            f"{round(likeness_to_pictures, 2) + 0:.2f}",  # no -0.00
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def read_results(path: Path = RESULTS) -> list[Measurement]:
    """Return what was measured."""
    return [Measurement(*values) for values in json.loads(path.read_text())]


def fill_table(text: str, measurements: Sequence[Measurement]) -> str:
    """Return the text of the page with the table between its marks."""
    return TABLE.sub(lambda _mark: f"<!-- table: prompt-effect -->\n\n{table(measurements)}\n\n<!-- end -->", text)


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work: Path = parser.parse_args().work
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    encoder, measurements = PictureEncoder.open(velatura.tiny()), list[Measurement]()
    for kind, rates in RATES.items():
        for rate in rates:
            file = work / f"{kind}-{rate}.json"
            if not file.exists():
                found = measure(encoder, open_trained(encoder.base, kind, rate, work), kind, rate)
                with atomic_write(file) as temp_path:
                    temp_path.write_text(json.dumps(found))
            measurements += [Measurement(*values) for values in json.loads(file.read_text())]
            print(table(measurements[-len(STRENGTHS) :]), flush=True)
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, measurements)) + "\n]\n")
    PAGE.write_text(fill_table(PAGE.read_text("utf-8"), measurements), "utf-8")


if __name__ == "__main__":
    main()
