"""Embeddings (textual inversion): a name in a prompt that stands for vectors of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.families import FAMILIES
from velatura.base.text_encoder import TextEncoder
from velatura.base.token_registry import check_vector_count
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.overlays.hooks.seams import Undo, hook_token_embeddings
from velatura.overlays.hooks.token_hooks import reference_norm, vector_norms
from velatura.overlays.overlay import Card, Overlay, TargetPart
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target
from velatura.prompts.chunks import CHUNK_LENGTH
from velatura.prompts.strengths import UNET_BLOCKS

MAX_VECTOR_LENGTH = (
    1.0  # beyond it one style, on the tiny base, drowned what else a prompt said; no other base was tried
)
# as files call the vectors: of one text tower, and of an SDXL's two
SINGLE_KEYS, SDXL_KEYS = ("emb_params",), ("clip_l", "clip_g")


class EmbeddingStructure(BaseModel):
    """How many vectors it has, and how wide they are, one width for each text tower.

    longest: what length they are held below while they are trained, for each tower; none where nothing is to hold them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: Annotated[int, Field(ge=1, le=100_000)]
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Field(min_length=1, max_length=2)]
    longest: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()

    @classmethod
    def from_fields(cls, fields: object) -> Self:
        """Read a card's structure."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            [first, *_] = error.errors()
            location = ".".join(map(str, first["loc"])) or "structure"
            raise BadOverlay(f"an embedding's {location} cannot be: {first['msg'].lower()}") from None

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
    target_parts: ClassVar[frozenset[TargetPart]] = frozenset({"text"})

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.structure = EmbeddingStructure.from_fields(card.structure)
        self.card = card.replace(kind=self.kind, outline=self.structure.outline)
        for name, width in zip(self.tensor_names, self.structure.widths, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(self.structure.vectors, width)))
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build an embedding of the card's structure on the meta device: its vectors come after."""
        with torch.device("meta"):
            return cls(card)

    @classmethod
    def from_vectors(cls, *vectors: Tensor, card: Card, longest: Sequence[float] = ()) -> Self:
        """The embedding of these vectors (count, width), one tensor for each text tower.

        longest: what length they are held below while they are trained, for each tower.
        """
        if any(tensor.ndim != 2 or len(tensor) != len(vectors[0]) for tensor in vectors):
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in vectors)
            raise BadOverlay(
                f"vectors of shape {shapes} make no embedding: give as many for each tower, (count, width)"
            )
        structure = {"vectors": len(vectors[0]), "widths": [tensor.shape[1] for tensor in vectors]}
        structure |= {"longest": list(longest)} if longest else {}
        embedding = cls.from_card(card.replace(kind=cls.kind, structure=structure))
        with disable_inference_mode():
            copies = {name: tensor.clone() for name, tensor in zip(embedding.tensor_names, vectors, strict=True)}
            embedding.load_state_dict(copies, assign=True)
        return embedding

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], card: Card) -> Self:
        """The embedding of what a file holds: of clip_l and clip_g, or of the one tensor there is, in float32."""
        is_sdxl = set(tensors) == {*SDXL_KEYS}
        vectors = [tensors[name] for name in SDXL_KEYS] if is_sdxl else list(tensors.values())
        if len(vectors) != 1 + is_sdxl:
            names = ", ".join(list(tensors)[:3])[:120] or "nothing"
            raise BadOverlay(f"{card.name or 'an embedding'} holds {names}: give one tensor, or clip_l and clip_g")
        return cls.from_vectors(*(tensor.detach().float().view(-1, tensor.shape[-1]) for tensor in vectors), card=card)

    @classmethod
    def for_base(
        cls,
        base: Base,
        *,
        name: str,
        vectors: int = 1,
        initial: str = "*",
        seed: int | None = None,
        longest: float | None = MAX_VECTOR_LENGTH,
    ) -> Self:
        """Make an untrained embedding for a base, whose vectors are those of the words of a text, in their order.

        Fewer vectors than the text has tokens leave some out, more repeat them, as A1111 does it. initial: "" begins
        with zeros. seed: if given, each is moved by a hundredth of what words differ by, so that those begun
        alike part. longest: how many times as long as the base's long words its vectors may become in training: longer
        ones drown the other words of a prompt; None lets them grow as in A1111.
        """
        if vectors < 1:
            raise BadOverlay(f"an embedding of {vectors} vectors says nothing: give it 1 to {CHUNK_LENGTH}")
        check_vector_count(name or "the embedding", vectors)
        token_ids = base.text.token_ids(initial)
        initial_vectors = [_initial_vectors(tower.model, token_ids, vectors) for tower in base.text.encoders]
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            initial_vectors = [
                _add_noise(tower_vectors, tower.model, generator)
                for tower_vectors, tower in zip(initial_vectors, base.text.encoders, strict=True)
            ]
        card = Card(kind=cls.kind, name=name, family=base.family.name, base=base.name, base_hash=base.hash)
        reference_norms = [float(reference_norm(_token_table(tower.model))) for tower in base.text.encoders]
        return cls.from_vectors(
            *initial_vectors, card=card, longest=() if longest is None else [longest * norm for norm in reference_norms]
        )

    @property
    def name(self) -> str:
        """What it is called in prompts."""
        return self.card.name

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """What its tensors are called."""
        return SINGLE_KEYS if len(self.structure.widths) == 1 else SDXL_KEYS

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """Its vectors (count, width), one tensor for each text tower."""
        return tuple(self.get_parameter(name) for name in self.tensor_names)

    def is_compatible(self, text: TextEncoder) -> bool:
        """Whether the towers of a text encoder read vectors of such widths."""
        return self.structure.widths == _tower_widths(text)

    def with_name(self, name: str) -> Self:
        """The same vectors under another name."""
        copy = type(self).from_card(self.card.replace(name=name))
        copy.source = self.source
        for tensor_name in self.tensor_names:
            copy.register_parameter(tensor_name, self.get_parameter(tensor_name))
        return copy

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten vectors that have become too long."""
        for vectors, max_norm in zip(self.vectors, self.structure.longest, strict=False):
            vectors.mul_((max_norm / vector_norms(vectors).unsqueeze(1)).clamp(max=1))

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Make its name a word of the target's text encoder."""
        text = self._compatible_text(target)
        name_token_ids = text.token_ids(self.name)
        if not name_token_ids:
            raise BadOverlay(
                f"the embedding {self.name!r} has no name to be called by in prompts: use called('a name')"
            )
        sources = [lambda name=name: self.get_parameter(name) for name in self.tensor_names]
        yield from hook_token_embeddings(target, self.name, name_token_ids, sources, strength.text)

    def _compatible_text(self, target: Target) -> TextEncoder:
        """The target's text encoder, if its towers read such vectors."""
        if target.text is None:
            raise UnsupportedBase(
                f"{target.name} reads its prompts itself: velatura convert --dialect diffusers makes a file for its "
                "load_textual_inversion"
            )
        if target.blocks != UNET_BLOCKS:
            raise BadOverlay(f"{self._display_name} acts on words, not in blocks of the UNet: leave blocks out")
        if not self.is_compatible(target.text):
            ours, theirs = self.structure.widths, _tower_widths(target.text)
            raise WrongBase(
                f"{self._display_name} has vectors of {_join_widths(ours)}, {target.name} reads {_join_widths(theirs)}: "
                f"it was made for {_guess_family(ours)}, so open a base of that family"
            )
        return target.text

    @property
    def _display_name(self) -> str:
        return f"embedding {self.name}" if self.name else "the embedding"


def _initial_vectors(model: nn.Module, token_ids: list[int], count: int) -> Tensor:
    """The first vectors: of count, row i is that of token floor(i * tokens / count)."""
    table = _token_table(model).weight.detach().float()
    if not token_ids:
        return table.new_zeros(count, table.shape[1])
    return table[[token_ids[row * len(token_ids) // count] for row in range(count)]]


def _add_noise(vectors: Tensor, model: nn.Module, generator: torch.Generator) -> Tensor:
    noise = torch.randn(vectors.shape, generator=generator).to(vectors)
    return vectors + 0.01 * _token_table(model).weight.detach().float().std() * noise


def _token_table(model: nn.Module) -> nn.Embedding:
    table = model.get_input_embeddings()  # pyright: ignore
    assert isinstance(table, nn.Embedding)
    return table


def _tower_widths(text: TextEncoder) -> tuple[int, ...]:
    return tuple(_token_table(tower.model).weight.shape[1] for tower in text.encoders)


def _join_widths(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))


def _guess_family(widths: tuple[int, ...]) -> str:
    """The family whose text towers read such vectors; those of SDXL have the widths of their contexts in sum."""
    return next(
        (family.name for family in FAMILIES.values() if family.cross_width == sum(widths)), "a base unknown here"
    )
