"""What a library knows of one file: where it lies, what it is, what people wrote beside it, and its hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from velatura.card import UNKNOWN_KIND, Card, FileInfo
from velatura.errors import BadFile
from velatura.library.hashes import Hashes, old_hash
from velatura.library.index import Index, IndexRow
from velatura.library.model_files import FileState, ModelFile
from velatura.library.sidecars import Notes, read_notes

OnFile = Callable[[int, int], None]

OVERLAY_KINDS = ("hypernet", "embedding", "lora", "aesthetic", "difference")
FILE_KINDS = ("checkpoint", "vae", *OVERLAY_KINDS, UNKNOWN_KIND)


@dataclass(frozen=True)
class LibraryEntry:
    """A file of weights or a diffusers folder; trouble says why it cannot be read, hashes are None until reckoned."""

    file: ModelFile
    info: FileInfo
    notes: Notes
    error: str = ""
    hashes: Hashes | None = None

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.file.path

    @property
    def name(self) -> str:
        """What a prompt or a command line calls it: its file's stem."""
        return self.file.name

    @property
    def kind(self) -> str:
        """What it is: one of KINDS."""
        return self.info.card.kind

    @property
    def family(self) -> str:
        """The family of bases it is or is for, "" if nothing tells."""
        return self.info.card.family or self.notes.family

    @property
    def aliases(self) -> tuple[str, ...]:
        """What else it is called, in the file and beside it."""
        return tuple(filter(None, (*self.info.aliases, self.notes.title)))

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that call what it learned: what its owner wrote, or else what was published, or is in the file."""
        activation = (self.notes.activation,) if self.notes.activation else ()
        return activation or self.notes.trigger_words or self.info.card.trigger_words

    @property
    def strength(self) -> float | None:
        """The strength to begin with, if its owner prefers one."""
        return self.notes.strength

    @property
    def preview(self) -> Path | None:
        """A picture of it."""
        return next(iter(self.file.previews), None)

    def may_be(self, kinds: Iterable[str]) -> bool:
        """Whether it is of one of these kinds; what cannot be read may be whatever its folder is for."""
        kinds = set(kinds)
        return self.kind in kinds or (
            bool(self.error) and (not self.file.expected_kind or self.file.expected_kind in kinds)
        )

    def mentions(self, text: str) -> bool:
        """Whether a text is in its name, its aliases, its trigger words or what is said of it, in any case."""
        texts = (
            self.file.relative_name,
            *self.aliases,
            *self.trigger_words,
            self.info.card.note,
            self.notes.description,
        )
        return any(text.casefold() in candidate.casefold() for candidate in texts)

    def facts(self) -> dict[str, object]:
        """All of it, to be printed as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "family": self.family,
            "path": str(self.path),
            "bytes": None if self.file.is_folder else self.file.state.size,
            "aliases": self.aliases,
            "trigger_words": self.trigger_words,
            "strength": self.strength,
            "negative": self.notes.negative,
            "vae": self.notes.vae,
            "description": self.notes.description or self.info.card.note,
            "preview": None if self.preview is None else str(self.preview),
            "unread": self.notes.unread,
            "hashes": None if self.hashes is None else {"sha256": self.hashes.sha256, **self.hashes.by_civitai_name()},
            "error": self.error or None,
            "nature": None if self.error else self.info.model_dump(mode="json"),
        }


class Catalogue:
    """Entries of places, each file looked into once for as long as it stays unchanged."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def entries(self, files: Iterable[ModelFile], on_file: OnFile | None = None) -> list[LibraryEntry]:
        """What is known of these places, those that are new or have changed being looked into.

        on_file is told of each that was looked into: how many places are done, and how many there are.
        """
        files = list(files)
        rows = self._rows(files, on_file)
        return [_make_entry(file, row) for file, row in zip(files, rows, strict=True)]

    def with_hashes(self, files: Iterable[ModelFile]) -> Iterator[LibraryEntry]:
        """The same with hashes, each reckoned as it is asked for and at once kept; folders have none."""
        for file in files:
            [row] = self._rows([file])
            if not row.hashes and not file.is_folder:
                row = row._replace(hashes=_compute_hashes(file).model_dump_json())
                if FileState.from_path(file.path) == file.state:  # else it has changed meanwhile
                    self._index.store({file.path: row})
            yield _make_entry(file, row)

    def forget(self, folder: Path, existing: Iterable[ModelFile]) -> None:
        """Forget what was below a folder and is no more."""
        self._index.forget(folder, [file.path for file in existing])

    def _rows(self, files: list[ModelFile], on_file: OnFile | None = None) -> list[IndexRow]:
        rows = self._index.rows(file.path for file in files)
        new_rows: dict[Path, IndexRow] = {}
        try:
            for done, file in enumerate(files, 1):
                row = _refresh_row(file, rows.get(file.path))
                if row is rows.get(file.path):
                    continue
                rows[file.path] = new_rows[file.path] = row
                if on_file is not None:
                    on_file(done, len(files))
        finally:  # what is known when somebody loses patience stays known
            self._index.store(new_rows)
        return [rows[file.path] for file in files]


def _refresh_row(file: ModelFile, known: IndexRow | None) -> IndexRow:
    """What is to be known of a place: the very row that is, if nothing has changed."""
    row = known or IndexRow(file.state)
    if row.state != file.state or not _is_inspected(row):
        known_fields = {"notes_state": row.notes_state, "notes": row.notes, "hashes": _reusable_hashes(row, file)}
        row = _inspect(file)._replace(**known_fields)
    if row.notes_state != (state := file.sidecar_state()):
        row = row._replace(notes_state=state, notes=read_notes(file.sidecars).model_dump_json())
    return row


def _compute_hashes(file: ModelFile) -> Hashes:
    try:
        return Hashes.from_file(file.path)
    except OSError as error:
        raise BadFile(
            f"{file.path} cannot be read ({error.strerror or error}): look whether it is still there"
        ) from None


def _reusable_hashes(row: IndexRow, file: ModelFile) -> str:
    """The hashes of a file that only its number has changed of, which those on sticks and in networks do at will."""
    if not row.hashes or row.state[:2] != file.state[:2]:
        return ""
    try:
        known_hash = Hashes.model_validate_json(row.hashes).old
        return row.hashes if known_hash and known_hash == old_hash(file.path) else ""
    except (OSError, ValidationError):
        return ""


def _is_inspected(row: IndexRow) -> bool:
    return bool(row.error or row.info)


def _inspect(file: ModelFile) -> IndexRow:
    from velatura.formats.inspect.inspect import inspect_file

    try:
        return IndexRow(file.state, inspect_file(file.path).model_dump_json())
    except BadFile as error:
        return IndexRow(file.state, error=str(error))


def _make_entry(file: ModelFile, row: IndexRow) -> LibraryEntry:
    try:
        info = FileInfo.model_validate_json(row.info) if row.info else FileInfo(card=Card(kind=UNKNOWN_KIND))
        notes = Notes.model_validate_json(row.notes) if row.notes else Notes()
        hashes = Hashes.model_validate_json(row.hashes) if row.hashes else None
    except ValidationError:  # somebody else's row
        row = _inspect(file)
        info = FileInfo.model_validate_json(row.info) if row.info else FileInfo(card=Card(kind=UNKNOWN_KIND))
        notes, hashes = read_notes(file.sidecars), None
    return LibraryEntry(file, info, notes, row.error, hashes)
