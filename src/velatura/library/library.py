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

from velatura.card import UNKNOWN
from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.library.entry import KINDS, OVERLAYS, Catalogue, Entry, OnFile
from velatura.library.hashes import old_hash
from velatura.library.index import Index, cache_folder
from velatura.library.places import Place, State, place_of, places_in, told_by

if TYPE_CHECKING:
    import torch

    from velatura.base.base import Base
    from velatura.formats.checkpoint import Weights
    from velatura.overlays.overlay import Overlay

BASES = ("checkpoint",)
PICTURE = "picture"  # the container of what lies in pictures; one with nothing in it is no file of weights
NO_VAE = {"", "None", "Automatic"}  # A1111's words for a base's own
HASH = re.compile(r"(?:0x)?([0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64})")
TITLE = re.compile(r"(?P<name>.+) \[(?P<hash>[0-9a-f]{8,64})\]", re.IGNORECASE)  # as A1111 shows a checkpoint


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
        self._loaded: dict[tuple[Path, State], Overlay] = {}
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
    ) -> list[Entry]:
        """All there is, sorted by name, or what is of a kind or a family, or mentions a text.

        on_file is told of each file that had to be looked into: how many are done, and how many there are.
        """
        if kind is not None and kind not in KINDS:
            raise UnknownName.among("kind of file", kind, KINDS)
        found = (
            each
            for each in self._entries(on_file)
            if kind in {None, each.kind}
            and (family is None or each.family.casefold() == family.casefold())
            and (search is None or each.mentions(search))
        )
        return sorted(found, key=lambda each: (each.name.lower(), each.path))

    def names(self) -> list[str]:
        """The names of all overlays, sorted."""
        found = {_folded(each.name): each.name for each in reversed(self._entries()) if each.may_be(OVERLAYS)}
        return sorted(found.values(), key=str.lower)

    def entry(self, name: str, kind: str | None = None) -> Entry:
        """What is known of the file of that name, of any kind or of one."""
        return self._chosen(name, KINDS if kind is None else (kind,), kind or "file")

    def path(self, name: str, kind: str | None = None) -> Path:
        """Where the overlay of that name lies: the one of a kind, if there is one, or else of any."""
        found = self._found(name, (kind,)) if kind in OVERLAYS else []
        return self._first(found or self._found(name, OVERLAYS), name, OVERLAYS, "overlay").path

    def overlay(self, name: str, kind: str | None = None) -> Overlay:
        """The overlay of that name, of a kind rather than another: the same at every call, until its file changes."""
        from velatura.formats import open_overlay

        path = self.path(name, kind)
        key = (path, State.of(told_by(path) or path))
        if key not in self._loaded:
            self._loaded[key] = open_overlay(path, partial(self._member, path))
        return self._loaded[key]

    def base(
        self,
        name: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        vae: str | PathLike[str] | None = None,
        offload: bool = False,
        weights: Weights = "last",
    ) -> Base:
        """The base of that name: the same object as at the last call, if it was the same; only one is kept.

        vae: another autoencoder, by its name here or by its path; without it the one that the base's notes ask for, or
        one that is called as the base is and then .vae, as A1111 looks for them, or else the base's own.
        """
        from velatura.formats import open_base

        entry = self._chosen(name, BASES, "base")
        own = self._vae(entry, vae)
        key = (entry.path, entry.place.state, dtype, device, offload, weights, own, own and State.of(own))
        if self._base is None or self._base[0] != key:
            self._base = None  # let go of one before the next is loaded
            base = open_base(entry.path, dtype=dtype, device=device, vae=own, offload=offload, weights=weights)
            if (hashes := self.hashed(entry).hashes) is not None:
                base.hash = hashes.sha256[:10]  # which every recipe asks for: it is not to be reckoned at each start
            self._base = key, base
        return self._base[1]

    def hashed(self, entry: Entry) -> Entry:
        """An entry with its hashes, which are reckoned once for as long as the file stays unchanged."""
        return next(self._catalogue.hashed([entry.place]))

    def _vae(self, base: Entry, asked: str | PathLike[str] | None) -> Path | None:
        """The file of another autoencoder than a base's own."""
        if asked is not None:
            path = Path(asked).expanduser()
            return path if path.exists() else self.entry(str(asked), "vae").path
        wanted = base.notes.vae if base.notes.vae not in NO_VAE else ""
        if wanted and (found := self._found(wanted, ("vae",))):
            return found[0].path
        if wanted:
            said = f"{base.name}'s notes ask for the VAE {wanted!r}, which is not here: its own is taken, so add it"
            warnings.warn(said, VelaturaWarning, stacklevel=3)
        found = self._found(f"{base.name}.vae", ("vae",))
        return found[0].path if found else None

    def _member(self, composition: Path, name: str) -> Overlay:
        """A hypernetwork that a composition names: never a composition again, which might name the first in turn."""
        path = self.path(name, "hypernet")
        if path == composition:
            raise BadFile(f"{composition} is called {name!r} as what it names is: rename it")
        if path.suffix == composition.suffix:
            raise BadFile(f"{composition} names {name!r}, a composition itself: name what that names")
        return self.overlay(name, "hypernet")

    def _places(self) -> list[Place]:
        """All files, those of the folder given first before others."""
        return list({each.path: each for folder in self._folders for each in places_in(folder)}.values())

    def _entries(self, on_file: OnFile | None = None) -> list[Entry]:
        places = self._places()
        for folder in self._folders:
            self._catalogue.forget(folder, places)
        entries = self._catalogue.entries(places, on_file)
        return [each for each in entries if each.kind != UNKNOWN or each.nature.container != PICTURE]

    def _chosen(self, name: str, kinds: Sequence[str], what: str) -> Entry:
        return self._first(self._found(name, kinds), name, kinds, what)

    def _first(self, found: Sequence[Entry], name: str, kinds: Sequence[str], what: str) -> Entry:
        """The first that was found, of which a rival is named, or the error that names what is near."""
        if not found:
            known = {called for each in self._entries() if each.may_be(kinds) for called in (each.name, *each.aliases)}
            raise UnknownName.among(what, name, known, " or ".join(map(str, self._folders)))
        chosen, *others = found
        if rival := next((each for each in others if _thing(each) != _thing(chosen)), None):
            said = f"{chosen.path} and {rival.path} are both called {name[:80]!r}: the first is taken, so rename one"
            warnings.warn(said, VelaturaWarning, stacklevel=3)
        return chosen

    def _found(self, name: str, kinds: Sequence[str]) -> list[Entry]:
        """What is called so: by a file's name, which says most, or else by what is in files, or else by its hash."""
        places = self._places()
        called = _folded(name)
        if found := self._of(kinds, [each for each in places if called in _names(each)]):
            return found
        if title := TITLE.fullmatch(name.strip()):
            return self._by_hash(title["hash"].lower(), places, kinds) or self._found(title["name"], kinds)
        entries = self._catalogue.entries(places)
        if found := [each for each in entries if each.may_be(kinds) and called in map(_folded, each.aliases)]:
            return found
        digits = HASH.fullmatch(called)
        return self._by_hash(digits[1], places, kinds) if digits else []

    def _of(self, kinds: Sequence[str], places: list[Place]) -> list[Entry]:
        """What is of these kinds, or else what may be, or else what nobody knows: opening it says why."""
        entries = self._catalogue.entries(places)
        known = [each for each in entries if each.kind in kinds]
        meant = [each for each in entries if each.kind == UNKNOWN and each.place.meant in {"", *kinds}]
        return known or [each for each in meant if each.trouble] or meant

    def _by_hash(self, digits: str, places: list[Place], kinds: Sequence[str]) -> list[Entry]:
        """The first file of such a hash: by what is known, or else by hashing what is not, the smallest first."""
        entries = [each for each in self._catalogue.entries(places) if each.kind in kinds]
        if found := [each for each in entries if _is_known_by(each, digits)]:
            return found[:1]
        files = [each for each in entries if each.hashes is None and not each.place.is_folder]
        if len(digits) == 8:  # then 64 KiB of each say it
            found = (each for each in files if old_hash(each.path) == digits)
        else:
            smallest_first = sorted((each.place for each in files), key=lambda each: each.state.size)
            hashed = self._catalogue.hashed(smallest_first)
            found = (each for each in hashed if each.hashes and each.hashes.has(digits))
        return list(islice(found, 1))


