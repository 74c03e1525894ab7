"""Aesthetic gradients: prompts that are drawn towards the look of a set of pictures, each by a few steps of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.overlays.aesthetic_tuning import AestheticTuning, hidden_size, slerp, text_projection
from velatura.overlays.hooks.seams import Undo, hook_text_encoder
from velatura.overlays.hooks.text_hooks import AestheticHook
from velatura.overlays.overlay import Card, Overlay, TargetPart
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target
from velatura.prompts.chunks import CHUNK_LENGTH
from velatura.prompts.strengths import MAX_AESTHETIC_STEPS

NO_TEXT_WIDTH = 0  # the text width of an embedding without projection


class AestheticSettings(BaseModel):
    """How prompts are drawn, and the shapes of what they are drawn to: features of CLIP's, and of a token's vector.

    blend: how the strength goes from the prompt to what became of it. text draws the look itself a little to, or away
    from, what some words say, by text_angle of the way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(ge=1, le=2**14)
    text_width: int = Field(default=NO_TEXT_WIDTH, ge=0, le=2**14)
    steps: int = Field(default=5, ge=0, le=MAX_AESTHETIC_STEPS)
    rate: float = Field(default=1e-4, ge=0, le=1, allow_inf_nan=False)
    blend: Literal["lerp", "slerp"] = "lerp"
    text: str = Field(default="", max_length=1000)
    text_angle: float = Field(default=0.1, ge=0, le=1)
    text_negative: bool = False

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Check the fields; what is wrong is one BadOverlay."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first_error = error.errors()[0]
            location = ".".join(map(str, first_error["loc"])) or "settings"
            raise BadOverlay(
                f"an aesthetic's {location} is {str(first_error['input'])[:40]}: {first_error['msg'].lower()}"
            ) from None


class Aesthetic(Overlay):
    """The mean of what CLIP says of some pictures: while it lies over a base, prompts are drawn towards that.

    A copy of the text tower takes a few gradient steps for each prompt, and says it in the tower's place; the base is
    never written to. Negative prompts are left alone, and prompts without words. vector: (features,); projection:
    (features, text width), by which CLIP's own text tower says texts beside pictures, or None where that is not known.
    """

    kind: ClassVar[str] = "aesthetic"
    target_parts: ClassVar[frozenset[TargetPart]] = frozenset({"text"})

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.settings = AestheticSettings.from_fields(card.structure)
        self.card = _card_with_settings(card, self.settings)
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
    def from_vector(
        cls, vector: Tensor, projection: Tensor | None = None, *, name: str = "", **settings: object
    ) -> Self:
        """Make one of a vector (features,) and a projection; settings are those of Settings."""
        shapes = {"width": vector.numel(), "text_width": NO_TEXT_WIDTH if projection is None else projection.shape[-1]}
        with disable_inference_mode():
            aesthetic = cls(Card(kind=cls.kind, name=name, structure={**shapes, **cast("dict[str, Any]", settings)}))
            aesthetic.vector.copy_(vector.detach().flatten())
            if aesthetic.projection is not None and projection is not None:
                aesthetic.projection.copy_(projection.detach())
        return aesthetic

    def replace(self, **settings: object) -> Self:
        """The same vector with other settings: steps, rate, blend, text, text_angle or text_negative."""
        new_settings: dict[str, Any] = self.settings.model_dump(exclude={"width", "text_width"}) | settings
        aesthetic = type(self).from_vector(self.vector, self.projection, **new_settings)
        aesthetic.card = _card_with_settings(self.card, aesthetic.settings)
        aesthetic.source = self.source
        return aesthetic

    def with_projection(self, projection: Tensor) -> Self:
        """The same vector with the projection of the CLIP that it was made by."""
        if projection.ndim != 2 or len(projection) != self.settings.width:
            raise BadOverlay(
                f"{self.card} is no vector of a CLIP whose projection is {tuple(projection.shape)}: give another CLIP"
            )
        aesthetic = type(self).from_vector(
            self.vector, projection, **self.settings.model_dump(exclude={"width", "text_width"})
        )
        aesthetic.card = self.card.replace(structure=aesthetic.card.structure)
        aesthetic.source = self.source
        return aesthetic

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang behind the tower that reads beside the CLIP of the vector: the only one, or the first of an SDXL."""
        tower, projection = self._find_tower(target)
        tuning = AestheticTuning(
            self._direction(target, tower, projection), projection, self.settings.steps, self.settings.rate
        )
        on_measure = target.meter.add_output_layer("text_encoder")
        yield from hook_text_encoder(tower, AestheticHook(tuning, strength.text, self.settings.blend, on_measure))

    def _find_tower(self, target: Target) -> tuple[nn.Module, Tensor]:
        """The tower that is tuned, and what brings its texts beside the vector."""
        if not target.text_encoders:
            raise UnsupportedBase(
                f"{target.name} has no text encoder, which is what an aesthetic acts on: attach it to a whole base"
            )
        for tower in target.text_encoders:
            projection = text_projection(tower)
            if projection is not None and len(projection) == self.settings.width:
                return tower, projection
            if self.projection is not None and self.settings.text_width == hidden_size(tower):
                return tower, self.projection
        widths = " and ".join(str(hidden_size(tower)) for tower in target.text_encoders)
        if self.projection is None:
            raise BadOverlay(
                f"{self._display_name} holds only what CLIP says of pictures ({self.settings.width} features), not how that "
                "CLIP reads texts: give the CLIP that it was made by, velatura convert FILE FILE.safetensors --clip DIR"
            )
        raise WrongBase(
            f"{self._display_name} was made beside a text encoder of {self.settings.text_width} features, {target.name} has "
            f"{widths}: open a base of that family"
        )

    def _direction(self, target: Target, tower: nn.Module, projection: Tensor) -> Tensor:
        """Where prompts are drawn to, of length 1, in float32."""
        direction = F.normalize(self.vector.detach().float(), dim=-1).to(target.device)
        if not self.settings.text:
            return direction
        if target.text is None:
            raise UnsupportedBase(
                f"{target.name} reads no text by itself, as an aesthetic with a text needs: use a base"
            )
        ids = torch.tensor(
            [target.text.encoders[0].pad_to_77(target.text.token_ids(self.settings.text)[:CHUNK_LENGTH])]
        )
        with disable_inference_mode():
            tuning = AestheticTuning(direction, projection.float().to(target.device), 0, 0.0)
            text_features = tuning.text_features(tuning.tune(tower, ids), ids.to(target.device))[0]
        if self.settings.text_negative:
            return F.normalize(direction - text_features, dim=-1)
        return slerp(direction, text_features, self.settings.text_angle)

    @property
    def _display_name(self) -> str:
        return f"the aesthetic {self.card.name}".rstrip()


def _card_with_settings(card: Card, settings: AestheticSettings) -> Card:
    """The card with what the settings say."""
    text = f", {'from' if settings.text_negative else 'to'} {settings.text!r}" if settings.text else ""
    outline = f"{settings.width} features, {settings.steps} steps of {settings.rate:g}{text}"
    return card.replace(kind=Aesthetic.kind, structure=settings.model_dump(mode="json"), outline=outline)
