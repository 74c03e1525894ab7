"""Aesthetic gradients: prompts that are drawn towards the look of a set of pictures, each by a few steps of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.base.text import ROOM
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.overlays.conditioned import TunedConditioning
from velatura.overlays.overlay import Card, Overlay, Part
from velatura.overlays.seams import Undo, on_conditioning
from velatura.overlays.strength import LiveStrength, writable
from velatura.overlays.target import Target
from velatura.overlays.tuning import Tuning, own_projection, slerp, width_of
from velatura.prompts.strengths import MOST_STEPS

NO_TEXT = 0  # the text width of an embedding without projection


class Settings(BaseModel):
    """How prompts are drawn, and the shapes of what they are drawn to: features of CLIP's, and of a token's vector.

    blend: how the strength goes from the prompt to what became of it. text draws the look itself a little to, or away
    from, what some words say, by text_angle of the way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(ge=1, le=2**14)
    text_width: int = Field(default=NO_TEXT, ge=0, le=2**14)
    steps: int = Field(default=5, ge=0, le=MOST_STEPS)
    rate: float = Field(default=1e-4, ge=0, le=1, allow_inf_nan=False)
    blend: Literal["lerp", "slerp"] = "lerp"
    text: str = Field(default="", max_length=1000)
    text_angle: float = Field(default=0.1, ge=0, le=1)
    text_negative: bool = False

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Check the fields; what is wrong is one BadOverlay."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "settings"
            raise BadOverlay(f"an aesthetic's {place} is {str(first['input'])[:40]}: {first['msg'].lower()}") from None


class Aesthetic(Overlay):
    """The mean of what CLIP says of some pictures: while it lies over a base, prompts are drawn towards that.

    A copy of the text tower takes a few gradient steps for each prompt, and says it in the tower's place; the base is
    never written to. Negative prompts are left alone, and prompts without words. vector: (features,); projection:
    (features, text width), by which CLIP's own text tower says texts beside pictures, or None where that is not known.
    """

    kind: ClassVar[str] = "aesthetic"
    touches: ClassVar[frozenset[Part]] = frozenset({"text"})

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.settings = Settings.of(card.structure)
        self.card = _told(card, self.settings)
        self.vector = nn.Parameter(torch.zeros(self.settings.width), requires_grad=False)
        self.projection: nn.Parameter | None = None
        if self.settings.text_width:
            shape = self.settings.width, self.settings.text_width
            self.projection = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build one of the card's widths on the meta device: its vector comes after."""
        with torch.device("meta"):
            return cls(card)

    @classmethod
    def of(cls, vector: Tensor, projection: Tensor | None = None, *, name: str = "", **settings: object) -> Self:
        """Make one of a vector (features,) and a projection; settings are those of Settings."""
        shapes = {"width": vector.numel(), "text_width": NO_TEXT if projection is None else projection.shape[-1]}
        with writable():
            made = cls(Card(kind=cls.kind, name=name, structure={**shapes, **cast("dict[str, Any]", settings)}))
            made.vector.copy_(vector.detach().flatten())
            if made.projection is not None and projection is not None:
                made.projection.copy_(projection.detach())
        return made

    def but(self, **settings: object) -> Self:
        """The same vector with other settings: steps, rate, blend, text, text_angle or text_negative."""
        given: dict[str, Any] = self.settings.model_dump(exclude={"width", "text_width"}) | settings
        made = type(self).of(self.vector, self.projection, **given)
        made.card = _told(self.card, made.settings)
        made.source = self.source
        return made

    def with_projection(self, projection: Tensor) -> Self:
        """The same vector with the projection of the CLIP that it was made by."""
        if projection.ndim != 2 or len(projection) != self.settings.width:
            raise BadOverlay(
                f"{self.card} is no vector of a CLIP whose projection is {tuple(projection.shape)}: give another CLIP"
            )
        made = type(self).of(self.vector, projection, **self.settings.model_dump(exclude={"width", "text_width"}))
        made.card = self.card.but(structure=made.card.structure)
        made.source = self.source
        return made

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang behind the tower that reads beside the CLIP of the vector: the only one, or the first of an SDXL."""
        tower, projection = self._tower(target)
        tuning = Tuning(self._direction(target, tower, projection), projection, self.settings.steps, self.settings.rate)
        told = target.listener.expect_output("text_encoder")
        yield from on_conditioning(tower, TunedConditioning(tuning, strength.text, self.settings.blend, told))

    def _tower(self, target: Target) -> tuple[nn.Module, Tensor]:
        """The tower that is tuned, and what brings its texts beside the vector."""
        if not target.towers:
            raise UnsupportedBase(
                f"{target.name} has no text encoder, which is what an aesthetic acts on: attach it to a whole base"
            )
        for tower in target.towers:
            own = own_projection(tower)
            if own is not None and len(own) == self.settings.width:
                return tower, own
            if self.projection is not None and self.settings.text_width == width_of(tower):
                return tower, self.projection
        widths = " and ".join(str(width_of(tower)) for tower in target.towers)
        if self.projection is None:
            raise BadOverlay(
                f"{self._called} holds only what CLIP says of pictures ({self.settings.width} features), not how that "
                "CLIP reads texts: give the CLIP that it was made by, velatura convert FILE FILE.safetensors --clip DIR"
            )
        raise WrongBase(
            f"{self._called} was made beside a text encoder of {self.settings.text_width} features, {target.name} has "
            f"{widths}: open a base of that family"
        )

    def _direction(self, target: Target, tower: nn.Module, projection: Tensor) -> Tensor:
        """Where prompts are drawn to, of length 1, in float32."""
        direction = F.normalize(self.vector.detach().float(), dim=-1).to(target.device)
        if not self.settings.text:
            return direction
        if target.words is None:
            raise UnsupportedBase(
                f"{target.name} reads no text by itself, as an aesthetic with a text needs: use a base"
            )
        ids = torch.tensor([target.words.towers[0].framed(target.words.token_ids(self.settings.text)[:ROOM])])
        with writable():
            plain = Tuning(direction, projection.float().to(target.device), 0, 0.0)
            said = plain.features(plain.tuned(tower, ids), ids.to(target.device))[0]
        if self.settings.text_negative:
            return F.normalize(direction - said, dim=-1)
        return slerp(direction, said, self.settings.text_angle)

    @property
    def _called(self) -> str:
        return f"the aesthetic {self.card.name}".rstrip()


def _told(card: Card, settings: Settings) -> Card:
    """The card with what the settings say."""
    text = f", {'from' if settings.text_negative else 'to'} {settings.text!r}" if settings.text else ""
    outline = f"{settings.width} features, {settings.steps} steps of {settings.rate:g}{text}"
    return card.but(kind=Aesthetic.kind, structure=settings.model_dump(mode="json"), outline=outline)
