"""All that a library knows about one file: its path, its content, the notes beside it, and its hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from pydantic import ValidationError

from velatura.card import UNKNOWN_KIND, Card, FileInfo
from velatura.errors import BadFile
from velatura.files import suggest_similar
from velatura.library.hashes import Hashes, old_hash
from velatura.library.index import Index, IndexRow, cache_folder
from velatura.library.model_files import FileState, ModelFile, model_file, watched_file
from velatura.library.sidecars import Notes, read_notes

OnFile = Callable[[int, int], None]  # called with how many files are done, and how many there are

OVERLAY_KINDS = ("hypernet", "embedding", "lora", "aesthetic", "difference")
FAMILIES = ("SD1", "SD2", "SDXL")  # that notes name
# Kinds that Civitai's notes do not mix up; a version of a checkpoint may list an autoencoder among its files
STATED_KINDS = ("checkpoint", "upscaler", "hypernet", "embedding", "lora", "aesthetic")
FACE_KINDS = ("face-restorer", "face-detector")
FILE_KINDS = ("checkpoint", "vae", "upscaler", *FACE_KINDS, *OVERLAY_KINDS, UNKNOWN_KIND)


@dataclass(frozen=True)
class LibraryEntry:
    """A file of weights, or a diffusers or peft folder.

    Attributes:
        file: The file, with its sidecars and previews.
        info: What is in it.
        notes: What is written beside it.
        error: The reason why it cannot be read, "" if it can.
        hashes: Its hashes, None until they are computed.
    """

    file: ModelFile
    info: FileInfo
    notes: Notes
    error: str = ""
    hashes: Hashes | None = None

    @property
    def path(self) -> Path:
        """Path of the file or folder."""
        return self.file.path

    @property
    def name(self) -> str:
        """Name in prompts and on the command line: the file's stem."""
        return self.file.name

    @property
    def kind(self) -> str:
        """Kind of the file, one of FILE_KINDS."""
        return self.info.card.kind

    @property
    def family(self) -> str:
        """Family of bases that it is of or for, "" if unknown."""
        return self.info.card.family or self.notes.family

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names, from the file and its notes."""
        return tuple(filter(None, (*self.info.aliases, self.notes.title)))

    @property
    def civitai_key(self) -> str:
        """Civitai's number of the model's version, as civitai:123; "" if the notes do not know it."""
        return f"civitai:{self.notes.version}" if self.notes.version else ""

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """Words that call what it learned: the owner's, else the published ones, else those in the file."""
        activation = (self.notes.activation,) if self.notes.activation else ()
        return activation or self.notes.trigger_words or self.info.card.trigger_words

    @property
    def strength(self) -> float | None:
        """Strength to start with, if its owner prefers one."""
        return self.notes.strength

    @property
    def note_problems(self) -> tuple[str, ...]:
        """What is not understood in the notes beside it, and what the file itself contradicts."""
        return (*self.notes.unread, *self._contradictions())

    def _contradictions(self) -> Iterator[str]:
        card, notes = self.info.card, self.notes
        if card.family in FAMILIES and notes.family and card.family != notes.family:
            yield (
                f"its notes say that it is for {notes.family}, but the file is for {card.family}: the file is "
                "believed, and the notes may be of another one"
            )
        if notes.kind in STATED_KINDS and card.kind in STATED_KINDS and card.kind != notes.kind:
            yield (
                f"its notes say that it is of the kind {notes.kind}, but it is of the kind {card.kind}: the file is "
                "believed, and the notes may be of another one"
            )

    @property
    def preview(self) -> Path | None:
        """First preview image, if there is one."""
        return next(iter(self.file.previews), None)

    def may_be(self, kinds: Iterable[str]) -> bool:
        """Return True if it is of one of these kinds, or of none that can be told and its folder is for one of them."""
        kinds = set(kinds)
        is_unknown = bool(self.error) and self.kind == UNKNOWN_KIND
        return self.kind in kinds or (is_unknown and (not self.file.expected_kind or self.file.expected_kind in kinds))

    def mentions(self, text: str) -> bool:
        """Return True if a text is in its name, aliases, trigger words or descriptions, in upper or lower case."""
        texts = (
            self.file.relative_name,
            *self.aliases,
            *self.trigger_words,
            self.info.card.note,
            self.notes.description,
        )
        return any(text.casefold() in candidate.casefold() for candidate in texts)

    def facts(self) -> dict[str, object]:
        """Return all of it in a form that can be printed as JSON."""
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
            "unread": self.note_problems,
            "hashes": None if self.hashes is None else {"sha256": self.hashes.sha256, **self.hashes.by_civitai_name()},
            "error": self.error or None,
            "nature": None
            if self.error and not self.info.problem
            else self.info.model_dump(mode="json", exclude={"report"}),
        }


