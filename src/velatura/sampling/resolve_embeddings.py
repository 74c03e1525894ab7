"""The embeddings that prompts name: their names are words while a picture is painted, as in the webui."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from velatura.base.base import Base
from velatura.base.text_encoder import TextEncoder
from velatura.base.token_registry import Placeholder, PlaceholderMatcher, split_around_names
from velatura.card import Card
from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.library import Library
from velatura.library.entry import LibraryEntry
from velatura.overlays.attach import attach
from velatura.overlays.effect import Effect
from velatura.overlays.embedding import Embedding
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe.fields import OverlayHash

EMBEDDING_KIND = Embedding.kind
TI_HASH_DIGITS = 12  # of a file's sha256, as the webui's TI hashes have it
WARNING_STACK_LEVEL = 9  # frames between here and whoever asked for a picture

EmbeddingLoader = Callable[[], Embedding]


@dataclass(frozen=True)
class NamedEmbedding:
    """An embedding under the name that a prompt has for it.

    file is where it was read from, None for one that never was; was_recorded: it was found by the hash in a recipe,
    where its name means another one now.
    """

    embedding: Embedding
    file: Path | None
    is_found_by_hash: bool = False

    @cached_property
    def file_hash(self) -> OverlayHash | None:
        """What a recipe records of the file it came from."""
        if self.file is None:
            return None
        file_stat = self.file.stat()
        return OverlayHash.of(
            EMBEDDING_KIND, self.embedding.name, _cached_hash(self.file, file_stat.st_mtime_ns, file_stat.st_size)
        )


class EmbeddingResolver:
    """Where names in prompts find embeddings: among those given by hand first, then in a library."""

    def __init__(self, library: Library | None, overlays: Mapping[str, Overlay] | None, *, lenient: bool) -> None:
        """Lenient: embeddings that a picture was made with and that are nowhere are warned of, and their names read."""
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
        """The embeddings that texts name, each once, but for those that lie over the base or are called by tags.

        called: what tags call; embeddings in the files of LoRAs among them are found before others. recorded: the files
        that a picture was made with: where names have changed, they are found by their hashes.
        """
        texts, tag_overlays = list(texts), list(tag_overlays)
        hash_by_name = {
            _fold_case(overlay_hash.name): overlay_hash
            for overlay_hash in recipe_hashes
            if overlay_hash.kind == EMBEDDING_KIND
        }
        loaders = self._loaders(tag_overlays)
        tag_spellings = [
            base.text.token_ids(overlay.name) for overlay in tag_overlays if isinstance(overlay, Embedding)
        ]
        names = [
            *loaders,
            *(
                overlay_hash.name
                for name, overlay_hash in hash_by_name.items()
                if name not in set(map(_fold_case, loaders))
            ),
        ]
        embeddings: list[NamedEmbedding] = []
        for name in _find_names(base.text, texts, names):
            spelling = base.text.token_ids(name)
            if base.text.token_registry.has_spelling(spelling) or spelling in tag_spellings:
                continue
            loader = loaders.get(name)
            if embedding := self._resolve_name(
                base, name, loader, hash_by_name.get(_fold_case(OverlayHash.of(EMBEDDING_KIND, name, "").name))
            ):
                embeddings.append(embedding)
        return tuple(embeddings)

    def _loaders(self, tag_overlays: Iterable[Overlay]) -> dict[str, EmbeddingLoader]:
        """What opens each embedding that is known, by its name."""
        loaders: dict[str, EmbeddingLoader] = {}
        for entry in () if self._library is None else self._entries:
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
    def _entries(self) -> list[LibraryEntry]:
        """The library's embeddings, and what cannot be read where embeddings are kept."""
        assert self._library
        return [
            entry
            for entry in self._library.entries()
            if entry.may_be((EMBEDDING_KIND,)) and EMBEDDING_KIND in (entry.kind, entry.file.expected_kind)
        ]

    def _open(self, name: str) -> Embedding:
        assert self._library
        overlay = self._library.overlay(name, EMBEDDING_KIND)
        assert isinstance(overlay, Embedding)
        return overlay

    def _resolve_name(
        self, base: Base, name: str, loader: EmbeddingLoader | None, recipe_hash: OverlayHash | None
    ) -> NamedEmbedding | None:
        """The embedding of a name, or None, with a warning, where the base cannot read it."""
        try:
            embedding = None if loader is None else loader()
        except BadFile as error:
            _warn(f"{error}; {name!r} is read as plain words")
            return None
        if recipe_hash and (
            embedding is None or (embedding.source and _file_hash(embedding.source) != recipe_hash.hash)
        ):
            hash_match = self._find_by_hash(recipe_hash)
            if hash_match is None and embedding is None:
                return self._report_missing(recipe_hash)
            if hash_match is not None:
                _warn(f"{name} is {hash_match.source} by its hash ({recipe_hash.hash})")
                return NamedEmbedding(hash_match.with_name(name), hash_match.source, is_found_by_hash=True)
        assert embedding
        if not embedding.is_compatible(base.text):
            problem = f"{name} has {embedding.structure.outline}, which {base.name} cannot read"
            _warn(f"{problem}: its name is read as plain words")
            return None
        return NamedEmbedding(embedding.with_name(name), embedding.source)

    def _find_by_hash(self, recipe_hash: OverlayHash) -> Embedding | None:
        try:
            return None if self._library is None else self._open(recipe_hash.hash)
        except UnknownName:
            return None

    def _report_missing(self, recipe_hash: OverlayHash) -> None:
        problem = (
            f"the picture was made with the embedding {recipe_hash.name!r} ({recipe_hash.hash}), which is not here"
        )
        if not self._lenient:
            raise UnknownName(f"{problem}: put its file into the library, or take its name out of the prompts")
        _warn(f"{problem}: its name is read as plain words")


