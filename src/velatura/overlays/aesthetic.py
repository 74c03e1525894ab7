"""Aesthetic gradients: prompts are moved towards the look of a set of pictures, by a few gradient steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.errors import BadOverlay, UnsupportedBase, WrongBase, explain_validation_error
from velatura.overlays.aesthetic_tuning import AestheticTuning, hidden_size, slerp, text_projection
from velatura.overlays.hooks.seams import Undo, hook_text_encoder
from velatura.overlays.hooks.text_hooks import AestheticHook
from velatura.overlays.overlay import Card, Overlay, TargetPart, join_with_and
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target
from velatura.prompts.chunks import CHUNK_LENGTH
from velatura.prompts.strengths import MAX_AESTHETIC_STEPS

NO_TEXT_WIDTH = 0  # text_width of an aesthetic without a projection


class AestheticSettings(BaseModel):
    """Shapes of an aesthetic, and settings of its gradient steps.

    Attributes:
        width: Features of CLIP's image embeddings.
        text_width: Features of the text encoder's hidden states; 0 without a projection.
        steps: Gradient steps for a prompt.
        rate: Learning rate of these steps.
        blend: Interpolation between the original and the tuned encoding, by the strength.
        text: Text towards which the direction itself is moved; "" for none.
        text_angle: Fraction of the way to the text, 0 to 1.
        text_negative: Move away from the text instead.
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
        """Check the settings; raises BadOverlay."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            descriptions = dict.fromkeys(cls.model_fields)
            raise BadOverlay(explain_validation_error(error, "aesthetic", descriptions)) from None


class Aesthetic(Overlay):
    """Mean CLIP embedding of a set of pictures, towards which prompts are moved while it is attached.

    For a prompt, a copy of the text encoder takes a few gradient steps and encodes the prompt in the encoder's place.
    The base is never written to. Negative prompts and empty prompts are left unchanged.

    Attributes:
        settings: Shapes, number of steps, learning rate and so on.
        vector: (features,).
        projection: (features, text width): CLIP's projection of texts to the space of its image embeddings; None if it
            is not known.
        card: Name and what else is known of it.
    """

    kind: ClassVar[str] = "aesthetic"
    kind_name: ClassVar[str] = "aesthetic"
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
        """Build an aesthetic with the card's widths on the meta device: load its vector afterwards."""
        with torch.device("meta"):
            return cls(card)

    @classmethod
    def from_vector(
        cls, vector: Tensor, projection: Tensor | None = None, *, name: str = "", **settings: object
    ) -> Self:
        """Build an aesthetic from a copy of a vector.

        Args:
            vector: (features,), or (1, features).
            projection: (features, text width), or None.
            name: Name of the aesthetic.
            settings: Fields of AestheticSettings other than the widths.

        Raises:
            BadOverlay: If a setting is out of range.
        """
        return cls._from_card_and_vector(Card(kind=cls.kind, name=name), vector, projection, settings)

    @classmethod
    def _from_card_and_vector(
        cls, card: Card, vector: Tensor, projection: Tensor | None, settings: Mapping[str, object]
    ) -> Self:
        shapes = {"width": vector.numel(), "text_width": NO_TEXT_WIDTH if projection is None else projection.shape[-1]}
        with disable_inference_mode():
            aesthetic = cls(card.replace(structure={**shapes, **settings}))
            aesthetic.vector.copy_(vector.detach().flatten())
            if aesthetic.projection is not None and projection is not None:
                aesthetic.projection.copy_(projection.detach())
        return aesthetic

    def replace(self, **settings: object) -> Self:
        """Copy the aesthetic with other settings: steps, rate, blend, text, text_angle or text_negative."""
        return self._copy_with(self.projection, settings)

    def with_projection(self, projection: Tensor) -> Self:
        """Copy the aesthetic with the projection of the CLIP that made its vector.

        Args:
            projection: (features, text width).

        Raises:
            BadOverlay: If the projection is of another CLIP.
        """
        if projection.ndim != 2 or len(projection) != self.settings.width:
            raise BadOverlay(
                f"{self.card} does not fit a CLIP whose projection is {tuple(projection.shape)}: give another CLIP"
            )
        return self._copy_with(projection, {})

    def _copy_with(self, projection: Tensor | None, settings: Mapping[str, object]) -> Self:
        all_settings = self.settings.model_dump(exclude={"width", "text_width"}) | dict(settings)
        aesthetic = type(self)._from_card_and_vector(self.card, self.vector, projection, all_settings)
        aesthetic.source = self.source
        return aesthetic

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register a hook on the text encoder that belongs to the CLIP of the vector: in an SDXL it is the first."""
        tower, projection = self._find_tower(target)
        tuning = AestheticTuning(
            self._direction(target, tower, projection), projection, self.settings.steps, self.settings.rate
        )
        on_measure = target.meter.add_output_layer("text_encoder")
        yield from hook_text_encoder(tower, AestheticHook(tuning, strength.text, self.settings.blend, on_measure))

    def _find_tower(self, target: Target) -> tuple[nn.Module, Tensor]:
        """Return the text encoder to tune, and the projection of its texts to the space of the vector."""
        if not target.text_encoders:
            raise UnsupportedBase(
                f"{target.name} has no text encoder, on which an aesthetic acts: attach it to a whole base"
            )
        for tower in target.text_encoders:
            projection = text_projection(tower)
            if projection is not None and len(projection) == self.settings.width:
                return tower, projection
            if self.projection is not None and self.settings.text_width == hidden_size(tower):
                return tower, self.projection
        if self.projection is None:
            raise BadOverlay(
                f"{self.display_name} holds an image embedding of CLIP ({self.settings.width} features) without CLIP's "
                "projection of texts: add it by velatura convert FILE FILE.safetensors --clip DIR, where DIR is the "
                "CLIP that made the embedding"
            )
        widths = join_with_and(hidden_size(tower) for tower in target.text_encoders)
        raise WrongBase(
            f"{self.display_name} was made for a text encoder of {self.settings.text_width} features, "
            f"{target.name} has {widths}: open a base of that family"
        )

    def _direction(self, target: Target, tower: nn.Module, projection: Tensor) -> Tensor:
        """Return the direction to which prompts are moved, (features,) of length 1, in float32."""
        direction = F.normalize(self.vector.detach().float(), dim=-1).to(target.device)
        if not self.settings.text:
            return direction
        if target.text is None:
            raise UnsupportedBase(
                f"{target.name} cannot encode the text of the aesthetic: attach it to a velatura base, or remove "
                "the text"
            )
        token_ids = target.text.token_ids(self.settings.text)[:CHUNK_LENGTH]
        ids = torch.tensor([target.text.encoders[0].pad_to_77(token_ids)])
        with disable_inference_mode():
            tuning = AestheticTuning(direction, projection.float().to(target.device), 0, 0.0)
            text_features = tuning.text_features(tuning.tune(tower, ids), ids.to(target.device))[0]
        if self.settings.text_negative:
            return F.normalize(direction - text_features, dim=-1)
        return slerp(direction, text_features, self.settings.text_angle)


def _card_with_settings(card: Card, settings: AestheticSettings) -> Card:
    """Copy a card with these settings as its structure and in its outline."""
    outline = f"{settings.width} features, {settings.steps} steps of {settings.rate:g}"
    if settings.text:
        outline += f", {'from' if settings.text_negative else 'to'} {settings.text!r}"
    return card.replace(kind=Aesthetic.kind, structure=settings.model_dump(mode="json"), outline=outline)
