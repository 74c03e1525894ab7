"""Folders of weights: what lies there, found by name, loaded once."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from velatura.card import UNKNOWN_KIND
from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.library.entry import FILE_KINDS, OVERLAY_KINDS, Catalogue, LibraryEntry, OnFile
from velatura.library.hashes import old_hash
from velatura.library.index import Index, cache_folder
from velatura.library.model_files import FileState, ModelFile, find_model_files, model_file, watched_file

if TYPE_CHECKING:
    import torch

    from velatura.base.base import Base
    from velatura.formats.checkpoints.single_file import WeightsKind
    from velatura.overlays.overlay import Overlay

BASE_KINDS = ("checkpoint",)
IMAGE_CONTAINER = "picture"  # the container of what lies in pictures; one with nothing in it is no file of weights
NO_VAE = {"", "None", "Automatic"}  # A1111's words for a base's own
HASH_PATTERN = re.compile(r"(?:0x)?([0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64})")
TITLE_PATTERN = re.compile(r"(?P<name>.+) \[(?P<hash>[0-9a-f]{8,64})\]", re.IGNORECASE)  # as A1111 shows a checkpoint


class Library:
    """Bases and overlays in folders, called by the stem of their file, whatever its case.

    The folders of A1111, ComfyUI and their like are understood, any other one is searched whole, but for hidden folders
    and for the snapshots of trainings; what a file is, is told by its content. It may also be called by its path below
    the folder, by the name that is kept in it or beside it, or by its hash, short or long. Where two files share a stem
    the folder given first wins, then safetensors, then the first path; a call by such a stem is warned of, unless the
    files are one thing in two formats, side by side.

    Files are looked for at each call, and read once for as long as they stay unchanged; what is told by their content
    is kept in an index in the folder cache, in that of VELATURA_CACHE, or where the system keeps a user's caches.
    """

    def __init__(self, *folders: str | PathLike[str], cache: str | PathLike[str] | None = None) -> None:
        self._folders = [Path(folder).expanduser() for folder in folders]
        self._catalogue = Catalogue(Index(cache_folder(cache)))
        self._loaded: dict[tuple[Path, FileState], Overlay] = {}
        self._base: tuple[object, Base] | None = None
        for folder in self._folders:
            if not folder.is_dir():
                raise BadFile(f"{folder} is no folder: give the folder where overlays lie")

    def entries(
        self,
        *,
        kind: str | None = None,
        family: str | None = None,
        search: str | None = None,
        on_file: OnFile | None = None,
    ) -> list[LibraryEntry]:
        """All there is, sorted by name, or what is of a kind or a family, or mentions a text.

        on_file is told of each file that had to be looked into: how many are done, and how many there are.
        """
        if kind is not None and kind not in FILE_KINDS:
            raise UnknownName.with_suggestions("kind of file", kind, FILE_KINDS)
        entries = (
            entry
            for entry in self._entries(on_file)
            if kind in {None, entry.kind}
            and (family is None or entry.family.casefold() == family.casefold())
            and (search is None or entry.mentions(search))
        )
        return sorted(entries, key=lambda entry: (entry.name.lower(), entry.path))

    def names(self) -> list[str]:
        """The names of all overlays, sorted."""
        names = {
            _fold_name(entry.name): entry.name for entry in reversed(self._entries()) if entry.may_be(OVERLAY_KINDS)
        }
        return sorted(names.values(), key=str.lower)

    def entry(self, name: str, kind: str | None = None) -> LibraryEntry:
        """What is known of the file of that name, of any kind or of one."""
        return self._choose(name, FILE_KINDS if kind is None else (kind,), kind or "file")

    def path(self, name: str, kind: str | None = None) -> Path:
        """Where the overlay of that name lies: the one of a kind, if there is one, or else of any."""
        found = self._find(name, (kind,)) if kind in OVERLAY_KINDS else []
        return self._choose_first(found or self._find(name, OVERLAY_KINDS), name, OVERLAY_KINDS, "overlay").path

    def overlay(self, name: str, kind: str | None = None) -> Overlay:
        """The overlay of that name, of a kind rather than another: the same at every call, until its file changes."""
        from velatura.formats import open_overlay

        path = self.path(name, kind)
        key = (path, FileState.from_path(watched_file(path) or path))
        if key not in self._loaded:
            self._loaded[key] = open_overlay(path, partial(self._open_member, path))
        return self._loaded[key]

    def base(
        self,
        name: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        vae: str | PathLike[str] | None = None,
        offload: bool = False,
        weights: WeightsKind = "last",
    ) -> Base:
        """The base of that name: the same object as at the last call, if it was the same; only one is kept.

        vae: another autoencoder, by its name here or by its path; without it the one that the base's notes ask for, or
        one that is called as the base is and then .vae, as A1111 looks for them, or else the base's own.
        """
        from velatura.formats import open_base

        entry = self._choose(name, BASE_KINDS, "base")
        vae_path = self._find_vae(entry, vae)
        key = (
            entry.path,
            entry.file.state,
            dtype,
            device,
            offload,
            weights,
            vae_path,
            vae_path and FileState.from_path(vae_path),
        )
        if self._base is None or self._base[0] != key:
            self._base = None  # let go of one before the next is loaded
            base = open_base(entry.path, dtype=dtype, device=device, vae=vae_path, offload=offload, weights=weights)
            if (hashes := self.with_hashes(entry).hashes) is not None:
                base.hash = hashes.sha256[:10]  # which every recipe asks for: it is not to be reckoned at each start
            self._base = key, base
        return self._base[1]

    def with_hashes(self, entry: LibraryEntry) -> LibraryEntry:
        """An entry with its hashes, which are reckoned once for as long as the file stays unchanged."""
        return next(self._catalogue.with_hashes([entry.file]))

    def _find_vae(self, base: LibraryEntry, vae: str | PathLike[str] | None) -> Path | None:
        """The file of another autoencoder than a base's own."""
        if vae is not None:
            path = Path(vae).expanduser()
            return path if path.exists() else self.entry(str(vae), "vae").path
        wanted = base.notes.vae if base.notes.vae not in NO_VAE else ""
        if wanted and (found := self._find(wanted, ("vae",))):
            return found[0].path
        if wanted:
            message = f"{base.name}'s notes ask for the VAE {wanted!r}, which is not here: its own is taken, so add it"
            warnings.warn(message, VelaturaWarning, stacklevel=3)
        found = self._find(f"{base.name}.vae", ("vae",))
        return found[0].path if found else None

    def _open_member(self, composition: Path, name: str) -> Overlay:
        """A hypernetwork that a composition names: never a composition again, which might name the first in turn."""
        path = self.path(name, "hypernet")
        if path == composition:
            raise BadFile(f"{composition} is called {name!r} as what it names is: rename it")
        if path.suffix == composition.suffix:
            raise BadFile(f"{composition} names {name!r}, a composition itself: name what that names")
        return self.overlay(name, "hypernet")

    def _model_files(self) -> list[ModelFile]:
        """All files, those of the folder given first before others."""
        return list({file.path: file for folder in self._folders for file in find_model_files(folder)}.values())

    def _entries(self, on_file: OnFile | None = None) -> list[LibraryEntry]:
        files = self._model_files()
        for folder in self._folders:
            self._catalogue.forget(folder, files)
        entries = self._catalogue.entries(files, on_file)
        return [entry for entry in entries if entry.kind != UNKNOWN_KIND or entry.info.container != IMAGE_CONTAINER]

    def _choose(self, name: str, kinds: Sequence[str], label: str) -> LibraryEntry:
        return self._choose_first(self._find(name, kinds), name, kinds, label)

    def _choose_first(self, found: Sequence[LibraryEntry], name: str, kinds: Sequence[str], label: str) -> LibraryEntry:
        """The first that was found, of which a rival is named, or the error that names what is near."""
        if not found:
            known = {
                entry_name
                for entry in self._entries()
                if entry.may_be(kinds)
                for entry_name in (entry.name, *entry.aliases)
            }
            raise UnknownName.with_suggestions(label, name, known, " or ".join(map(str, self._folders)))
        chosen, *others = found
        if rival := next((entry for entry in others if _model_key(entry) != _model_key(chosen)), None):
            message = f"{chosen.path} and {rival.path} are both called {name[:80]!r}: the first is taken, so rename one"
            warnings.warn(message, VelaturaWarning, stacklevel=3)
        return chosen

    def _find(self, name: str, kinds: Sequence[str]) -> list[LibraryEntry]:
        """What is called so: by a file's name, which says most, or else by what is in files, or else by its hash."""
        files = self._model_files()
        folded_name = _fold_name(name)
        if found := self._of_kinds(kinds, [file for file in files if folded_name in _possible_names(file)]):
            return found
        if title := TITLE_PATTERN.fullmatch(name.strip()):
            return self._find_by_hash(title["hash"].lower(), files, kinds) or self._find(title["name"], kinds)
        entries = self._catalogue.entries(files)
        if found := [
            entry for entry in entries if entry.may_be(kinds) and folded_name in map(_fold_name, entry.aliases)
        ]:
            return found
        digits = HASH_PATTERN.fullmatch(folded_name)
        return self._find_by_hash(digits[1], files, kinds) if digits else []

    def _of_kinds(self, kinds: Sequence[str], files: list[ModelFile]) -> list[LibraryEntry]:
        """What is of these kinds, or else what may be, or else what nobody knows: opening it says why."""
        entries = self._catalogue.entries(files)
        known = [entry for entry in entries if entry.kind in kinds]
        candidates = [
            entry for entry in entries if entry.kind == UNKNOWN_KIND and entry.file.expected_kind in {"", *kinds}
        ]
        return known or [entry for entry in candidates if entry.error] or candidates

    def _find_by_hash(self, digits: str, files: list[ModelFile], kinds: Sequence[str]) -> list[LibraryEntry]:
        """The first file of such a hash: by what is known, or else by hashing what is not, the smallest first."""
        entries = [entry for entry in self._catalogue.entries(files) if entry.kind in kinds]
        if found := [entry for entry in entries if _has_hash(entry, digits)]:
            return found[:1]
        unhashed = [entry for entry in entries if entry.hashes is None and not entry.file.is_folder]
        if len(digits) == 8:  # then 64 KiB of each say it
            found = (entry for entry in unhashed if old_hash(entry.path) == digits)
        else:
            smallest_first = sorted((entry.file for entry in unhashed), key=lambda file: file.state.size)
            hashed = self._catalogue.with_hashes(smallest_first)
            found = (entry for entry in hashed if entry.hashes and entry.hashes.has(digits))
        return list(islice(found, 1))


