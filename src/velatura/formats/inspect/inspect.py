"""Inspection of any file of weights: what it is, told by names and shapes, never by weights or the file's name."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from velatura.card import UNKNOWN_KIND, Card, FileInfo, printable_text
from velatura.errors import BadFile, ignore_warnings
from velatura.formats.checkpoints import INDEX_FILE
from velatura.formats.hypernetworks import hns
from velatura.formats.hypernetworks.optim import OPTIM_SUFFIX
from velatura.formats.inspect.check import check_opening
from velatura.formats.inspect.detectors import (
    DETECTORS,
    CardAndDialect,
    describe_channels,
    guess_checkpoint_family,
    guess_unsupported,
    named_tensors,
)
from velatura.formats.json_files import read_json_object
from velatura.formats.loras.detect import find_state_dict, lora_details
from velatura.formats.loras.keys import sort_keys
from velatura.formats.loras.layer_bounds import choose_family
from velatura.formats.loras.read_peft import find_adapters, join_adapters
from velatura.formats.metadata import (
    aliases,
    card_fields_from_metadata,
    claimed_hashes,
    family_from_metadata,
    metadata_details,
)
from velatura.overlays.composition import leaves
from velatura.tensors import Contents, StateDict, open_meta

PICTURE_CONTAINER = "picture"  # which need not hold an embedding
MAX_MESSAGE_LENGTH = 1000  # characters
MAX_PIPELINE_LENGTH = 100  # characters of a pipeline's class name


def inspect_file(path: str | PathLike[str], *, is_whole: bool = False) -> FileInfo:
    """Say what a file of weights is, or a folder of a model or an adapter.

    Args:
        path: A safetensors or torch file, a composition (.hns), a diffusers folder, or a folder of peft.
        is_whole: Read all values of an overlay, however large it is, so that `problem` and `warnings` are complete.

    Returns:
        What the file is; its card has the kind "unknown" for a file of tensors that velatura does not know.

    Raises:
        BadFile: The file is damaged, or is not a file of tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        info = _inspect_folder(path) if (path / INDEX_FILE).is_file() else _inspect_adapter(path)
        return _check(path, info, is_whole=is_whole)
    if path.suffix.lower() == hns.HNS_SUFFIX:
        names = dict.fromkeys(leaf.name for leaf in leaves(hns.read_hns(path)))
        return FileInfo(card=Card(kind="hypernet", outline=f"of {', '.join(names)}"), dialect="hns", container="text")
    with ignore_warnings():  # opening the file gives these warnings
        info = _inspect_contents(open_meta(path))
    may_be_empty = info.container == PICTURE_CONTAINER or path.suffix.lower() == OPTIM_SUFFIX
    if not info.tensors and not may_be_empty:
        problem = f"{path.name} holds no tensors, so it is not a model: download or export it again"
        return info.model_copy(update={"problem": problem})
    return _check(path, info, is_whole=is_whole)


def _check(path: Path, info: FileInfo, *, is_whole: bool) -> FileInfo:
    """Add what opening the file for use refuses and warns of."""
    report = check_opening(path, info.card, is_whole=is_whole)
    return info.model_copy(
        update={
            "problem": printable_text(report.problem)[:MAX_MESSAGE_LENGTH],
            "warnings": tuple(printable_text(message)[:MAX_MESSAGE_LENGTH] for message in report.warnings),
            "report": dict(report.overlay),
        }
    )


def _inspect_folder(path: Path) -> FileInfo:
    """Say what a folder in diffusers' layout holds, by its configurations."""
    index, unet_config = read_json_object(path / INDEX_FILE), read_json_object(path / "unet" / "config.json")
    width, channels = unet_config.get("cross_attention_dim"), unet_config.get("in_channels")
    card = Card(
        kind="checkpoint",
        outline=describe_channels(channels) if isinstance(channels, int) else "without a UNet",
        family=guess_checkpoint_family(width if isinstance(width, int) else 0),
    )
    pipeline = index.get("_class_name")
    details = {"pipeline": str(pipeline)[:MAX_PIPELINE_LENGTH]} if pipeline else {}
    return FileInfo(card=card, dialect="diffusers", container="folder", details=details)


def _inspect_adapter(folder: Path) -> FileInfo:
    """Say what the adapters in a folder of peft hold together."""
    state = join_adapters({part: find_state_dict(open_meta(path)) for part, path in find_adapters(folder).items()})
    return _inspect_contents(Contents(folder, state)).model_copy(update={"dialect": "peft", "container": "folder"})


def _inspect_contents(contents: Contents) -> FileInfo:
    state, metadata = named_tensors(contents), contents.metadata
    card, dialect = _detect(contents, state)
    if dialect != "velatura":
        card = card.replace(**card_fields_from_metadata(metadata))
    details = metadata_details(metadata)
    if card.kind == "lora":
        details |= lora_details(find_state_dict(contents).keys())
    return FileInfo(
        card=card.replace(family=_choose_family(card, contents)),
        dialect=dialect,
        container=contents.container,
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        precisions=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})),
        aliases=tuple(dict.fromkeys(filter(None, (card.name, *aliases(metadata))))),
        claimed_hashes=claimed_hashes(metadata),
        details=details,
    )


def _choose_family(card: Card, contents: Contents) -> str:
    """Return the family that a file is for; metadata count only where the tensors do not contradict them."""
    stated = family_from_metadata(contents.metadata)
    if card.kind != "lora":
        return card.family or stated
    try:
        layers = sort_keys(find_state_dict(contents).keys(), contents.path.name).layers
    except BadFile:  # opening it says why
        layers = {}
    return choose_family(card.family, layers, stated)


def _detect(contents: Contents, state: StateDict) -> CardAndDialect:
    for detect in DETECTORS:
        result = detect(contents, state)
        if result is not None:
            return result
    return Card(kind=UNKNOWN_KIND, outline=guess_unsupported(state)), ""
