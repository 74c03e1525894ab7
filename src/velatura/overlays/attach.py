"""Attaching overlays to a base, and detaching them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Self, get_args

from torch import Tensor

from velatura.arguments import describe_value
from velatura.errors import BadOverlay, NoEffect, UnknownName, UnsupportedBase, warn
from velatura.overlays.effect import Effect
from velatura.overlays.hooks.context_hooks import CombineGroup, CombineMode
from velatura.overlays.hooks.guided_rows import GuidedRows
from velatura.overlays.hooks.module_attributes import warn_of_copies
from velatura.overlays.hooks.seams import enable_dynamo_hook_guards, has_overlays, hook_batch_size
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import LiveStrength, Strength, disable_inference_mode
from velatura.overlays.target import Target
from velatura.prompts.strengths import PROMPT_SIDES, UNET_BLOCKS, PromptSide, UNetBlock

if TYPE_CHECKING:
    from velatura.base.base import Base

# Strengths at which overlays are used: A1111's slider of hypernetworks ends at 1; the pages of LoRAs that are sliders
# ("age", "detail") advise up to -5 and 5
USUAL_STRENGTHS = (-1.0, 2.0)
USUAL_STRENGTHS_BY_KIND = {"lora": (-5.0, 5.0)}


class Attachment:
    """One overlay attached to a base or a pipeline. As a context manager, it detaches the overlay at the end.

    `attach` returns it. Set `strength` at any time, also between two steps of a generation.

    Attributes:
        overlay: The attached overlay.
    """

    def __init__(
        self, overlay: Overlay, target: Target, strength: LiveStrength, undos: ExitStack, parts: _AttachedParts
    ) -> None:
        self.overlay = overlay
        self._parts = parts
        self._target = target.name  # only the name, so that the model can be freed while the attachment is kept
        self._changes, self._meter = target.changes, target.meter
        self._strength = strength
        self._undos = undos
        self._is_attached = True
        self._is_warned_of_range = False
        self._warn_of_unusual_strength()

    def __repr__(self) -> str:
        return f"Attachment({self.overlay.card} on {self._target})"

    @property
    def strength(self) -> Tensor:
        """Return a copy of the strength in the UNet: 0 is off, 1 is as trained.

        Set it to a number, to a tensor with one value for each picture or each row of a batch, or to
        Strength(text, unet). A new strength counts from the next step on; a compiled model is not traced again.

        Returns:
            A float32 tensor, 0-d or (pictures,) or (rows,). If the text encoders have another strength, see
            `text_strength`.

        Warns of a strength far outside of 0 to 1, of one that is set after the overlay was detached, and if the model
        has another UNet or text encoder by now, in which the overlay does not act.

        Raises:
            BadStrength: On setting, if the value is not a finite number or a vector of finite numbers.
        """
        return self._strength.tensor.clone()

    @property
    def text_strength(self) -> Tensor:
        """Return a copy of the strength in the text encoders."""
        return self._strength.text.tensor.clone()

    @strength.setter
    def strength(self, value: float | Tensor | Strength) -> None:
        self._strength.set(value)
        if self._is_attached:
            self._parts.warn_if_replaced(self.overlay, self._target)
        else:
            warn(f"{self.overlay.card} is detached, so its strength changes nothing in {self._target}: attach it again")
        self._warn_of_unusual_strength()

    @property
    def effect(self) -> Effect:
        """Measure which layers, contexts and words the overlay changes and, after a first step, by how much.

        Warns if the model has another UNet or text encoder by now, in which the overlay does not act.

        Returns:
            An Effect: print it, or turn it into JSON with model_dump.
        """
        if self._is_attached:
            self._parts.warn_if_replaced(self.overlay, self._target)
        evaluations = sum(change.evaluations for change in self._changes)
        return self._meter.effect(str(self.overlay.card), self._target, evaluations)

    def refresh(self) -> None:
        """Clear all caches, so that the current weights of the overlay and of the base are used.

        Ordinary writes to weights are noticed without it. Call it after writes that autograd does not see: to
        `weight.data`, to shared memory, or to tensors that were made in inference mode.
        """
        for change in self._changes:
            change.clear_cache()

    def detach(self) -> None:
        """Remove the overlay's hooks. The base is then exactly as it was before; a second call does nothing.

        Warns if the overlay was active and changed nothing, and if the model has another UNet or text encoder by now,
        in which the overlay did not act.
        """
        self._remove_hooks()
        self._parts.warn_if_replaced(self.overlay, self._target)
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
        self._is_attached = False

    def _warn_of_unusual_strength(self) -> None:
        """Warn, once for each attachment, of a strength at which overlays rarely give a usable picture."""
        if self._is_warned_of_range:
            return
        lowest, highest = USUAL_STRENGTHS_BY_KIND.get(self.overlay.kind, USUAL_STRENGTHS)
        unusual = next((number for number in self._strength.numbers if not lowest <= number <= highest), None)
        if unusual is not None:
            self._is_warned_of_range = True
            warn(
                f"{self.overlay.card} has a strength of {unusual:g}, where 1 is as trained: pictures usually fall "
                f"apart beyond {lowest:g} to {highest:g}"
            )


class _AttachedParts:
    """UNet and text encoders to which an overlay was attached, and the model that had them.

    Only weak references are kept, so that the model can be freed while the attachment is kept.
    """

    def __init__(self, model: object, target: Target) -> None:
        try:
            self._model: Callable[[], object] = weakref.ref(model)
        except TypeError:  # a class with slots, of which nothing can be told later
            self._model = lambda: None
        self._parts = {name: weakref.ref(module) for name, module in target.parts.items()}

    def warn_if_replaced(self, overlay: Overlay, target_name: str) -> None:
        """Warn, once, of parts that were replaced while the overlay was attached, as by `pipe.unet = other`."""
        model = self._model()
        if model is None or not self._parts:
            return
        try:
            current = Target.from_model(model).parts
        except UnsupportedBase:  # the UNet was taken away, for instance to free its memory
            return
        replaced = [name for name, part in self._parts.items() if name in current and current[name] is not part()]
        if replaced:
            self._parts = {}
            warn(
                f"{overlay.card} was attached to another {' and '.join(replaced)} than {target_name} has now: since it "
                "was replaced, pictures are made without the overlay there; detach before you replace it, then attach "
                "again"
            )


def attach(
    target: object,
    overlay: Overlay,
    strength: float | Tensor | Strength = 1.0,
    *,
    on: PromptSide = "both",
    blocks: Sequence[UNetBlock] = UNET_BLOCKS,
) -> Attachment:
    """Attach an overlay to a base, a diffusers pipeline or a UNet; see `velatura.attach`, which opens files too.

    Args:
        target: A velatura Base, a diffusers pipeline, or a UNet.
        overlay: The overlay.
        strength, on, blocks: See `velatura.attach`.

    Raises:
        VelaturaError: As `velatura.attach` raises.
    """
    _check_overlay(target, overlay)
    return _attach_to(target, Target.from_model(target, tuple(blocks)), overlay, strength, on)


class AttachSpec(NamedTuple):
    """An overlay for `attach_all`, with its options.

    Attributes:
        overlay, strength, blocks, on: The arguments of `attach`.
    """

    overlay: Overlay
    strength: float | Tensor | Strength = 1.0
    blocks: Sequence[UNetBlock] = UNET_BLOCKS
    on: PromptSide = "both"


def attach_all(
    target: object,
    overlays: Iterable[AttachSpec],
    *,
    combine: CombineMode = "sequence",
) -> list[Attachment]:
    """Attach several overlays to a target, or none of them if one cannot be attached; see `velatura.attach_all`.

    Args:
        target: A velatura Base, a diffusers pipeline, or a UNet.
        overlays: The overlays with their options.
        combine: See `velatura.attach_all`.

    Raises:
        VelaturaError: As `velatura.attach_all` raises.
    """
    _check_choices("way to combine overlays", [combine], get_args(CombineMode))
    specs = list(overlays)
    group = None if combine == "sequence" else CombineGroup(combine, len(specs))
    with ExitStack() as undos:
        attachments: list[Attachment] = []
        for overlay, strength, blocks, side in specs:
            _check_overlay(target, overlay)
            part = Target.from_model(target, tuple(blocks), group)
            attachments.append(_attach_to(target, part, overlay, strength, side))
            undos.callback(attachments[-1].detach)
        undos.pop_all()
        return attachments


def _attach_to(
    model: object, target: Target, overlay: Overlay, strength: float | Tensor | Strength, side: PromptSide
) -> Attachment:
    _check_choices("side of a guided batch", [side], PROMPT_SIDES)
    _check_choices("block of a UNet", target.blocks, UNET_BLOCKS)
    if target.device.type == "meta":
        raise UnsupportedBase(
            f"{target.name} has no weights, only their shapes (it is on the meta device): load them before attaching"
        )
    rows = GuidedRows(target.name, target.unet, model, is_base=target.text is not None)
    live_strength = LiveStrength(strength, target.device, side, rows)
    with disable_inference_mode():
        overlay.to(target.device)
    enable_dynamo_hook_guards()
    with ExitStack() as undos:
        if rows.needs_batch_size:
            for undo in hook_batch_size(target.unet, rows.record_batch_size):
                undos.callback(undo)
        hook_count = 0
        for undo in overlay.install_hooks(target, live_strength):
            undos.callback(undo)
            hook_count += 1
        if not hook_count:
            raise NoEffect(
                f"{overlay.card} changes nothing in {target.name}{_describe_blocks(target.blocks)}: "
                "attach it to a base that it was made for"
            )
        for name, part in target.parts.items():
            if has_overlays(part):
                descriptions = (f"its {name}", f"a part of its {name}")
                messages = (_describe_copy(overlay, target.name, described) for described in descriptions)
                undos.callback(warn_of_copies(part, *messages))
        return Attachment(overlay, target, live_strength, undos.pop_all(), _AttachedParts(model, target))


def _describe_copy(overlay: Overlay, target_name: str, copied: str) -> str:
    return (
        f"{overlay.display_name} is attached to {target_name}, and a copy of {copied} is made without it: "
        "attach it to the copy too, or detach it before you copy or pickle the model"
    )


def warn_of_overlays_left_out(base: Base, use: str) -> None:
    """Warn that the weights of a base do not have what is attached to it.

    Args:
        base: The base whose weights are used.
        use: What is done without the overlays, such as "base.safetensors is written".
    """
    if any(map(has_overlays, (base.unet, *(encoder.model for encoder in base.text.encoders)))):
        warn(
            f"an overlay is attached to {base.name}, and {use} without it: bake the overlay into the weights first "
            "(velatura.bake), or detach it"
        )


def _check_overlay(target: object, overlay: object) -> None:
    """Refuse what is not an overlay, and an overlay in place of the target."""
    if isinstance(target, Overlay):
        raise UnsupportedBase(
            f"{target.display_name} is an overlay, where a base is expected: give the base first, and then the overlay"
        )
    if not isinstance(overlay, Overlay):
        raise BadOverlay(
            f"{describe_value(overlay)} is not an overlay: give one, or the path of its file; the base comes first"
        )


def _describe_blocks(blocks: tuple[UNetBlock, ...]) -> str:
    if blocks == UNET_BLOCKS:
        return ""
    return f" in its blocks {', '.join(blocks)}" if blocks else " because blocks is empty"


def _check_choices(option: str, values: Iterable[str], choices: Sequence[str]) -> None:
    """Refuse values that are not among the choices."""
    for value in values:
        if value not in choices:
            raise UnknownName.with_suggestions(option, str(value)[:40], choices)
