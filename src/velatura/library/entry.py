"""What a library knows of one file: where it lies, what it is, what people wrote beside it, and its hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from velatura.card import UNKNOWN, Card, Nature
from velatura.errors import BadFile
from velatura.library.hashes import Hashes, old_hash
from velatura.library.index import Index, Row
from velatura.library.places import Place, State
from velatura.library.sidecars import Notes, read_notes

OnFile = Callable[[int, int], None]

OVERLAYS = ("hypernet", "embedding", "lora", "aesthetic", "difference")
KINDS = ("checkpoint", "vae", *OVERLAYS, UNKNOWN)


@dataclass(frozen=True)
class Entry:
    """A file of weights or a diffusers folder; trouble says why it cannot be read, hashes are None until reckoned."""

    place: Place
    nature: Nature
    notes: Notes
    trouble: str = ""
    hashes: Hashes | None = None

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.place.path

    @property
    def name(self) -> str:
        """What a prompt or a command line calls it: its file's stem."""
        return self.place.name

    @property
    def kind(self) -> str:
        """What it is: one of KINDS."""
        return self.nature.card.kind

    @property
    def family(self) -> str:
        """The family of bases it is or is for, "" if nothing tells."""
        return self.nature.card.family or self.notes.family

    @property
    def aliases(self) -> tuple[str, ...]:
        """What else it is called, in the file and beside it."""
        return tuple(filter(None, (*self.nature.aliases, self.notes.title)))

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that call what it learned: what its owner wrote, or else what was published, or is in the file."""
        activation = (self.notes.activation,) if self.notes.activation else ()
        return activation or self.notes.trigger_words or self.nature.card.trigger_words

    @property
    def strength(self) -> float | None:
        """The strength to begin with, if its owner prefers one."""
        return self.notes.strength

    @property
    def preview(self) -> Path | None:
        """A picture of it."""
        return next(iter(self.place.previews), None)

    def may_be(self, kinds: Iterable[str]) -> bool:
        """Whether it is of one of these kinds; what cannot be read may be whatever its folder is for."""
        kinds = set(kinds)
        return self.kind in kinds or (bool(self.trouble) and (not self.place.meant or self.place.meant in kinds))

    def mentions(self, text: str) -> bool:
        """Whether a text is in its name, its aliases, its trigger words or what is said of it, in any case."""
        said = (self.place.below, *self.aliases, *self.trigger_words, self.nature.card.note, self.notes.description)
        return any(text.casefold() in each.casefold() for each in said)

    def facts(self) -> dict[str, object]:
        """All of it, to be printed as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "family": self.family,
            "path": str(self.path),
            "bytes": None if self.place.is_folder else self.place.state.size,
            "aliases": self.aliases,
            "trigger_words": self.trigger_words,
            "strength": self.strength,
            "negative": self.notes.negative,
            "vae": self.notes.vae,
            "description": self.notes.description or self.nature.card.note,
            "preview": None if self.preview is None else str(self.preview),
            "unread": self.notes.unread,
            "hashes": None if self.hashes is None else {"sha256": self.hashes.sha256, **self.hashes.shown()},
            "error": self.trouble or None,
            "nature": None if self.trouble else self.nature.model_dump(mode="json"),
        }


class Catalogue:
    """Entries of places, each file looked into once for as long as it stays unchanged."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def entries(self, places: Iterable[Place], on_file: OnFile | None = None) -> list[Entry]:
        """What is known of these places, those that are new or have changed being looked into.

        on_file is told of each that was looked into: how many places are done, and how many there are.
        """
        places = list(places)
        rows = self._rows(places, on_file)
        return [_entry(place, row) for place, row in zip(places, rows, strict=True)]

    def hashed(self, places: Iterable[Place]) -> Iterator[Entry]:
        """The same with hashes, each reckoned as it is asked for and at once kept; folders have none."""
        for place in places:
            [row] = self._rows([place])
            if not row.hashes and not place.is_folder:
                row = row._replace(hashes=_hashes(place).model_dump_json())
                if State.of(place.path) == place.state:  # else it has changed meanwhile
                    self._index.keep({place.path: row})
            yield _entry(place, row)

    def forget(self, below: Path, but: Iterable[Place]) -> None:
        """Forget what was below a folder and is no more."""
        self._index.forget(below, [place.path for place in but])

    def _rows(self, places: list[Place], on_file: OnFile | None = None) -> list[Row]:
        rows = self._index.rows(place.path for place in places)
        new: dict[Path, Row] = {}
        try:
            for done, place in enumerate(places, 1):
                row = _now(place, rows.get(place.path))
                if row is rows.get(place.path):
                    continue
                rows[place.path] = new[place.path] = row
                if on_file is not None:
                    on_file(done, len(places))
        finally:  # what is known when somebody loses patience stays known
            self._index.keep(new)
        return [rows[place.path] for place in places]


def _now(place: Place, known: Row | None) -> Row:
    """What is to be known of a place: the very row that is, if nothing has changed."""
    row = known or Row(place.state)
    if row.state != place.state or not _is_nature(row):
        kept = {"notes_state": row.notes_state, "notes": row.notes, "hashes": _lasting_hashes(row, place)}
        row = _looked_into(place)._replace(**kept)
    if row.notes_state != (state := place.notes_state()):
        row = row._replace(notes_state=state, notes=read_notes(place.notes).model_dump_json())
    return row


def _hashes(place: Place) -> Hashes:
    try:
        return Hashes.of(place.path)
    except OSError as error:
        raise BadFile(
            f"{place.path} cannot be read ({error.strerror or error}): look whether it is still there"
        ) from None


def _lasting_hashes(row: Row, place: Place) -> str:
    """The hashes of a file that only its number has changed of, which those on sticks and in networks do at will."""
    if not row.hashes or row.state[:2] != place.state[:2]:
        return ""
    try:
        known = Hashes.model_validate_json(row.hashes).old
        return row.hashes if known and known == old_hash(place.path) else ""
    except (OSError, ValidationError):
        return ""


def _is_nature(row: Row) -> bool:
    return bool(row.trouble or row.nature)


def _looked_into(place: Place) -> Row:
    from velatura.formats.nature import nature_of  # it brings torch along, which no known file needs

    try:
        return Row(place.state, nature_of(place.path).model_dump_json())
    except BadFile as error:
        return Row(place.state, trouble=str(error))


def _entry(place: Place, row: Row) -> Entry:
    try:
        nature = Nature.model_validate_json(row.nature) if row.nature else Nature(card=Card(kind=UNKNOWN))
        notes = Notes.model_validate_json(row.notes) if row.notes else Notes()
        hashes = Hashes.model_validate_json(row.hashes) if row.hashes else None
    except ValidationError:  # somebody else's row
        row = _looked_into(place)
        nature = Nature.model_validate_json(row.nature) if row.nature else Nature(card=Card(kind=UNKNOWN))
        notes, hashes = read_notes(place.notes), None
    return Entry(place, nature, notes, row.trouble, hashes)
