"""Captions of tags by classifiers in ONNX: WD14 taggers and DeepDanbooru, from a local folder."""

import csv
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from velatura.errors import BadDataset, BadFile

RATING_CATEGORY = "9"  # of "general", "sensitive", ... in a WD14 tagger
WD14_TAG_FILE, BOORU_TAG_FILE = "selected_tags.csv", "tags.txt"
WD14_THRESHOLD, BOORU_THRESHOLD = 0.35, 0.5
EMOTICON_LENGTH = 3  # 0_0 and >_< keep their underscores


class OnnxSession(Protocol):
    """Part of an onnxruntime session that is used here."""

    def run(self, outputs: None, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the values of all outputs."""
        ...


@dataclass(frozen=True)
class Tagger:
    """Captioner that lists the tags above a threshold, WD14's by probability, DeepDanbooru's by the alphabet.

    Attributes:
        session: Classifier.
        input_name: Name of its input.
        pixels: Side of its input.
        tags: Tag of every output, None for a rating.
        threshold: Least probability of a tag.
        is_booru: DeepDanbooru and not WD14.
    """

    session: OnnxSession
    input_name: str
    pixels: int
    tags: Sequence[str | None]
    threshold: float
    is_booru: bool

    def caption(self, image: Image.Image) -> str:
        """Return the tags of an RGB picture, joined by commas."""
        (probabilities,) = self.session.run(None, {self.input_name: self._prepare_pixels(image)})[:1]
        scored_tags = [
            (float(probability), tag) for probability, tag in zip(probabilities[0], self.tags, strict=True) if tag
        ]
        likely = [(probability, tag) for probability, tag in scored_tags if probability >= self.threshold]
        ordered = sorted(likely, key=lambda pair: pair[1]) if self.is_booru else sorted(likely, reverse=True)
        return ", ".join(format_tag(tag) for _, tag in ordered)

    def _prepare_pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the picture on a white square, (1, pixels, pixels, 3): BGR to 255 (WD14) or RGB to 1 (booru)."""
        square = Image.new("RGB", (max(image.size), max(image.size)), "white")
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        values = np.asarray(square.resize((self.pixels, self.pixels), Image.Resampling.BICUBIC), dtype=np.float32)
        scaled = values / np.float32(255) if self.is_booru else values[..., ::-1]
        return np.ascontiguousarray(scaled[None], dtype=np.float32)


def open_tagger(folder: Path, threshold: float | None = None) -> Tagger:
    """Open a tagger: an .onnx file beside selected_tags.csv (WD14) or tags.txt (DeepDanbooru).

    Args:
        folder: Folder of both files.
        threshold: Least probability of a tag; by default 0.35 for WD14 and 0.5 for DeepDanbooru.

    Raises:
        BadDataset: The folder has no tagger, or onnxruntime is not installed.
        BadFile: A file is damaged, or the list of tags does not fit the model.
    """
    models = sorted(folder.glob("*.onnx"))
    is_booru = not (folder / WD14_TAG_FILE).is_file()
    if len(models) != 1 or (is_booru and not (folder / BOORU_TAG_FILE).is_file()):
        raise BadDataset(
            f"{folder} does not contain a tagger: put one .onnx file beside {WD14_TAG_FILE} or {BOORU_TAG_FILE}"
        )
    session, name, pixels, label_count = _open_session(models[0])
    tags = _read_booru_tags(folder / BOORU_TAG_FILE) if is_booru else _read_wd14_tags(folder / WD14_TAG_FILE)
    if len(tags) != label_count:
        raise BadFile(f"{models[0]} has {label_count} labels, its list has {len(tags)}: download both again")
    if threshold is None:
        threshold = BOORU_THRESHOLD if is_booru else WD14_THRESHOLD
    return Tagger(session, name, pixels, tags, threshold, is_booru)


def format_tag(tag: str) -> str:
    """Return a tag as prompts need it: spaces for underscores, and escaped parentheses."""
    spaced = tag if len(tag) <= EMOTICON_LENGTH else tag.replace("_", " ")
    return spaced.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _open_session(path: Path) -> tuple[OnnxSession, str, int, int]:
    """Return the model, the name of its input, the side of its input in pixels and the number of its labels."""
    try:
        onnx = importlib.import_module("onnxruntime")
    except ImportError:
        raise BadDataset(f"{path} needs onnxruntime: pip install onnxruntime") from None
    try:
        session = onnx.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        model_input, model_output = session.get_inputs()[0], session.get_outputs()[0]
        pixels, label_count = int(model_input.shape[1]), int(model_output.shape[-1])
    except Exception as error:  # noqa: BLE001 - its own errors share no other class
        reason = str(error)[:100]
        raise BadFile(f"{path} cannot be run as a tagger ({reason}): download it again") from None
    return cast("OnnxSession", session), str(model_input.name), pixels, label_count


def _read_wd14_tags(path: Path) -> list[str | None]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "category"} <= set(rows[0]):
        raise BadFile(f"{path} has no tags with a name and a category: download it again")
    return [None if row["category"] == RATING_CATEGORY else row["name"] for row in rows]


def _read_booru_tags(path: Path) -> list[str | None]:
    tags = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    return [None if tag.startswith("rating:") else tag for tag in tags]
