"""Laying overlays over a base and taking them off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self, cast, get_args

from torch import Tensor

from velatura.errors import BadOverlay, NoEffect, UnknownName, UnsupportedBase
from velatura.overlays.effect import Effect
from velatura.overlays.hooks.context_hooks import CombineGroup, CombineMode
from velatura.overlays.hooks.seams import enable_dynamo_hook_guards
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import LiveStrength, Strength, disable_inference_mode
from velatura.overlays.target import Target
from velatura.prompts.strengths import PROMPT_SIDES, UNET_BLOCKS, PromptSide, UNetBlock


class Attachment:
    """An overlay in its place, until it is detached; as a context manager it detaches at the end."""

    def __init__(self, overlay: Overlay, target: Target, strength: LiveStrength, undos: ExitStack) -> None:
        self.overlay = overlay
        self._target = target.name  # not the model itself, which may go while this is kept
        self._changes, self._meter = target.changes, target.meter
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
        evaluations = sum(change.evaluations for change in self._changes)
        return self._meter.effect(str(self.overlay.card), self._target, evaluations)

    def refresh(self) -> None:
        """Take weights of the overlay and of the base as they are now.

        Weights that were written to in the usual ways are noticed. Only writes past autograd's knowledge are not, to
        weight.data or to memory that is shared, and those to tensors that were made in inference mode.
        """
        for change in self._changes:
            change.clear_cache()

    def detach(self) -> None:
        """Take the overlay off; the base is then as if it had never been there. Detaching twice does nothing."""
        self._remove_hooks()
        self._meter.warn_if_no_effect(str(self.overlay.card))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_more: object) -> None:
        if error is None:
            self.detach()
        else:
            self._remove_hooks()

    def _remove_hooks(self) -> None:
        enable_dynamo_hook_guards()
        self._undos.close()


def attach(
    target: object,
    overlay: Overlay,
    strength: float | Tensor | Strength = 1.0,
    *,
    on: PromptSide = "both",
    blocks: Sequence[UNetBlock] = UNET_BLOCKS,
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
    return _attach_to(Target.from_model(target, tuple(blocks)), overlay, strength, on)


class AttachSpec(NamedTuple):
    """An overlay and how it is to lie over a target among others; the options are those of attach."""

    overlay: Overlay
    strength: float | Tensor | Strength = 1.0
    blocks: Sequence[UNetBlock] = UNET_BLOCKS
    on: PromptSide = "both"


def attach_all(
    target: object,
    overlays: Iterable[AttachSpec | tuple[Overlay, float | Tensor | Strength, Sequence[UNetBlock]]],
    *,
    combine: CombineMode = "sequence",
) -> list[Attachment]:
    """Lay several overlays over a target, each in its own way, or none if one of them cannot lie there.

    overlays: each a Laid, or a tuple of its overlay, strength and blocks.
    combine: in "sequence" each acts on what the ones before it made, as in A1111. Else all act on the same context, and
    their changes are summed ("sum") or averaged ("average").
    """
    _check_choices("way to combine overlays", [combine], get_args(CombineMode))
    specs = [item if isinstance(item, AttachSpec) else AttachSpec(*item) for item in overlays]
    group = None if combine == "sequence" else CombineGroup(combine, len(specs))
    with ExitStack() as undos:
        attachments: list[Attachment] = []
        for overlay, strength, blocks, side in specs:
            attachments.append(_attach_to(Target.from_model(target, tuple(blocks), group), overlay, strength, side))
            undos.callback(attachments[-1].detach)
        undos.pop_all()
        return attachments


def _attach_to(target: Target, overlay: Overlay, strength: float | Tensor | Strength, side: PromptSide) -> Attachment:
    _check_choices("side of a guided batch", [side], PROMPT_SIDES)
    _check_choices("block of a UNet", target.blocks, UNET_BLOCKS)
    if not isinstance(cast("object", overlay), Overlay):
        raise BadOverlay(f"a {type(overlay).__name__} is no overlay: open its file with velatura.open_overlay first")
    if target.device.type == "meta":
        raise UnsupportedBase(
            f"{target.name} has no weights, only their shapes (it is on the meta device): load them before attaching"
        )
    live_strength = LiveStrength(strength, target.device, side)
    with disable_inference_mode():
        overlay.to(target.device)
    enable_dynamo_hook_guards()
    with ExitStack() as undos:
        hook_count = 0
        for undo in overlay.install_hooks(target, live_strength):
            undos.callback(undo)
            hook_count += 1
        if not hook_count:
            location = (
                ""
                if target.blocks == UNET_BLOCKS
                else f" in its blocks {', '.join(target.blocks) or '(none is named)'}"
            )
            raise NoEffect(
                f"{overlay.card} touches nothing in {target.name}{location}: attach it to a base it was made for"
            )
        return Attachment(overlay, target, live_strength, undos.pop_all())


def _check_choices(option: str, values: Iterable[str], choices: Sequence[str]) -> None:
    """Refuse an option by name, which would else be taken for another one."""
    for value in values:
        if value not in choices:
            raise UnknownName.with_suggestions(option, str(value)[:40], choices)
