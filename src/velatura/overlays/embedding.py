"""Embeddings (textual inversion): a name in a prompt that stands for vectors of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.families import FAMILIES
from velatura.base.text import TextEncoder
from velatura.base.words import ROOM, refuse_crowds
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.overlays.overlay import Card, Overlay, Part
from velatura.overlays.seams import Undo, on_words
from velatura.overlays.splice import lengths_of, usual_length
from velatura.overlays.strength import LiveStrength, writable
from velatura.overlays.target import Target
from velatura.prompts.strengths import BLOCKS

LONGEST = 1.0  # beyond it one style, on the tiny base, drowned what else a prompt said; no other base was tried
# as files call the vectors: of one text tower, and of an SDXL's two
ALONE, PAIR = ("emb_params",), ("clip_l", "clip_g")


class EmbeddingStructure(BaseModel):
    """How many vectors it has, and how wide they are, one width for each text tower.

    longest: what length they are held below while they are trained, for each tower; none where nothing is to hold them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: Annotated[int, Field(ge=1, le=100_000)]
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Field(min_length=1, max_length=2)]
    longest: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()

    @classmethod
    def of(cls, fields: object) -> Self:
        """Read a card's structure."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            [first, *_] = error.errors()
            what = ".".join(map(str, first["loc"])) or "structure"
            raise BadOverlay(f"an embedding's {what} cannot be: {first['msg'].lower()}") from None

    @property
    def outline(self) -> str:
        """The same in a few words."""
        return f"{self.vectors} vector{'s' * (self.vectors != 1)} of {' and '.join(map(str, self.widths))}"


class Embedding(Overlay):
    """Vectors that a name stands for in prompts and negative prompts while it lies over a base.

    Its strength tells how many times the difference counts that they make in what is said, as against a word that says
    nothing. At 0 the name is no word of its own but means what it says. The last of several called alike is heard.
    """

    kind: ClassVar[str] = "embedding"
    touches: ClassVar[frozenset[Part]] = frozenset({"text"})

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.structure = EmbeddingStructure.of(card.structure)
        self.card = card.but(kind=self.kind, outline=self.structure.outline)
        for name, width in zip(self.names, self.structure.widths, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(self.structure.vectors, width)))
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build an embedding of the card's structure on the meta device: its vectors come after."""
        with torch.device("meta"):
            return cls(card)

    @classmethod
    def of(cls, *vectors: Tensor, card: Card, longest: Sequence[float] = ()) -> Self:
        """The embedding of these vectors (count, width), one tensor for each text tower.

        longest: what length they are held below while they are trained, for each tower.
        """
        if any(each.ndim != 2 or len(each) != len(vectors[0]) for each in vectors):
            shapes = " and ".join(str(tuple(each.shape)) for each in vectors)
            raise BadOverlay(
                f"vectors of shape {shapes} make no embedding: give as many for each tower, (count, width)"
            )
        structure = {"vectors": len(vectors[0]), "widths": [each.shape[1] for each in vectors]}
        structure |= {"longest": list(longest)} if longest else {}
        made = cls.from_card(card.but(kind=cls.kind, structure=structure))
        with writable():
            copies = {name: each.clone() for name, each in zip(made.names, vectors, strict=True)}
            made.load_state_dict(copies, assign=True)
        return made

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], card: Card) -> Self:
        """The embedding of what a file holds: of clip_l and clip_g, or of the one tensor there is, in float32."""
        is_pair = set(tensors) == {*PAIR}
        found = [tensors[name] for name in PAIR] if is_pair else list(tensors.values())
        if len(found) != 1 + is_pair:
            names = ", ".join(list(tensors)[:3])[:120] or "nothing"
            raise BadOverlay(f"{card.name or 'an embedding'} holds {names}: give one tensor, or clip_l and clip_g")
        return cls.of(*(each.detach().float().view(-1, each.shape[-1]) for each in found), card=card)

    @classmethod
    def for_base(
        cls,
        base: Base,
        *,
        name: str,
        vectors: int = 1,
        initial: str = "*",
        seed: int | None = None,
        longest: float | None = LONGEST,
    ) -> Self:
        """Make an untrained embedding for a base, whose vectors are those of the words of a text, in their order.

        Fewer vectors than the text has tokens leave some out, more repeat them, as A1111 does it. initial: "" begins
        with zeros. seed: if given, each is moved by a hundredth of what words differ by, so that those begun
        alike part. longest: how many times as long as the base's long words its vectors may become in training: longer
        ones drown the other words of a prompt; None lets them grow as in A1111.
        """
        if vectors < 1:
            raise BadOverlay(f"an embedding of {vectors} vectors says nothing: give it 1 to {ROOM}")
        refuse_crowds(name or "the embedding", vectors)
        said = base.text.token_ids(initial)
        begun = [_begun(tower.model, said, vectors) for tower in base.text.towers]
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            begun = [_moved(each, tower.model, generator) for each, tower in zip(begun, base.text.towers, strict=True)]
        card = Card(kind=cls.kind, name=name, family=base.family.name, base=base.name, base_hash=base.hash)
        usual = [float(usual_length(_table(tower.model))) for tower in base.text.towers]
        return cls.of(*begun, card=card, longest=() if longest is None else [longest * each for each in usual])

    @property
    def name(self) -> str:
        """What it is called in prompts."""
        return self.card.name

    @property
    def names(self) -> tuple[str, ...]:
        """What its tensors are called."""
        return ALONE if len(self.structure.widths) == 1 else PAIR

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """Its vectors (count, width), one tensor for each text tower."""
        return tuple(self.get_parameter(name) for name in self.names)

    def fits(self, text: TextEncoder) -> bool:
        """Whether the towers of a text encoder read vectors of such widths."""
        return self.structure.widths == _widths_of(text)

    def called(self, name: str) -> Self:
        """The same vectors under another name."""
        other = type(self).from_card(self.card.but(name=name))
        other.source = self.source
        for each in self.names:
            other.register_parameter(each, self.get_parameter(each))
        return other

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten vectors that have become too long."""
        for vectors, most in zip(self.vectors, self.structure.longest, strict=False):
            vectors.mul_((most / lengths_of(vectors).unsqueeze(1)).clamp(max=1))

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Make its name a word of the target's text encoder."""
        text = self._text_of(target)
        spelling = text.token_ids(self.name)
        if not spelling:
            raise BadOverlay(
                f"the embedding {self.name!r} has no name to be called by in prompts: use called('a name')"
            )
        sources = [lambda name=name: self.get_parameter(name) for name in self.names]
        yield from on_words(target, self.name, spelling, sources, strength.text)

    def _text_of(self, target: Target) -> TextEncoder:
        """The target's text encoder, if its towers read such vectors."""
        if target.words is None:
            raise UnsupportedBase(
                f"{target.name} reads its prompts itself: velatura convert --dialect diffusers makes a file for its "
                "load_textual_inversion"
            )
        if target.blocks != BLOCKS:
            raise BadOverlay(f"{self._called} acts on words, not in blocks of the UNet: leave blocks out")
        if not self.fits(target.words):
            ours, theirs = self.structure.widths, _widths_of(target.words)
            raise WrongBase(
                f"{self._called} has vectors of {_widths(ours)}, {target.name} reads {_widths(theirs)}: "
                f"it was made for {_family(ours)}, so open a base of that family"
            )
        return target.words

    @property
    def _called(self) -> str:
        return f"embedding {self.name}" if self.name else "the embedding"


def _begun(model: nn.Module, said: list[int], count: int) -> Tensor:
    """The first vectors: of count, row i is that of token floor(i * tokens / count)."""
    table = _table(model).weight.detach().float()
    if not said:
        return table.new_zeros(count, table.shape[1])
    return table[[said[row * len(said) // count] for row in range(count)]]


def _moved(vectors: Tensor, model: nn.Module, generator: torch.Generator) -> Tensor:
    noise = torch.randn(vectors.shape, generator=generator).to(vectors)
    return vectors + 0.01 * _table(model).weight.detach().float().std() * noise


def _table(model: nn.Module) -> nn.Embedding:
    table = model.get_input_embeddings()  # pyright: ignore
    assert isinstance(table, nn.Embedding)
    return table


def _widths_of(text: TextEncoder) -> tuple[int, ...]:
    return tuple(_table(tower.model).weight.shape[1] for tower in text.towers)


def _widths(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))


def _family(widths: tuple[int, ...]) -> str:
    """The family whose text towers read such vectors; those of SDXL have the widths of their contexts in sum."""
    return next((each.name for each in FAMILIES.values() if each.cross_width == sum(widths)), "a base unknown here")
