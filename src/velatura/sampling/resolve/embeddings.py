"""Find the embeddings (textual inversions) that prompts name, which need no tag, as in A1111."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from velatura.base.base import Base
from velatura.base.text_encoder import TextEncoder
from velatura.base.token_registry import Placeholder, PlaceholderMatcher, split_around_names
from velatura.card import UNKNOWN_KIND, Card
from velatura.errors import BadFile, UnknownName, warn
from velatura.library import Library
from velatura.library.entry import LibraryEntry
from velatura.overlays.embedding import Embedding
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe.fields import OverlayHash
from velatura.sampling.resolve.file_hashes import embedding_file_hash

EMBEDDING_KIND = Embedding.kind

EmbeddingLoader = Callable[[], Embedding]


@dataclass(frozen=True)
class NamedEmbedding:
    """An embedding under the name that a prompt uses for it.

    Attributes:
        embedding: The embedding, under that name.
        file: The file that it was read from, or None if it was never read from a file.
        is_found_by_hash: True if it was found by the hash in a recipe, because another file has its name now.
    """

    embedding: Embedding
    file: Path | None
    is_found_by_hash: bool = False

    @cached_property
    def file_hash(self) -> OverlayHash | None:
        """Return the entry that a recipe records of its file."""
        if self.file is None:
            return None
        return OverlayHash.of(EMBEDDING_KIND, self.embedding.name, embedding_file_hash(self.file))


class EmbeddingResolver:
    """Finds the embeddings that prompts name, first among those passed by hand, then in a library."""

    def __init__(self, library: Library | None, overlays: Mapping[str, Overlay] | None, *, lenient: bool) -> None:
        """Remember where to look.

        Args:
            library: A library to search.
            overlays: Overlays by name, of which the embeddings are used.
            lenient: Warn of an embedding that a recipe records but that cannot be found, and read its name as words,
                instead of raising UnknownName.
        """
        self._library = library
        self._lenient = lenient
        self._embeddings = {
            name: overlay for name, overlay in (overlays or {}).items() if isinstance(overlay, Embedding)
        }

    def resolve(
        self,
        base: Base,
        texts: Iterable[str],
        *,
        tag_overlays: Iterable[Overlay] = (),
        recipe_hashes: Sequence[OverlayHash] = (),
    ) -> tuple[NamedEmbedding, ...]:
        """Return the embeddings that texts name, without those that are attached already or that tags call.

        Args:
            base: Its tokenizer decides where a name ends, and its text encoders what can be read.
            texts: The prompts and negative prompts, without emphasis.
            tag_overlays: The overlays that tags call. Embeddings in the files of LoRAs among them come first.
            recipe_hashes: The files that a recipe records. An embedding whose name belongs to another file now is
                found by its hash.

        Raises:
            UnknownName: A recipe records an embedding that cannot be found.
        """
        texts, tag_overlays = list(texts), list(tag_overlays)
        hash_by_name = {_fold_case(entry.name): entry for entry in recipe_hashes if entry.kind == EMBEDDING_KIND}
        loaders = self._loaders(tag_overlays)
        known_names = set(map(_fold_case, loaders))
        recorded_names = [entry.name for name, entry in hash_by_name.items() if name not in known_names]
        tag_spellings = [
            base.text.token_ids(overlay.name) for overlay in tag_overlays if isinstance(overlay, Embedding)
        ]
        embeddings: list[NamedEmbedding] = []
        for name in _find_names(base.text, texts, [*loaders, *recorded_names]):
            spelling = base.text.token_ids(name)
            if base.text.token_registry.has_spelling(spelling) or spelling in tag_spellings:
                continue
            recipe_hash = hash_by_name.get(_fold_case(OverlayHash.of(EMBEDDING_KIND, name, "").name))
            if embedding := self._resolve_name(base, name, loaders.get(name), recipe_hash):
                embeddings.append(embedding)
        return tuple(embeddings)

    def _loaders(self, tag_overlays: Iterable[Overlay]) -> dict[str, EmbeddingLoader]:
        """Return for each known name a function that loads the embedding."""
        loaders: dict[str, EmbeddingLoader] = {}
        for entry in self._library_entries:
            card_name = entry.info.card.name if entry.info.container == "picture" else ""
            file_name = f"{entry.file.relative_name}{entry.path.suffix}" if card_name else entry.name
            loaders.setdefault(card_name or entry.name, partial(self._open, file_name))
        for name, embedding in self._embeddings.items():
            loaders[name] = lambda embedding=embedding: embedding
        for lora in (overlay for overlay in tag_overlays if isinstance(overlay, Lora)):
            for name, vectors in lora.bundled_embeddings.items():
                loaders[name] = partial(_load_bundled, lora, name, vectors)
        return loaders

    @cached_property
    def _library_entries(self) -> list[LibraryEntry]:
        """Return the library's embeddings, and the unreadable files in its folder of embeddings."""
        if self._library is None:
            return []
        return [
            entry
            for entry in self._library.entries()
            if entry.kind == EMBEDDING_KIND
            or (entry.file.expected_kind == EMBEDDING_KIND and (entry.error or entry.kind == UNKNOWN_KIND))
        ]

    def _open(self, name: str) -> Embedding:
        assert self._library
        overlay = self._library.overlay(name, EMBEDDING_KIND)
        assert isinstance(overlay, Embedding)
        return overlay

    def _resolve_name(
        self, base: Base, name: str, loader: EmbeddingLoader | None, recipe_hash: OverlayHash | None
    ) -> NamedEmbedding | None:
        """Return the embedding of a name, or warn and return None if the base cannot read it."""
        try:
            embedding = None if loader is None else loader()
        except BadFile as error:
            warn(f"{error}; {name!r} is read as plain words")
            return None
        if recipe_hash and not _is_recorded_file(embedding, recipe_hash):
            hash_match = self._find_by_hash(recipe_hash)
            if hash_match is not None:
                warn(f"{name} is {hash_match.source}, found by its hash ({recipe_hash.hash})")
                return NamedEmbedding(hash_match.with_name(name), hash_match.source, is_found_by_hash=True)
            if embedding is None:
                self._report_missing(recipe_hash)
                return None
        assert embedding
        if not embedding.is_compatible(base.text):
            problem = f"{name} has {embedding.structure.outline}, which {base.name} cannot read"
            warn(f"{problem}: its name is read as plain words")
            return None
        return NamedEmbedding(embedding.with_name(name), embedding.source)

    def _find_by_hash(self, recipe_hash: OverlayHash) -> Embedding | None:
        try:
            return None if self._library is None else self._open(recipe_hash.hash)
        except UnknownName:
            return None

    def _report_missing(self, recipe_hash: OverlayHash) -> None:
        name = f"{recipe_hash.name!r} ({recipe_hash.hash})"
        problem = f"the picture was made with the embedding {name}, which cannot be found"
        if not self._lenient:
            raise UnknownName(f"{problem}: put its file into the library, or remove its name from the prompts")
        warn(f"{problem}: its name is read as plain words")


