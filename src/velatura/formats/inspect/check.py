"""Open a file as it would be opened for use, to learn what opening it refuses and warns of.

A small file is opened whole. Of a large one only names and shapes are judged, so that listing a library stays fast:
its values are read when it is shown or used.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from velatura.card import UNKNOWN_KIND, Card
from velatura.errors import BadFile, UnsupportedBase, VelaturaError, redirect_warnings, warn
from velatura.face_restoration import open_face_detector, open_face_restorer
from velatura.formats.check_metadata import warn_of_metadata
from velatura.formats.checkpoints import diffusers_folder, single_file, vae_file
from velatura.formats.checkpoints.build_models import load_lone_vae
from velatura.formats.hypernetworks import optim
from velatura.formats.inspect.detectors import LONE_UNET
from velatura.formats.inspect.overlay import inspect_overlay
from velatura.formats.open import open_base, open_overlay
from velatura.formats.parts.found_parts import FoundParts
from velatura.overlays import KINDS
from velatura.tensors import open_state_dict, open_tensors
from velatura.upscaling import open_upscaler

MAX_WHOLE_BYTES = 2**24  # takes a few hundredths of a second
MAX_SHOWN_BYTES = 2**28  # of a checkpoint that is shown, of which more would take seconds
INCOMPLETE = ("without ", LONE_UNET)  # in the outline of a checkpoint whose other parts come from elsewhere
BASE_PREFIXES = ("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.", "first_stage_model.")


@dataclass(frozen=True)
class OpeningReport:
    """Problem and warnings of opening a file.

    Attributes:
        problem: Why it cannot be opened, "" if it can.
        warnings: The warnings of opening it.
        overlay: The report on an overlay that was opened whole; empty otherwise.
    """

    problem: str = ""
    warnings: tuple[str, ...] = ()
    overlay: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


def check_opening(path: Path, card: Card, *, is_whole: bool = False) -> OpeningReport:
    """Open a file as its kind, and report what is refused and warned of.

    Args:
        path: A file, or the folder of a peft adapter.
        card: What the file was recognised as.
        is_whole: Open an overlay whole, however large it is, and a checkpoint of up to MAX_SHOWN_BYTES.
    """
    overlay: Mapping[str, JsonValue] = {}
    messages: list[str] = []
    with redirect_warnings(messages.append), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        problem = ""
        try:
            if card.kind in KINDS and (is_whole or _byte_count(path) <= MAX_WHOLE_BYTES):
                overlay = _report_overlay(path)
            else:
                _open(path, card, MAX_SHOWN_BYTES if is_whole else MAX_WHOLE_BYTES)
        except UnsupportedBase as error:  # it is whole, and of another kind
            warn(str(error))
        except VelaturaError as error:
            problem = str(error)
    return OpeningReport(problem, tuple(dict.fromkeys(messages)), overlay)


def _report_overlay(path: Path) -> dict[str, JsonValue]:
    if path.is_dir():
        return {"card": open_overlay(path).card.model_dump(mode="json")}
    text = json.dumps(inspect_overlay(path).model_dump(mode="json"), ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"))  # a file name may contain invalid Unicode


def _open(path: Path, card: Card, max_bytes: int) -> None:
    """Open a file that is not an overlay, or look at the names and shapes of a large one."""
    if card.kind == "checkpoint" and path.is_dir():
        _open_folder(path, max_bytes)
    elif card.kind == "checkpoint":
        _open_checkpoint(path, card, max_bytes)
    elif card.kind == "vae" and path.is_file():
        _open_vae(path, max_bytes)
    elif path.suffix.lower() == optim.OPTIM_SUFFIX:
        optim.check_optim(path)
    elif card.kind == "upscaler" and _byte_count(path) <= MAX_WHOLE_BYTES:
        open_upscaler(path)
    elif card.kind == "face-restorer" and _byte_count(path) <= MAX_WHOLE_BYTES:
        open_face_restorer(path)
    elif card.kind == "face-detector" and _byte_count(path) <= MAX_WHOLE_BYTES:
        open_face_detector(path)
    elif card.kind == UNKNOWN_KIND and not card.outline and _byte_count(path) <= MAX_WHOLE_BYTES:
        _open_unknown(path)


def _open_folder(path: Path, max_bytes: int) -> None:
    """Open a small diffusers folder, or look at the configurations, names and shapes of a large one."""
    if not diffusers_folder.sniff(path):  # its card says that it has no UNet
        diffusers_folder.refuse_custom_code(path)
    elif _byte_count(path) <= max_bytes:
        open_base(path, dtype="float32", device="cpu")
    else:
        diffusers_folder.check_outline(path)


def _open_vae(path: Path, max_bytes: int) -> None:
    """Open a small file of an autoencoder, or look at the names of a large one."""
    contents = open_state_dict(path)
    sources = vae_file.sources(contents)
    vae_file.warn_of_leftovers(contents, sources)
    warn_of_metadata(contents, "vae", ())
    if _byte_count(path) <= max_bytes:
        with single_file.explain_damage(path.name, "autoencoder"):
            load_lone_vae(contents, sources)


def _open_checkpoint(path: Path, card: Card, max_bytes: int) -> None:
    """Open a small checkpoint, or look at the names and shapes of a large one."""
    if any(words in card.outline for words in INCOMPLETE):  # which says already that it is a part of a base
        single_file.check_lone_unet(open_state_dict(path))
    elif _byte_count(path) <= max_bytes:
        open_base(path, dtype="float32", device="cpu")
    else:
        single_file.check_outline(open_state_dict(path))


def _open_unknown(path: Path) -> None:
    """Open a file that was not recognised with the reader that takes its tensors.

    Raises:
        BadFile: That reader refuses them, or there is none.
    """
    contents = open_tensors(path)
    if contents.container == "picture" and not contents.payload:
        return  # most pictures hold no embedding
    if any(key.startswith(BASE_PREFIXES) for key in contents.tensors):
        _open_rest_of_base(path)
    elif vae_file.has_vae(contents):  # without the first convolutions that tell one
        _open_vae(path, MAX_WHOLE_BYTES)
    else:
        open_overlay(path)


def _open_rest_of_base(path: Path) -> None:
    """Refuse a file with tensors of a checkpoint that is neither one nor a text encoder of one.

    Raises:
        BadFile: It holds no whole part.
    """
    if FoundParts.open(path).texts:
        return
    try:
        open_base(path, dtype="float32", device="cpu")
    except UnsupportedBase as error:
        raise BadFile(str(error)) from None


def _byte_count(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
