"""Find bases and overlays in folders by name, alias or hash, and load each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from velatura.arguments import check_arguments
from velatura.base.families import FAMILIES, normalize_family_name
from velatura.card import UNKNOWN_KIND
from velatura.errors import BadFile, UnknownName, warn
from velatura.library.entry import FILE_KINDS, OVERLAY_KINDS, Catalogue, LibraryEntry, OnFile
from velatura.library.hashes import old_hash
from velatura.library.index import Index, cache_folder
from velatura.library.loaded import LoadedOverlays
from velatura.library.model_files import FileState, ModelFile, find_model_files, model_file, watched_file
from velatura.library.names import (
    HASH_PATTERN,
    TITLE_PATTERN,
    fold_name,
    has_alias,
    has_exact_case,
    has_hash,
    is_called,
    is_whole_path,
    model_key,
    normalize_path,
    unknown_name_error,
)

if TYPE_CHECKING:
    import torch

    from velatura.base.base import Base
    from velatura.base.families import PredictionWord
    from velatura.formats.checkpoints.single_file import WeightsKind
    from velatura.overlays.overlay import Overlay

BASE_KINDS = ("checkpoint",)
PART_LABELS = {"unet": "UNet", "text": "text encoder", "vae": "vae"}
LONE_PART_KINDS = {"unet": UNKNOWN_KIND, "text": UNKNOWN_KIND, "vae": "vae"}  # kinds of files of a part alone
IMAGE_CONTAINER = "picture"  # FileInfo.container of an image; an image without tensors is not a file of weights
NO_VAE = {"", "None", "Automatic"}  # A1111's words for the checkpoint's own VAE


class Library:
    """Bases and overlays in folders, found by the stem of their file in upper or lower case.

    Model folders of A1111, ComfyUI and similar programs can be used unchanged. Other folders are searched completely,
    except for hidden folders and snapshots of trainings. The kind of a file is detected by its content.

    A file is also found by any number of whole parts at the end of its path (style/ink.safetensors, or with
    backslashes), by the name in its metadata or notes, by its hash, short or long, and by a title of A1111,
    "name [hash]". If a name means two files, the one in the same case is taken, then the one in the folder given first,
    then safetensors, then the first path. The library warns of that, unless they are one model in two formats in one
    folder, or have the same content, or the name is the whole path of one of them.

    Files are searched for in each call, and read once as long as they stay unchanged. What is known about them is kept
    in an index.

    Args:
        folders: The folders to search.
        cache: The folder of the index; by default that of the environment variable VELATURA_CACHE, or the system's
            folder for caches.

    Raises:
        BadFile: A folder does not exist.
    """

    @check_arguments()
    def __init__(self, *folders: str | PathLike[str], cache: str | PathLike[str] | None = None) -> None:
        self.folders = [Path(folder).expanduser() for folder in folders]
        self._catalogue = Catalogue(Index(cache_folder(cache)))
        self._loaded = LoadedOverlays()
        self._advice = ""  # about names that no file has; the command line's if it is empty
        self._base: tuple[object, Base] | None = None
        for folder in self.folders:
            if not folder.is_dir():
                raise BadFile(f"{folder} is not a folder: give the folder of the overlays")

    def entries(
        self,
        *,
        kind: str | None = None,
        family: str | None = None,
        search: str | None = None,
        on_file: OnFile | None = None,
    ) -> list[LibraryEntry]:
        """List the files, sorted by name.

        Args:
            kind: List only files of this kind, one of FILE_KINDS.
            family: List only files for this family of bases: tiny, SD1, SD2 or SDXL; "SD1.5", "XL" and the like count.
            search: List only files with this text in their names, trigger words or descriptions.
            on_file: Called after each file that is read with how many files are done, and how many there are.

        Raises:
            UnknownName: The kind or the family does not exist.
        """
        if kind is not None and kind not in FILE_KINDS:
            raise UnknownName.with_suggestions("kind of file", kind, FILE_KINDS)
        entries = self._entries(on_file)
        if family is not None:
            family = normalize_family_name(family)
            families = {*FAMILIES, *(entry.family for entry in entries if entry.family)}
            if family.casefold() not in map(str.casefold, families):
                raise UnknownName.with_suggestions("family of bases", family, families)
        chosen = [
            entry
            for entry in entries
            if kind in {None, entry.kind}
            and (family is None or entry.family.casefold() == family.casefold())
            and (search is None or entry.mentions(search))
        ]
        return sorted(chosen, key=lambda entry: (entry.name.lower(), entry.path))

    def names(self) -> list[str]:
        """Return the names of all overlays, sorted."""
        names = {
            fold_name(entry.name): entry.name for entry in reversed(self._entries()) if entry.may_be(OVERLAY_KINDS)
        }
        return sorted(names.values(), key=str.lower)

    def entry(self, name: str, kind: str | None = None, *, label: str | None = None) -> LibraryEntry:
        """Return the entry of a file by name.

        Args:
            name: Its name, alias or hash, or civitai:123 with Civitai's number of the version.
            kind: One of FILE_KINDS; None allows all.
            label: What messages call it; by default the kind, or "file".

        Raises:
            UnknownName: No file has this name.
        """
        return self._choose(name, FILE_KINDS if kind is None else (kind,), label or kind or "file")

    def path(self, name: str, kind: str | None = None) -> Path:
        """Return the path of an overlay by name, preferably one of a kind; raises UnknownName."""
        found = self._find(name, (kind,)) if kind in OVERLAY_KINDS else []
        return self._choose_first(found or self._find(name, OVERLAY_KINDS), name, OVERLAY_KINDS, "overlay").path

    def overlay(self, name: str, kind: str | None = None) -> Overlay:
        """Return an overlay by name, preferably one of a kind.

        The overlays asked for last are kept: each is the same object in every call until its file changes.

        Raises:
            UnknownName: No overlay has this name.
            BadFile: Its file cannot be read.
        """
        path = self.path(name, kind)
        state = FileState.from_path(watched_file(path) or path)
        overlay = self._loaded.find(path, state)
        if overlay is None:
            from velatura.formats.open import open_overlay

            overlay = open_overlay(path, partial(self._open_member, path))
            if not overlay.card.family:  # the notes beside the file may know it
                [entry] = self._catalogue.entries([model_file(path)])
                overlay.card = overlay.card.replace(family=entry.family)
            self._loaded.keep(path, state, overlay)
        return overlay

    def base(
        self,
        name: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        unet: str | PathLike[str] | None = None,
        text: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
        vae: str | PathLike[str] | None = None,
        offload: bool = False,
        weights: WeightsKind = "last",
        prediction: PredictionWord | None = None,
        zero_snr: bool | None = None,
    ) -> Base:
        """Return a base by name. The last base is kept, and returned again if nothing has changed.

        Args:
            name: Its name, alias, hash, or title in A1111.
            dtype, device, offload, weights, prediction, zero_snr: See `open_base`.
            unet, text: Names or paths of another UNet and of other text encoders, see `open_base`.
            vae: The name or path of a VAE to use instead of the base's own. By default the one that the base's notes
                name, or a file called NAME.vae, as in A1111.

        Raises:
            UnknownName: No base or VAE has this name.
            BadFile: A file cannot be read.
        """
        entry = self._choose(name, BASE_KINDS, "base")
        vae_path = self._find_vae(entry, vae)
        unet_path = None if unet is None else self.part_path(unet, "unet")
        listed_texts = [text] if isinstance(text, str | PathLike) else text or ()
        text_paths = tuple(self.part_path(path, "text") for path in listed_texts)
        part_paths = [path for path in (unet_path, *text_paths, vae_path) if path is not None]
        key = (
            entry.path,
            entry.file.state,
            dtype,
            device,
            offload,
            weights,
            prediction,
            zero_snr,
            (unet_path, text_paths, vae_path),
            [FileState.from_path(watched_file(path) or path) for path in part_paths],
        )
        if self._base is None or self._base[0] != key:
            self._base = None  # free the memory before the next one is loaded
            from velatura.formats.open import open_base

            base = open_base(
                entry.path,
                dtype=dtype,
                device=device,
                unet=unet_path,
                text=text_paths,
                vae=vae_path,
                offload=offload,
                weights=weights,
                prediction=prediction,
                zero_snr=zero_snr,
            )
            if unet_path is None and (hashes := self.with_hashes(entry).hashes) is not None:
                base.hash = hashes.sha256[:10]  # which every recipe asks for: it is not to be reckoned at each start
            self._base = key, base
        return self._base[1]

    def forget_base(self) -> None:
        """Let go of the last base, so that its memory is free once nobody else uses it."""
        self._base = None

    def with_hashes(self, entry: LibraryEntry) -> LibraryEntry:
        """Return an entry with its hashes, which are computed once as long as the file stays unchanged."""
        return next(self._catalogue.with_hashes([entry.file]))

    def part_path(self, part: str | PathLike[str], kind: str) -> Path:
        """Return the path of a part of a base.

        Args:
            part: A path that exists, a name or hash in the library, or hub:OWNER/NAME, which is fetched.
            kind: "unet", "text" or "vae".

        Raises:
            UnknownName: None of them is there.
            DownloadFailed: The hub does not have the model, or cannot be reached.
        """
        if str(part).startswith("hub:"):
            from velatura.formats import hub

            return hub.fetch(str(part))
        path = Path(part).expanduser()
        if path.exists():
            return path
        kinds = ("vae",) if kind == "vae" else (UNKNOWN_KIND, *BASE_KINDS)
        return self._choose(str(part), kinds, PART_LABELS[kind]).path

    def recorded_part(self, name: str | None, digits: str | None, kind: str) -> Path | None:
        """Return the file of a part that a recipe records, None if the library does not have it.

        Args:
            name: The name of its file, or of a base that holds the part.
            digits: Its hash. None if the recipe has none: the name decides then.
            kind: "text" or "vae".
        """
        kinds = (LONE_PART_KINDS[kind], *BASE_KINDS)
        found = self._find(name, kinds) if name and name not in NO_VAE else []
        if not digits:
            return self._choose_first(found, str(name), kinds, PART_LABELS[kind]).path if found else None
        hashed = [self.with_hashes(entry) for entry in found]
        same = [entry for entry in hashed if entry.hashes and entry.hashes.has(digits)]
        same = same or self._find_by_hash(digits, self._model_files(), (LONE_PART_KINDS[kind],))  # it was renamed
        return same[0].path if same else None

    def _find_vae(self, base: LibraryEntry, vae: str | PathLike[str] | None) -> Path | None:
        """Return the file of the VAE to use instead of a base's own, None if there is none."""
        if vae is not None:
            return self.part_path(vae, "vae")
        wanted = base.notes.vae if base.notes.vae not in NO_VAE else ""
        if wanted:
            found = self._find(wanted, ("vae",))
            if found:
                return found[0].path
            warn(f"the notes of {base.name} name the VAE {wanted!r}, which is missing, so another is used: add it")
        found = self._find(f"{base.name}.vae", ("vae",))
        return found[0].path if found else None

    def _open_member(self, composition: Path, name: str) -> Overlay:
        """Open a hypernetwork that a composition names; never another composition, which could name the first one."""
        path = self.path(name, "hypernet")
        if path == composition:
            raise BadFile(f"{composition} has the same name {name!r} as the hypernetwork that it refers to: rename it")
        if path.suffix == composition.suffix:
            raise BadFile(f"{composition} refers to the composition {name!r}: refer to the hypernetworks in it")
        return self.overlay(name, "hypernet")

    def _model_files(self) -> list[ModelFile]:
        """Find all files, those of the folder given first before others."""
        return list({file.path: file for folder in self.folders for file in find_model_files(folder)}.values())

    def _entries(self, on_file: OnFile | None = None) -> list[LibraryEntry]:
        files = self._model_files()
        for folder in self.folders:
            self._catalogue.forget(folder, files)
        entries = self._catalogue.entries(files, on_file)
        return [entry for entry in entries if entry.kind != UNKNOWN_KIND or entry.info.container != IMAGE_CONTAINER]

    def _choose(self, name: str, kinds: Sequence[str], label: str) -> LibraryEntry:
        return self._choose_first(self._find(name, kinds), name, kinds, label)

    def _choose_first(self, found: Sequence[LibraryEntry], name: str, kinds: Sequence[str], label: str) -> LibraryEntry:
        """Return the first entry found and warn of another one, or raise the error that suggests similar names."""
        if not found:
            known = {
                entry_name
                for entry in self._entries()
                if entry.kind in kinds and not entry.error
                for entry_name in (entry.name, *(() if entry.file.is_snapshot else entry.aliases))
            }
            raise unknown_name_error(label, name, known, " or ".join(map(str, self.folders)), self._advice)
        chosen, *others = found
        rivals = [entry for entry in others if not self._is_same_model(entry, chosen)]
        if rivals:
            warn(
                f"{chosen.path} and {rivals[0].path} are both called {name[:80]!r}: the first is used; rename one, or "
                "write more of its path"
            )
        return chosen

    def _is_same_model(self, entry: LibraryEntry, other: LibraryEntry) -> bool:
        """Return True for two formats of one model in one folder, and for two files with the same content."""
        if model_key(entry) == model_key(other):
            return True
        if entry.file.is_folder or other.file.is_folder or entry.file.state.size != other.file.state.size:
            return False
        return self.with_hashes(entry).hashes == self.with_hashes(other).hashes

    def _find(self, name: str, kinds: Sequence[str]) -> list[LibraryEntry]:
        """Find entries by name or path, else by title and hash, else by aliases in files and notes, else by hash."""
        files = self._model_files()
        folded_name, path_name = fold_name(name), normalize_path(name)
        called = [file for file in files if is_called(file, path_name)]
        found = self._of_kinds(kinds, sorted(called, key=lambda file: not has_exact_case(file, name)))
        if found:
            return [entry for entry in found if is_whole_path(entry.file, path_name)] or found
        title = TITLE_PATTERN.fullmatch(name.strip())
        if title:
            return self._find_by_title(title["name"], title["hash"].lower(), files, kinds)
        entries = self._catalogue.entries(files)
        named = [entry for entry in entries if entry.may_be(kinds) and has_alias(entry, folded_name)]
        found = [entry for entry in named if not entry.file.is_snapshot]
        if found:
            return found
        digits = HASH_PATTERN.fullmatch(folded_name)
        return self._find_by_hash(digits[1], files, kinds) if digits else []

    def _find_by_title(
        self, name: str, digits: str, files: list[ModelFile], kinds: Sequence[str]
    ) -> list[LibraryEntry]:
        """Find the entry of a name with a hash; else the one of the hash, which was renamed; else that of the name."""
        named = self._find(name, kinds)
        found = [entry for entry in named if has_hash(self.with_hashes(entry), digits)]
        found = found or self._find_by_hash(digits, files, kinds)
        if named and not found:
            warn(
                f"no file has the hash {digits} of {name[:80]!r}: {named[0].path} is used, which may be another version"
            )
        return found or named

    def _of_kinds(self, kinds: Sequence[str], files: list[ModelFile]) -> list[LibraryEntry]:
        """Return the entries of these kinds, else those that cannot be read, else those of unknown kind.

        Opening one of the latter explains what is wrong with it.
        """
        entries = self._catalogue.entries(files)
        known = [entry for entry in entries if entry.kind in kinds]
        candidates = [
            entry for entry in entries if entry.kind == UNKNOWN_KIND and entry.file.expected_kind in {"", *kinds}
        ]
        return known or [entry for entry in candidates if entry.error] or candidates

    def _find_by_hash(self, digits: str, files: list[ModelFile], kinds: Sequence[str]) -> list[LibraryEntry]:
        """Find the first file with a hash, by known hashes or else by hashing the other files, the smallest first."""
        entries = [entry for entry in self._catalogue.entries(files) if entry.kind in kinds]
        found = [entry for entry in entries if has_hash(entry, digits)]
        if found:
            return found[:1]
        unhashed = [entry for entry in entries if entry.hashes is None and not entry.file.is_folder]
        if len(digits) == 8:  # the old hash, which reads only 64 KiB of a file
            matching = (entry for entry in unhashed if old_hash(entry.path) == digits)
        else:
            smallest_first = sorted((entry.file for entry in unhashed), key=lambda file: file.state.size)
            hashed = self._catalogue.with_hashes(smallest_first)
            matching = (entry for entry in hashed if entry.hashes and entry.hashes.has(digits))
        return list(islice(matching, 1))