def entry_of(path: str | PathLike[str], cache: str | PathLike[str] | None = None) -> Entry:
    """What is known of one file or folder of weights, wherever it lies, with its hashes; the index is a library's."""
    path = Path(path).expanduser()
    if not path.exists():
        raise BadFile(f"{path} does not exist: give the path of a file, or of a folder in diffusers' layout")
    if told_by(path) is None:
        raise BadFile(f"{path} is a directory, not in diffusers' or peft's layout: give the path of a file in it")
    if not path.is_dir() and not path.is_file():  # a device or a pipe, which could be read without end
        raise BadFile(f"{path} is neither a file nor a directory: give the path of a file that can be read")
    return next(Catalogue(Index(cache_folder(cache))).hashed([place_of(path)]))


def _folded(name: str) -> str:
    """A name in the form in which names are compared: systems differ in how they write letters with accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _names(place: Place) -> set[str]:
    """What a file may be called: its stem, its name, its path in the folder with its ending or without."""
    below = place.below if place.is_folder else place.below + place.path.suffix
    return {_folded(each) for each in (place.name, place.path.name, place.below, below)}


def _thing(entry: Entry) -> tuple[str, str]:
    """What files of one thing in several formats have in common."""
    return entry.kind, os.path.realpath(entry.path.with_suffix(""))


def _is_known_by(entry: Entry, digits: str) -> bool:
    claimed = (*entry.nature.claimed_hashes, *entry.notes.hashes)
    return any(each.startswith(digits) for each in claimed) or (entry.hashes is not None and entry.hashes.has(digits))
