"""Laying overlays over a base and taking them off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self, cast, get_args

from torch import Tensor

from velatura.errors import BadOverlay, NoEffect, UnknownName, UnsupportedBase
from velatura.overlays.contexts import Combine, Group
from velatura.overlays.effect import Effect
from velatura.overlays.overlay import Overlay
from velatura.overlays.seams import heed_hooks_when_compiled
from velatura.overlays.strength import LiveStrength, Strength, writable
from velatura.overlays.target import Target
from velatura.prompts.strengths import BLOCKS, SIDES, Block, Side


class Attachment:
    """An overlay in its place, until it is detached; as a context manager it detaches at the end."""

    def __init__(self, overlay: Overlay, target: Target, strength: LiveStrength, undos: ExitStack) -> None:
        self.overlay = overlay
        self._target = target.name  # not the model itself, which may go while this is kept
        self._changes, self._listener = target.changes, target.listener
        self._strength = strength
        self._undos = undos

    def __repr__(self) -> str:
        return f"Attachment({self.overlay.card} on {self._target})"

    @property
    def strength(self) -> Tensor:
        """How strongly the overlay acts: 0 is off, 1 as it was trained; one value, or one for each picture or row.

        A new strength counts from the next step on, and no compiled model is traced again for it. This is a copy, and
        that of the UNet where the text towers have another: see text_strength. A Strength sets both.
        """
        return self._strength.tensor.clone()

    @property
    def text_strength(self) -> Tensor:
        """How strongly it acts in the text towers; a copy."""
        return self._strength.text.tensor.clone()

    @strength.setter
    def strength(self, value: float | Tensor | Strength) -> None:
        self._strength.set(value)

    @property
    def effect(self) -> Effect:
        """What it touches, and, after a first step, how much it changes there; printable, and JSON by model_dump."""
        evaluations = sum(each.evaluations for each in self._changes)
        return self._listener.effect(str(self.overlay.card), self._target, evaluations)

    def refresh(self) -> None:
        """Take weights of the overlay and of the base as they are now.

        Weights that were written to in the usual ways are noticed. Only writes past autograd's knowledge are not, to
        weight.data or to memory that is shared, and those to tensors that were made in inference mode.
        """
        for each in self._changes:
            each.forget()

    def detach(self) -> None:
        """Take the overlay off; the base is then as if it had never been there. Detaching twice does nothing."""
        self._take_off()
        self._listener.warn_if_idle(str(self.overlay.card))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_more: object) -> None:
        if error is None:
            self.detach()
        else:
            self._take_off()

    def _take_off(self) -> None:
        heed_hooks_when_compiled()
        self._undos.close()


def attach(
    target: object,
    overlay: Overlay,
    strength: float | Tensor | Strength = 1.0,
    *,
    on: Side = "both",
    blocks: Sequence[Block] = BLOCKS,
) -> Attachment:
    """Lay an overlay over a Base, a diffusers pipeline or a UNet.

    The overlay moves to the target's device, and later goes wherever its contexts are. Several may lie over one target,
    the same one twice too: they act in the order in which they were attached, and come off in any.

    strength: one number, or a tensor of one for each picture of a batch, or for each row of it; Strength(text, unet)
    where the text towers get another than the UNet.
    on: whether it acts for the prompt only, or the negative prompt only, where a guided batch holds the negative
    prompts first and then the prompts, as diffusers lays it out.
    blocks: the parts of the UNet it acts in, of "in", "mid" and "out".
    """
    return _laid(Target.of(target, tuple(blocks)), overlay, strength, on)


class Laid(NamedTuple):
    """An overlay and how it is to lie over a target among others; the options are those of attach."""

    overlay: Overlay
    strength: float | Tensor | Strength = 1.0
    blocks: Sequence[Block] = BLOCKS
    on: Side = "both"


def attach_all(
    target: object,
    overlays: Iterable[Laid | tuple[Overlay, float | Tensor | Strength, Sequence[Block]]],
    *,
    combine: Combine = "sequence",
) -> list[Attachment]:
    """Lay several overlays over a target, each in its own way, or none if one of them cannot lie there.

    overlays: each a Laid, or a tuple of its overlay, strength and blocks.
    combine: in "sequence" each acts on what the ones before it made, as in A1111. Else all act on the same context, and
    their changes are summed ("sum") or averaged ("average").
    """
    _refuse_unknown("way to combine overlays", [combine], get_args(Combine))
    listed = [each if isinstance(each, Laid) else Laid(*each) for each in overlays]
    group = None if combine == "sequence" else Group(combine, len(listed))
    with ExitStack() as undos:
        laid: list[Attachment] = []
        for overlay, strength, blocks, side in listed:
            laid.append(_laid(Target.of(target, tuple(blocks), group), overlay, strength, side))
            undos.callback(laid[-1].detach)
        undos.pop_all()
        return laid


def _laid(place: Target, overlay: Overlay, strength: float | Tensor | Strength, side: Side) -> Attachment:
    _refuse_unknown("side of a guided batch", [side], SIDES)
    _refuse_unknown("block of a UNet", place.blocks, BLOCKS)
    if not isinstance(cast("object", overlay), Overlay):
        raise BadOverlay(f"a {type(overlay).__name__} is no overlay: open its file with velatura.open_overlay first")
    if place.device.type == "meta":
        raise UnsupportedBase(
            f"{place.name} has no weights, only their shapes (it is on the meta device): load them before attaching"
        )
    live = LiveStrength(strength, place.device, side)
    with writable():
        overlay.to(place.device)
    heed_hooks_when_compiled()
    with ExitStack() as undos:
        touched = 0
        for undo in overlay.hooks(place, live):
            undos.callback(undo)
            touched += 1
        if not touched:
            where = "" if place.blocks == BLOCKS else f" in its blocks {', '.join(place.blocks) or '(none is named)'}"
            raise NoEffect(
                f"{overlay.card} touches nothing in {place.name}{where}: attach it to a base it was made for"
            )
        return Attachment(overlay, place, live, undos.pop_all())


def _refuse_unknown(what: str, found: Iterable[str], known: Sequence[str]) -> None:
    """Refuse an option by name, which would else be taken for another one."""
    for each in found:
        if each not in known:
            raise UnknownName.among(what, str(each)[:40], known)
