"""Embeddings (textual inversion): names in prompts that stand for learned vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from velatura.arguments import check_arguments
from velatura.base.families import FAMILIES, advise_base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.base.text_encoder import TextEncoder
from velatura.base.token_registry import check_vector_count
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase, explain_validation_error
from velatura.overlays.hooks.seams import Undo, hook_token_embeddings
from velatura.overlays.hooks.token_hooks import reference_norm, vector_norms
from velatura.overlays.overlay import Card, Overlay, TargetPart, join_with_and
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target
from velatura.prompts.chunks import CHUNK_LENGTH
from velatura.prompts.strengths import UNET_BLOCKS

# Tried on the tiny base only: longer vectors of a style suppressed all other words of the prompt
MAX_VECTOR_LENGTH = 1.0
# Names of the tensors in files: for one text encoder, and for the two of an SDXL
SINGLE_KEYS, SDXL_KEYS = ("emb_params",), ("clip_l", "clip_g")


class EmbeddingStructure(BaseModel):
    """Shape of an embedding.

    Attributes:
        vectors: Number of vectors.
        widths: Features of a vector, for each text encoder: one, or two for SDXL.
        longest: Greatest length of a vector in training, for each text encoder; empty for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: Annotated[int, Field(ge=1, le=100_000)]
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Field(min_length=1, max_length=2)]
    longest: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()

    @classmethod
    def from_fields(cls, fields: object) -> Self:
        """Check a card's structure; raises BadOverlay."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            descriptions = dict.fromkeys(cls.model_fields)
            raise BadOverlay(explain_validation_error(error, "embedding", descriptions)) from None

    @property
    def outline(self) -> str:
        """Return the structure in a few words."""
        return f"{self.vectors} vector{'s' * (self.vectors != 1)} of {' and '.join(map(str, self.widths))}"


class Embedding(Overlay):
    """Vectors for which a name stands in prompts and negative prompts, while the embedding is attached.

    The strength multiplies the difference that the vectors make in the output of the text encoder, compared with a
    neutral word in their place. At 0 the name is read as ordinary text. If several attached embeddings have one name,
    the last one counts.

    Attributes:
        structure: Number and widths of the vectors.
        card: Name, family, base and what else is known of it.
    """

    kind: ClassVar[str] = "embedding"
    kind_name: ClassVar[str] = "embedding"
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
        """Build an embedding with the card's structure on the meta device: load its vectors afterwards."""
        with torch.device("meta"):
            return cls(card)

    @classmethod
    def from_vectors(cls, *vectors: Tensor, card: Card, longest: Sequence[float] = ()) -> Self:
        """Build an embedding from copies of vectors.

        Args:
            vectors: One tensor (count, width) for each text encoder, all with the same count.
            card: Name, family and so on; its structure is replaced.
            longest: Greatest length of a vector in training, for each text encoder; empty for no limit.

        Raises:
            BadOverlay: If the shapes do not fit each other.
        """
        if any(tensor.ndim != 2 or len(tensor) != len(vectors[0]) for tensor in vectors):
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in vectors)
            raise BadOverlay(
                f"vectors of shape {shapes} cannot form an embedding: give one (count, width) tensor for each text "
                "encoder, with one count"
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
        """Build an embedding, in float32, from a file's tensors: clip_l and clip_g, or a single tensor of any name.

        Raises:
            BadOverlay: If there are other tensors.
        """
        is_sdxl = set(tensors) == {*SDXL_KEYS}
        vectors = [tensors[name] for name in SDXL_KEYS] if is_sdxl else list(tensors.values())
        if len(vectors) != 1 + is_sdxl:
            names = ", ".join(list(tensors)[:3])[:120] or "nothing"
            raise BadOverlay(
                f"{card.name or 'an embedding'} holds the tensors {names}: give one tensor, or clip_l and clip_g"
            )
        return cls.from_vectors(*(tensor.detach().float().view(-1, tensor.shape[-1]) for tensor in vectors), card=card)

    @classmethod
    @freeze_models
    @check_arguments()
    def for_base(
        cls,
        base: AnyBase,
        *,
        name: str,
        vectors: int = 1,
        initial: str = "*",
        seed: int | None = None,
        longest: float | None = MAX_VECTOR_LENGTH,
    ) -> Self:
        """Make an untrained embedding for a base. Its vectors start as token vectors of a text, in order.

        Args:
            base: The base from which the token vectors are taken.
            name: The name by which prompts call it.
            vectors: Number of vectors, 1 to 75. Fewer vectors than the text has tokens skip some, more repeat some, as
                in A1111.
            initial: The text. With "" the vectors start as zeros.
            seed: If given, noise of 0.01 standard deviations of the token table is added, so that vectors with the
                same start become different.
            longest: Greatest length of a vector in training, relative to the long token vectors of the base. Longer
                vectors suppress the other words of a prompt. None sets no limit, as in A1111.

        Returns:
            The embedding in eval mode.

        Raises:
            BadOverlay: If the number of vectors is below 1 or above 75.
        """
        base = to_base(base)
        if vectors < 1:
            raise BadOverlay(f"an embedding of {vectors} vectors has no effect: give it 1 to {CHUNK_LENGTH}")
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
        if longest is None:
            return cls.from_vectors(*initial_vectors, card=card)
        max_norms = [longest * float(reference_norm(_token_table(tower.model))) for tower in base.text.encoders]
        return cls.from_vectors(*initial_vectors, card=card, longest=max_norms)

    @property
    def name(self) -> str:
        """Return the name by which prompts call it."""
        return self.card.name

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of its tensors in files."""
        return SINGLE_KEYS if len(self.structure.widths) == 1 else SDXL_KEYS

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """Return its vectors (count, width), one tensor for each text encoder."""
        return tuple(self.get_parameter(name) for name in self.tensor_names)

    def is_compatible(self, text: TextEncoder) -> bool:
        """Return True if the CLIP models of a text encoder have token vectors of these widths."""
        return self.structure.widths == _tower_widths(text)

    def with_name(self, name: str) -> Self:
        """Return an embedding that shares these vectors, under another name."""
        copy = type(self).from_card(self.card.replace(name=name))
        copy.source = self.source
        for tensor_name in self.tensor_names:
            copy.register_parameter(tensor_name, self.get_parameter(tensor_name))
        return copy

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten vectors that are longer than the structure allows."""
        for vectors, max_norm in zip(self.vectors, self.structure.longest, strict=False):
            vectors.mul_((max_norm / vector_norms(vectors).unsqueeze(1)).clamp(max=1))

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register its name as a word of the target's text encoder."""
        text = self._compatible_text(target)
        name_token_ids = text.token_ids(self.name)
        if not name_token_ids:
            raise BadOverlay(
                f"the embedding {self.name!r} has no name that prompts could use: call with_name('a name')"
            )
        sources = [lambda name=name: self.get_parameter(name) for name in self.tensor_names]
        yield from hook_token_embeddings(target, self.name, name_token_ids, sources, strength.text)

    def _compatible_text(self, target: Target) -> TextEncoder:
        """Return the target's text encoder, refusing one whose token vectors have other widths."""
        if target.text is None:
            raise UnsupportedBase(
                f"{target.name} encodes its prompts itself: velatura convert --dialect diffusers makes a file for its "
                "load_textual_inversion"
            )
        if target.blocks != UNET_BLOCKS:
            raise BadOverlay(f"{self.display_name} acts on words, not in blocks of the UNet: leave blocks out")
        if not self.is_compatible(target.text):
            ours, theirs = self.structure.widths, _tower_widths(target.text)
            raise WrongBase(
                f"{self.display_name} has vectors of {join_with_and(ours)}, {target.name} reads "
                f"{join_with_and(theirs)}: {advise_base(_guess_family(ours))}"
            )
        return target.text


def _initial_vectors(model: nn.Module, token_ids: list[int], count: int) -> Tensor:
    """Copy `count` rows of the token table: row i is the vector of token floor(i * tokens / count)."""
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


def _guess_family(widths: tuple[int, ...]) -> str:
    """Return the family with token vectors of these widths, "" if there is none; SDXL's two add up to its contexts'."""
    matches = [family.name for family in FAMILIES.values() if family.cross_width == sum(widths)]
    return matches[0] if matches else ""
