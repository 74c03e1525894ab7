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
from velatura.base.text import TextEncoder
from velatura.base.words import Word, Words, parted
from velatura.card import Card
from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.library import Library
from velatura.library.entry import Entry
from velatura.overlays.attach import attach
from velatura.overlays.effect import Effect
from velatura.overlays.embedding import Embedding
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.sampling.fields import OverlayHash

KIND = Embedding.kind
DIGITS = 12  # of a file's sha256, as the webui's TI hashes have it
LEVEL = 9  # frames between here and whoever asked for a picture

Found = Callable[[], Embedding]


@dataclass(frozen=True)
class Named:
    """An embedding under the name that a prompt has for it.

    file is where it was read from, None for one that never was; was_recorded: it was found by the hash in a recipe,
    where its name means another one now.
    """

    embedding: Embedding
    file: Path | None
    was_recorded: bool = False

    @cached_property
    def hash(self) -> OverlayHash | None:
        """What a recipe records of the file it came from."""
        if self.file is None:
            return None
        state = self.file.stat()
        return OverlayHash.of(KIND, self.embedding.name, _hash(self.file, state.st_mtime_ns, state.st_size))


class Dictionary:
    """Where names in prompts find embeddings: among those given by hand first, then in a library."""

    def __init__(self, library: Library | None, overlays: Mapping[str, Overlay] | None, *, lenient: bool) -> None:
        """Lenient: embeddings that a picture was made with and that are nowhere are warned of, and their names read."""
        self._library = library
        self._lenient = lenient
        self._at_hand = {name: each for name, each in (overlays or {}).items() if isinstance(each, Embedding)}

    def named(
        self,
        base: Base,
        texts: Iterable[str],
        *,
        called: Iterable[Overlay] = (),
        recorded: Sequence[OverlayHash] = (),
    ) -> tuple[Named, ...]:
        """The embeddings that texts name, each once, but for those that lie over the base or are called by tags.

        called: what tags call; embeddings in the files of LoRAs among them are found before others. recorded: the files
        that a picture was made with: where names have changed, they are found by their hashes.
        """
        texts, called = list(texts), list(called)
        hashes = {_folded(each.name): each for each in recorded if each.kind == KIND}
        sources = self._sources(called)
        taken = [base.text.token_ids(each.name) for each in called if isinstance(each, Embedding)]
        names = [*sources, *(each.name for name, each in hashes.items() if name not in set(map(_folded, sources)))]
        found: list[Named] = []
        for name in _spelled(base.text, texts, names):
            spelling = base.text.token_ids(name)
            if base.text.glossary.has(spelling) or spelling in taken:
                continue
            source = sources.get(name)
            if one := self._found(base, name, source, hashes.get(_folded(OverlayHash.of(KIND, name, "").name))):
                found.append(one)
        return tuple(found)

    def _sources(self, called: Iterable[Overlay]) -> dict[str, Found]:
        """What opens each embedding that is known, by its name."""
        sources: dict[str, Found] = {}
        for entry in () if self._library is None else self._entries:
            inside = entry.nature.card.name if entry.nature.container == "picture" else ""
            file = f"{entry.place.below}{entry.path.suffix}" if inside else entry.name
            sources.setdefault(inside or entry.name, partial(self._opened, file))
        for name, each in self._at_hand.items():
            sources[name] = lambda each=each: each
        for lora in (each for each in called if isinstance(each, Lora)):
            for name, vectors in lora.bundled.items():
                sources[name] = partial(_bundled, lora, name, vectors)
        return sources

    @cached_property
    def _entries(self) -> list[Entry]:
        """The library's embeddings, and what cannot be read where embeddings are kept."""
        assert self._library
        return [
            each for each in self._library.entries() if each.may_be((KIND,)) and KIND in (each.kind, each.place.meant)
        ]

    def _opened(self, name: str) -> Embedding:
        assert self._library
        found = self._library.overlay(name, KIND)
        assert isinstance(found, Embedding)
        return found

    def _found(self, base: Base, name: str, source: Found | None, recorded: OverlayHash | None) -> Named | None:
        """The embedding of a name, or None, with a warning, where the base cannot read it."""
        try:
            embedding = None if source is None else source()
        except BadFile as error:
            _warn(f"{error}; {name!r} is read as plain words")
            return None
        if recorded and (embedding is None or (embedding.source and _digits(embedding.source) != recorded.hash)):
            other = self._by_hash(recorded)
            if other is None and embedding is None:
                return self._missing(recorded)
            if other is not None:
                _warn(f"{name} is {other.source} by its hash ({recorded.hash})")
                return Named(other.called(name), other.source, was_recorded=True)
        assert embedding
        if not embedding.fits(base.text):
            said = f"{name} has {embedding.structure.outline}, which {base.name} cannot read"
            _warn(f"{said}: its name is read as plain words")
            return None
        return Named(embedding.called(name), embedding.source)

    def _by_hash(self, recorded: OverlayHash) -> Embedding | None:
        try:
            return None if self._library is None else self._opened(recorded.hash)
        except UnknownName:
            return None

    def _missing(self, recorded: OverlayHash) -> None:
        said = f"the picture was made with the embedding {recorded.name!r} ({recorded.hash}), which is not here"
        if not self._lenient:
            raise UnknownName(f"{said}: put its file into the library, or take its name out of the prompts")
        _warn(f"{said}: its name is read as plain words")


def _bundled(lora: Lora, name: str, vectors: Mapping[str, Tensor]) -> Embedding:
    """An embedding that lies in the file of a LoRA; what that is made of is recorded with the LoRA."""
    return Embedding.of_tensors(vectors, Card(kind=KIND, name=name, family=lora.card.family))


@contextmanager
def worded(base: Base, named: Iterable[Named]) -> Generator[Callable[[], list[Effect]]]:
    """Make the names of embeddings words of a base for a while, each once; gives what tells their effects."""
    each_once = {(each.embedding.name, each.file or id(each)): each.embedding for each in named}
    with ExitStack() as laid:
        attachments = [laid.enter_context(attach(base, embedding)) for embedding in each_once.values()]
        names = [embedding.name for embedding in each_once.values()]
        yield lambda: [
            each.effect.model_copy(update={"overlay": name}) for each, name in zip(attachments, names, strict=True)
        ]


def _spelled(text: TextEncoder, texts: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those of many names that texts spell, token by token, the longest where several could be meant."""
    letters = [_letters(each) for each in texts]
    likely = [name for name in names if any(_letters(name) in each for each in letters)]  # tokens are reckoned slowly
    words = Words([*(Word(name, tuple(text.token_ids(name)), ()) for name in likely), *text.glossary.words])
    parts = [part for each in texts for part in parted(each, likely)]
    spelled = dict.fromkeys(name for part in parts for name in words.spelled(text.token_ids(part)))
    return [name for name in spelled if name in likely]


def _letters(text: str) -> str:
    """A text as it is compared at first, which is less strict than tokens are: without spaces and case."""
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text)).casefold()


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _digits(file: Path) -> str:
    state = file.stat()
    return _hash(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _hash(file: Path, _changed: int, _size: int) -> str:
    """The webui's hash of an embedding's file, reckoned afresh when the file has changed."""
    return sha256(file.read_bytes()).hexdigest()[:DIGITS]


def _warn(message: str) -> None:
    warnings.warn(message, VelaturaWarning, LEVEL)