def _is_recorded_file(embedding: Embedding | None, recipe_hash: OverlayHash) -> bool:
    """Return True if an embedding is the one that a recipe records, or if it has no file to compare."""
    if embedding is None:
        return False
    return not embedding.source or embedding_file_hash(embedding.source) == recipe_hash.hash


def _load_bundled(lora: Lora, name: str, vectors: Mapping[str, Tensor]) -> Embedding:
    """Load an embedding from the file of a LoRA; the recipe records the file once, with the LoRA."""
    return Embedding.from_tensors(vectors, Card(kind=EMBEDDING_KIND, name=name, family=lora.card.family))


def _find_names(text: TextEncoder, texts: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the names that occur in texts token by token, and of overlapping ones the longest."""
    folded_texts = [_fold_letters(prompt) for prompt in texts]
    # Tokenizing is slow: only names whose letters occur are compared by their tokens
    candidates = [name for name in names if any(_fold_letters(name) in folded for folded in folded_texts)]
    placeholders = [Placeholder(name, tuple(text.token_ids(name)), ()) for name in candidates]
    matcher = PlaceholderMatcher([*placeholders, *text.token_registry.placeholders])
    parts = [part for prompt in texts for part in split_around_names(prompt, candidates)]
    found_names = dict.fromkeys(name for part in parts for name in matcher.find_names(text.token_ids(part)))
    return [name for name in found_names if name in candidates]


def _fold_letters(text: str) -> str:
    """Remove spaces and case, for a first comparison that is less strict than that of tokens."""
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text)).casefold()


def _fold_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