def file_entry(path: str | PathLike[str], cache: str | PathLike[str] | None = None) -> LibraryEntry:
    """What is known of one file or folder of weights, wherever it lies, with its hashes; the index is a library's."""
    path = Path(path).expanduser()
    if not path.exists():
        raise BadFile(f"{path} does not exist: give the path of a file, or of a folder in diffusers' layout")
    if watched_file(path) is None:
        raise BadFile(f"{path} is a directory, not in diffusers' or peft's layout: give the path of a file in it")
    if not path.is_dir() and not path.is_file():  # a device or a pipe, which could be read without end
        raise BadFile(f"{path} is neither a file nor a directory: give the path of a file that can be read")
    return next(Catalogue(Index(cache_folder(cache))).with_hashes([model_file(path)]))


def _fold_name(name: str) -> str:
    """A name in the form in which names are compared: systems differ in how they write letters with accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _possible_names(file: ModelFile) -> set[str]:
    """What a file may be called: its stem, its name, its path in the folder with its ending or without."""
    relative_path = file.relative_name if file.is_folder else file.relative_name + file.path.suffix
    return {_fold_name(name) for name in (file.name, file.path.name, file.relative_name, relative_path)}


def _model_key(entry: LibraryEntry) -> tuple[str, str]:
    """What files of one thing in several formats have in common."""
    return entry.kind, os.path.realpath(entry.path.with_suffix(""))


def _has_hash(entry: LibraryEntry, digits: str) -> bool:
    claimed_hashes = (*entry.info.claimed_hashes, *entry.notes.hashes)
    return any(claimed_hash.startswith(digits) for claimed_hash in claimed_hashes) or (
        entry.hashes is not None and entry.hashes.has(digits)
    )