class Catalogue:
    """Entries of files, each of which is read once as long as it stays unchanged."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def entries(self, files: Iterable[ModelFile], on_file: OnFile | None = None) -> list[LibraryEntry]:
        """Return the entries of files; those that are new or have changed are read.

        Args:
            files: The files.
            on_file: Called after each file that is read with how many files are done, and how many there are.
        """
        files = list(files)
        rows = self._rows(files, on_file)
        return [_make_entry(file, row) for file, row in zip(files, rows, strict=True)]

    def with_hashes(self, files: Iterable[ModelFile]) -> Iterator[LibraryEntry]:
        """Yield entries with hashes, each of which is computed when it is asked for, and stored; folders have none."""
        for file in files:
            [row] = self._rows([file])
            if not row.hashes and not file.is_folder:
                row = row._replace(hashes=_compute_hashes(file).model_dump_json())
                if FileState.from_path(file.path) == file.state:  # otherwise it has changed meanwhile
                    self._index.store({file.path: row})
            yield _make_entry(file, row)

    def open_whole(self, file: ModelFile) -> LibraryEntry:
        """Return the entry of an overlay after all its values were read; what that found is stored."""
        [row] = self._rows([file])
        info = _parse_info(row)
        if info.card.kind in OVERLAY_KINDS and not info.report and not info.problem and not row.error:
            row = row._replace(info=_inspect(file, is_whole=True).info)
            self._index.store({file.path: row})
        return _make_entry(file, row)

    def forget(self, folder: Path, existing: Iterable[ModelFile]) -> None:
        """Forget the files below a folder that are gone."""
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
        finally:  # keep what was read if the user interrupts
            self._index.store(new_rows)
        return [rows[file.path] for file in files]


def file_entry(path: str | PathLike[str], cache: str | PathLike[str] | None = None) -> LibraryEntry:
    """Return the entry of one file or folder of weights at any path, with its hashes; an overlay is opened whole.

    Args:
        path: The path.
        cache: The folder of the index, see `Library`.

    Raises:
        BadFile: The path does not exist, or is not a file or a model folder.
    """
    if not (path := Path(path).expanduser()).exists():
        raise BadFile(f"{path} does not exist{suggest_similar(path)}: give a file, or a folder in diffusers' layout")
    if watched_file(path) is None:
        raise BadFile(f"{path} is not a model folder: give a file in it, or try `velatura list` or `dataset check`")
    if not path.is_dir() and not path.is_file():  # a device or a pipe, which could be read without end
        raise BadFile(f"{path} is neither a file nor a folder: give the path of a file that can be read")
    catalogue, file = Catalogue(Index(cache_folder(cache))), model_file(path)
    catalogue.open_whole(file)
    return next(catalogue.with_hashes([file]))


def _refresh_row(file: ModelFile, known: IndexRow | None) -> IndexRow:
    """Return the row of a file: the known row itself if nothing has changed."""
    row = known or IndexRow(file.state)
    if row.state != file.state or not _is_inspected(row):
        known_fields = {"notes_state": row.notes_state, "notes": row.notes, "hashes": _reusable_hashes(row, file)}
        row = _inspect(file)._replace(**known_fields)
    sidecar_state = file.sidecar_state()
    if row.notes_state != sidecar_state:
        row = row._replace(notes_state=sidecar_state, notes=read_notes(file.sidecars).model_dump_json())
    return row


def _compute_hashes(file: ModelFile) -> Hashes:
    try:
        return Hashes.from_file(file.path)
    except OSError as error:
        raise BadFile(f"{file.path} cannot be read ({error.strerror or error}): check that it is still there") from None


def _reusable_hashes(row: IndexRow, file: ModelFile) -> str:
    """Return the hashes of a file of which only the inode has changed, as it does on USB sticks and network drives."""
    if not row.hashes or row.state[:2] != file.state[:2]:
        return ""
    try:
        known_hash = Hashes.model_validate_json(row.hashes).old
        return row.hashes if known_hash and known_hash == old_hash(file.path) else ""
    except (OSError, ValidationError):
        return ""


def _is_inspected(row: IndexRow) -> bool:
    return bool(row.error or row.info)


def _inspect(file: ModelFile, *, is_whole: bool = False) -> IndexRow:
    from velatura.formats.inspect.inspect import inspect_file

    try:
        return IndexRow(file.state, inspect_file(file.path, is_whole=is_whole).model_dump_json())
    except BadFile as error:
        return IndexRow(file.state, error=str(error))


def _make_entry(file: ModelFile, row: IndexRow) -> LibraryEntry:
    try:
        info = _parse_info(row)
        notes = Notes.model_validate_json(row.notes) if row.notes else Notes()
        hashes = Hashes.model_validate_json(row.hashes) if row.hashes else None
    except ValidationError:  # a row of another version
        row = _inspect(file)
        info, notes, hashes = _parse_info(row), read_notes(file.sidecars), None
    return LibraryEntry(file, info, notes, row.error or info.problem, hashes)


def _parse_info(row: IndexRow) -> FileInfo:
    return FileInfo.model_validate_json(row.info) if row.info else FileInfo(card=Card(kind=UNKNOWN_KIND))
