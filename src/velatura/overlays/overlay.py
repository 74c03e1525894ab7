"""What is laid over a base: the overlay, the card that describes it, and the act of attaching it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadStrength, NoEffect, UnsupportedBase
from velatura.overlays.seams import Undo, heed_hooks_when_compiled

Part = Literal["unet", "text"]


def printable(text: str) -> str:
    """Text that is safe to show in a terminal: breaks of lines become spaces, other control characters go away."""
    return "".join(each if each.isprintable() else " " for each in text if each.isprintable() or each.isspace())


Line = Annotated[str, AfterValidator(lambda text: printable(text)[:128])]
Paragraph = Annotated[str, AfterValidator(lambda text: printable(text)[:1000])]


class Card(BaseModel):
    """What an overlay is: kept in its file, shown to people, copied into recipes.

    structure holds what its kind needs to build it, outline the same in a few words; base_hash is short, as A1111's.
    Texts come from strangers' files: they are made printable, and cut where they are too long to show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Line
    name: Line = ""
    structure: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    outline: Paragraph = ""
    family: Line = ""
    base: Line = ""
    base_hash: Line = ""
    steps: Annotated[int, Field(ge=0, lt=2**53)] = 0
    trigger_words: Annotated[tuple[Line, ...], Field(max_length=100)] = ()
    note: Paragraph = ""

    def but(self, **changes: object) -> Self:
        """The same card with some fields changed."""
        return self.model_validate({**self.model_dump(), **changes})

    def __str__(self) -> str:
        trained = f"{self.steps:,} steps" if self.steps else ""
        head = f"{self.kind} {self.outline}".rstrip()
        return " · ".join(filter(None, (head, self.family, trained, " ".join(self.trigger_words))))


@dataclass(frozen=True)
class Target:
    """What overlays are laid over: the parts of a Base, of a diffusers pipeline, or a UNet alone."""

    name: str
    unet: nn.Module
    text: nn.Module | None

    @classmethod
    def of(cls, thing: object) -> Self:
        """Find the parts of anything that has a UNet, or is one."""
        if isinstance(thing, Base):
            return cls(thing.name, thing.unet, thing.text.model)
        unet: Any = getattr(thing, "unet", thing)
        if not isinstance(unet, nn.Module):
            raise UnsupportedBase(
                f"a {type(thing).__name__} has no UNet to lay an overlay over: "
                "attach to a velatura base, a diffusers pipeline or its UNet"
            )
        text: Any = getattr(thing, "text_encoder", None)
        return cls(type(thing).__name__, unet, text)

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return next(self.unet.parameters()).device


class Overlay(nn.Module):
    """A small network laid over a frozen base: it changes what flows through the base, never the base.

    A new overlay is in eval mode; whoever trains it calls train(), in which some kinds ignore their strength.
    """

    kind: ClassVar[str]
    touches: ClassVar[frozenset[Part]]
    card: Card

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build an overlay of the structure that a card describes, on the meta device: its weights come after."""
        raise NotImplementedError

    def hooks(self, target: Target, strength: Tensor) -> Iterator[Undo]:
        """Hang on the target and yield an undo for each thing done; strength is read whenever a hook runs."""
        raise NotImplementedError


class Attachment:
    """An overlay in its place, until it is detached; as a context manager it detaches at the end."""

    def __init__(self, overlay: Overlay, strength: Tensor, undos: ExitStack) -> None:
        self.overlay = overlay
        self._strength = strength
        self._undos = undos

    @property
    def strength(self) -> Tensor:
        """How strongly the overlay acts: 0 is off, 1 as it was trained; one value, or one for each row of the batch.

        Under guidance a batch holds every picture twice, so it takes twice as many values. A new strength counts from
        the next step on, and no compiled model is traced again for it.
        """
        return self._strength

    @strength.setter
    def strength(self, value: float | Tensor) -> None:
        wanted = strength_tensor(value).to(self._strength.device)
        with torch.no_grad():
            if wanted.shape == self._strength.shape:
                self._strength.copy_(wanted)
            else:
                self._strength.data = wanted  # the hooks hold on to this very tensor

    def detach(self) -> None:
        """Take the overlay off; the base is then as if it had never been there. Detaching twice does nothing."""
        heed_hooks_when_compiled()
        self._undos.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.detach()


def attach(target: object, overlay: Overlay, strength: float | Tensor = 1.0) -> Attachment:
    """Lay an overlay over a Base, a diffusers pipeline or a UNet.

    The overlay moves to the target's device. Several may lie over one target, the same one twice too: they act in the
    order in which they were attached, and come off in any.
    """
    place = Target.of(target)
    live = strength_tensor(strength).to(place.device)
    overlay.to(place.device)
    heed_hooks_when_compiled()
    with ExitStack() as undos:
        touched = 0
        for undo in overlay.hooks(place, live):
            undos.callback(undo)
            touched += 1
        if not touched:
            raise NoEffect(f"{overlay.card} touches nothing in {place.name}: attach it to a base it was made for")
        return Attachment(overlay, live, undos.pop_all())


def strength_tensor(value: float | Tensor) -> Tensor:
    """Turn a strength into a tensor of its own, 0-d or (batch,), refusing what is not finite."""
    wanted = torch.as_tensor(value, dtype=torch.float32).detach().clone()
    if wanted.ndim > 1 or not wanted.numel():
        raise BadStrength(f"a strength of shape {tuple(wanted.shape)} fits no batch: give one number, or one per row")
    if not bool(wanted.isfinite().all()):
        raise BadStrength(f"a strength must be finite, not {value}: 0 is off, 1 as trained")
    return wanted
