"""Choose the text encoders that a UNet needs among those given and those of the main base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from velatura.base.families import FAMILY_BY_CROSS_WIDTH
from velatura.errors import BadFile, UnsupportedBase, WrongBase
from velatura.formats.checkpoints.ldm_families import LONE_UNET_HINT
from velatura.formats.checkpoints.ldm_text import PROJECTION_KEY
from velatura.formats.parts.found_parts import TEXT_KINDS, FoundParts
from velatura.formats.parts.model_part import ModelPart

TEXT_PLACE_HINT = "give CLIP's text encoder as a file or folder, or a base that holds it (--text)"


@dataclass(frozen=True)
class NeededText:
    """Requirements of a UNet for its text encoders.

    Attributes:
        owner: Name of the UNet's file, for messages.
        width: Features of the context, all text encoders together.
        count: Number of text encoders.
    """

    owner: str
    width: int
    count: int

    @classmethod
    def by(cls, unet: ModelPart) -> NeededText:
        """Return what a UNet needs."""
        shapes = unet.shapes
        width = next(tensor.shape[1] for key, tensor in shapes.items() if key.endswith("attn2.to_k.weight"))
        return cls(unet.place.name, width, 2 if "add_embedding.linear_1.weight" in shapes else 1)

    def is_same(self, other: NeededText) -> bool:
        """Return True if another UNet needs the same."""
        return (self.width, self.count) == (other.width, other.count)

    @property
    def family(self) -> str:
        """Name the family of the UNet for a message."""
        return describe_family(self.width)

    def check(self, texts: Sequence[ModelPart]) -> None:
        """Refuse text encoders of another family.

        Raises:
            WrongBase: They are of another family; both sides are named.
        """
        widths = [text_width(text) for text in texts]
        if len(texts) == self.count and sum(widths) == self.width:
            return
        found = " and ".join(f"{text.place.name} ({width})" for text, width in zip(texts, widths, strict=True))
        raise WrongBase(
            f"{self.owner} is the UNet of {self.family}, which reads contexts of {self.width} features from "
            f"{self.count} text encoder{'s' if self.count > 1 else ''}, and the text of {found} is that of "
            f"{describe_family(sum(widths))}: give the text encoders of {self.family} (--text)"
        )


def choose_texts(needed: NeededText, places: Sequence[FoundParts], main: FoundParts) -> tuple[ModelPart, ...]:
    """Choose the text encoders that a UNet needs: those given, and the main base's for what is not given."""
    given: list[ModelPart] = []
    for place in places:
        if not place.texts:
            raise BadFile(f"{place.place} holds no CLIP text encoder{describe_content(place)}: {TEXT_PLACE_HINT}")
        if place.is_base:
            needed.check(place.texts)
        given += place.texts
    own = main.texts
    if not given and not own:
        raise UnsupportedBase(
            f"{main.place.name} is the UNet of {needed.family} alone, without text encoders: {LONE_UNET_HINT}"
        )
    texts = _fill_slots(needed, given, own) if given else list(own)
    needed.check(texts)
    if needed.count > 1 and PROJECTION_KEY not in texts[-1].sources:
        raise BadFile(
            f"{texts[-1].place.name} has no text_projection, which {needed.family} needs from its second text encoder: "
            "use another copy of CLIP-G"
        )
    return tuple(replace(text, kind=kind) for text, kind in zip(texts, TEXT_KINDS, strict=False))


def _fill_slots(needed: NeededText, given: list[ModelPart], own: Sequence[ModelPart]) -> list[ModelPart]:
    """Return the given text encoders in their order, the narrower first, and the main base's where one is missing."""
    if len(given) < needed.count and len(own) == needed.count:
        widths = [text_width(text) for text in given]
        kept = [text for text in own if text_width(text) not in widths]
        if len(kept) + len(given) == needed.count:
            given = [*given, *kept]
    return sorted(given, key=text_width)


def text_width(text: ModelPart) -> int:
    """Return the features of a text encoder's hidden states."""
    return text.shapes["embeddings.token_embedding.weight"].shape[1]


def describe_family(width: int) -> str:
    """Name the family whose contexts have a width, with its article."""
    name = FAMILY_BY_CROSS_WIDTH.get(width)
    return with_article(name) if name else f"a model that reads contexts of {width}"


def with_article(family: str) -> str:
    """Return the name of a family after its article."""
    return "the tiny base" if family == "tiny" else f"an {family}"


def describe_content(found: FoundParts) -> str:
    """Say what a place holds instead of what was looked for."""
    held = [
        name
        for name, is_there in (
            ("a UNet", found.unet is not None),
            ("text encoders", bool(found.texts)),
            ("an autoencoder", found.vae is not None),
        )
        if is_there
    ]
    return f", only {' and '.join(held)}" if held else ""
