"""Attach overlays to a base or a pipeline: overlays as they are, or by the paths of their files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from velatura.arguments import check_arguments
from velatura.errors import BadFile, BadOverlay
from velatura.files import suggest_similar
from velatura.formats.open import open_overlay
from velatura.overlays import attach as overlay_attach
from velatura.overlays.attach import Attachment, AttachSpec
from velatura.overlays.overlay import Overlay
from velatura.prompts.strengths import UNET_BLOCKS, PromptSide, UNetBlock
from velatura.tensors import StrPath

if TYPE_CHECKING:
    from torch import Tensor

    from velatura.overlays.hooks.context_hooks import CombineMode
    from velatura.overlays.strength import Strength

MAX_SPEC_LENGTH = len(AttachSpec._fields)


@check_arguments(skip={"overlay"})
def attach(
    target: object,
    overlay: Overlay | StrPath,
    strength: float | Tensor | Strength = 1.0,
    *,
    on: PromptSide = "both",
    blocks: Sequence[UNetBlock] = UNET_BLOCKS,
) -> Attachment:
    """Attach an overlay to a base, a diffusers pipeline or a UNet. The base itself is never written to.

    Several overlays may be attached to one target, also the same one twice. They act in the order in which they were
    attached, and can be detached in any order.

    Args:
        target: A velatura Base, a diffusers pipeline, or a UNet; also one wrapped by torch.compile.
        overlay: The overlay, or the path of its file. It moves to the target's device, and later follows the
            activations to theirs.
        strength: 0 is off, 1 is as trained; values below 0 and above 1 are allowed, those below -1 and above 2 are
            warned of. One number, or a tensor with one value for each picture or each row of a batch;
            Strength(text, unet) if the text encoders get another strength than the UNet.
        on: "prompt" or "negative" to act on these rows of a guided batch only. A UNet alone is expected to be called
            with the negative prompts first and then the prompts, as diffusers does. Diffusers' pipelines for
            perturbed attention and instruct-pix2pix have three rows for a picture, which are told apart. Where
            guidance is off, and where the order of the rows is not known, an error says so at the first step.
        blocks: The parts of the UNet in which the overlay acts: any of "in", "mid" and "out".

    Returns:
        The attachment, with which to change the strength, to measure the effect and to detach.

    Raises:
        BadFile: The file does not exist, or it cannot be read.
        BadOverlay: If `overlay` is not an overlay, or cannot act on such a target.
        BadStrength: If the strength is not finite.
        NoEffect: If the overlay changes nothing in the target, or nothing in these blocks.
        UnknownName: If `on` or `blocks` holds a word that is not listed above.
        UnsupportedBase: If the target has no UNet or no weights, or computes K and V out of reach.
        WrongBase: If the overlay was made for bases of another family.
    """
    return overlay_attach.attach(target, _open_if_path(overlay), strength, on=on, blocks=blocks)


@check_arguments()
def attach_all(
    target: object,
    overlays: Iterable[AttachSpec | Overlay | StrPath | tuple[object, ...]],
    *,
    combine: CombineMode = "sequence",
) -> list[Attachment]:
    """Attach several overlays to a target, or none of them if one cannot be attached.

    Args:
        target: A velatura Base, a diffusers pipeline, or a UNet.
        overlays: AttachSpec values, or tuples of overlay, strength and blocks, of which the last may be left out. An
            overlay alone has the strength 1. The path of its file may stand for an overlay.
        combine: "sequence": an overlay acts on the result of those before it, as in A1111. "sum" or "average": all act
            on the same input, and their changes are added or averaged.

    Returns:
        The attachments, in the order of the overlays.

    Raises:
        UnknownName: If `combine` is not one of these words.
        VelaturaError: Whatever `attach` raises for one of the overlays.
    """
    return overlay_attach.attach_all(target, [_to_spec(item) for item in overlays], combine=combine)


def _to_spec(item: object) -> AttachSpec:
    """Return the options of one overlay, with the overlay opened."""
    if isinstance(item, tuple):
        values = cast("tuple[Any, ...]", item)
        if not 1 <= len(values) <= MAX_SPEC_LENGTH:
            raise BadOverlay(f"{len(values)} values stand for an overlay: give overlay, strength and blocks")
        spec = item if isinstance(item, AttachSpec) else AttachSpec(*values)
        return spec._replace(overlay=_open_if_path(spec.overlay))
    return AttachSpec(_open_if_path(item))


def _open_if_path(overlay: object) -> Overlay:
    """Open the file that a path names; leave anything else as it is, which attaching refuses if it is not an overlay.

    Raises:
        BadFile: The file does not exist, or it cannot be read.
    """
    if not isinstance(overlay, str | PathLike):
        return cast("Overlay", overlay)
    path = Path(cast("StrPath", overlay)).expanduser()
    if not path.exists():
        raise BadFile(
            f"{path} does not exist{suggest_similar(path)}: give the path of an overlay's file; one in a library is "
            "opened by its name with velatura.Library(FOLDER).overlay(NAME)"
        )
    return open_overlay(path)