def _load_bundled(lora: Lora, name: str, vectors: Mapping[str, Tensor]) -> Embedding:
    """An embedding that lies in the file of a LoRA; what that is made of is recorded with the LoRA."""
    return Embedding.from_tensors(vectors, Card(kind=EMBEDDING_KIND, name=name, family=lora.card.family))


@contextmanager
def attached_embeddings(base: Base, embeddings: Iterable[NamedEmbedding]) -> Generator[Callable[[], list[Effect]]]:
    """Make the names of embeddings words of a base for a while, each once; gives what tells their effects."""
    unique_embeddings = {
        (named_embedding.embedding.name, named_embedding.file or id(named_embedding)): named_embedding.embedding
        for named_embedding in embeddings
    }
    with ExitStack() as stack:
        attachments = [stack.enter_context(attach(base, embedding)) for embedding in unique_embeddings.values()]
        names = [embedding.name for embedding in unique_embeddings.values()]
        yield lambda: [
            attachment.effect.model_copy(update={"overlay": name})
            for attachment, name in zip(attachments, names, strict=True)
        ]


def _find_names(text: TextEncoder, texts: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those of many names that texts spell, token by token, the longest where several could be meant."""
    folded_texts = [_fold_letters(prompt) for prompt in texts]
    candidates = [
        name for name in names if any(_fold_letters(name) in folded_text for folded_text in folded_texts)
    ]  # tokens are reckoned slowly
    candidate_words = PlaceholderMatcher(
        [
            *(Placeholder(name, tuple(text.token_ids(name)), ()) for name in candidates),
            *text.token_registry.placeholders,
        ]
    )
    parts = [part for prompt in texts for part in split_around_names(prompt, candidates)]
    spelled_names = dict.fromkeys(name for part in parts for name in candidate_words.find_names(text.token_ids(part)))
    return [name for name in spelled_names if name in candidates]


def _fold_letters(text: str) -> str:
    """A text as it is compared at first, which is less strict than tokens are: without spaces and case."""
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text)).casefold()


def _fold_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _file_hash(file: Path) -> str:
    file_stat = file.stat()
    return _cached_hash(file, file_stat.st_mtime_ns, file_stat.st_size)


@lru_cache(maxsize=1024)
def _cached_hash(file: Path, _modified_ns: int, _size: int) -> str:
    """The webui's hash of an embedding's file, reckoned afresh when the file has changed."""
    return sha256(file.read_bytes()).hexdigest()[:TI_HASH_DIGITS]


def _warn(message: str) -> None:
    warnings.warn(message, VelaturaWarning, WARNING_STACK_LEVEL)
