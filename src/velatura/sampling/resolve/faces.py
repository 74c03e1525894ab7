"""Restore the faces of pictures: find the networks that a recipe names in the library, and apply them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import torch
from PIL import Image

from velatura.errors import UnknownName, quantity, warn
from velatura.face_restoration import (
    FaceRestorer,
    OnFace,
    RestoredImage,
    RetinaFaceDetector,
    open_face_detector,
    open_face_restorer,
    restore_faces,
)
from velatura.face_restoration.read_files import CODEFORMER, GFPGAN, RETINAFACE
from velatura.library import Library
from velatura.library.entry import FACE_KINDS, LibraryEntry
from velatura.library.model_files import FileState
from velatura.sampling.recipe.recipe import Recipe

RESTORER_KIND, DETECTOR_KIND = FACE_KINDS
# A1111's names of the restorers, its own default first, and the files that it downloads for them
RESTORER_FILES = {CODEFORMER: "codeformer-v0.1.0.pth", GFPGAN: "GFPGANv1.4.pth"}
RESTORER_FOLDERS = {CODEFORMER: "models/Codeformer", GFPGAN: "models/GFPGAN"}
DETECTOR_FILE = "detection_Resnet50_Final.pth"

Model = TypeVar("Model", FaceRestorer, RetinaFaceDetector)
ModelKey = tuple[Path, FileState, str]  # threads that compute on different devices share no network: it would be moved
# The networks that jobs hold now, so that the pictures of one request share theirs
_OPEN_RESTORERS: WeakValueDictionary[ModelKey, FaceRestorer] = WeakValueDictionary()
_OPEN_DETECTORS: WeakValueDictionary[ModelKey, RetinaFaceDetector] = WeakValueDictionary()


class FaceModels(NamedTuple):
    """The networks that restore faces.

    Attributes:
        name: What a recipe records: GFPGAN or CodeFormer, or the name of the file that was asked for.
        restorer: Restores a face.
        detector: Finds the faces.
    """

    name: str
    restorer: FaceRestorer
    detector: RetinaFaceDetector


class FaceFiles(NamedTuple):
    """The files of those networks in a library; `open` opens them."""

    name: str
    restorer: LibraryEntry
    detector: LibraryEntry

    def open(self, device: torch.device | str) -> FaceModels:
        """Open the networks for a device, or return those that are open already; raises BadFile if one is damaged."""
        restorer = _open_once(_OPEN_RESTORERS, self.restorer, device, open_face_restorer)
        return FaceModels(self.name, restorer, _open_once(_OPEN_DETECTORS, self.detector, device, open_face_detector))


def find_recipe_faces(recipe: Recipe, library: Library | None, device: torch.device) -> FaceModels | None:
    """Return the networks by which a recipe restores faces, None if it does not.

    Warns if the library does not have them: then the picture is made without.

    Args:
        recipe: The recipe.
        library: Where files are found, None for nowhere.
        device: Where the networks will compute.

    Raises:
        BadFile: A file cannot be read.
    """
    if not recipe.restore_faces:
        return None
    try:
        files = find_face_files(recipe.face_restorer, library)
    except UnknownName as error:
        warn(f"faces are not restored: {error}")
        return None
    return files.open(device)


def find_face_files(name: str | None, library: Library | None) -> FaceFiles:
    """Return the files of the networks that restore faces.

    Args:
        name: GFPGAN or CodeFormer, or the name of a file. None: CodeFormer if its file is there, otherwise GFPGAN.
        library: Where files are found, None for nowhere.

    Raises:
        UnknownName: The library does not have the restorer, or no detector of faces.
    """
    if library is None:
        raise UnknownName(f"restoring faces needs files: give a library with {_file_advice(name)} and {DETECTOR_FILE}")
    restorer, recorded = _find_restorer(name, library)
    return FaceFiles(recorded, restorer, find_face_detector(library))


def find_face_detector(library: Library) -> LibraryEntry:
    """Return the file of the network that finds faces: the usual one if there are several.

    Raises:
        UnknownName: The library does not have it.
    """
    entries = _usable_entries(library, DETECTOR_KIND)
    detectors = [entry for entry in entries if entry.info.card.outline == RETINAFACE]
    if not detectors:
        raise UnknownName(
            f"restoring faces needs {DETECTOR_FILE}, which finds them, and the library does not have it: put it into "
            "models/GFPGAN"
        )
    usual = Path(DETECTOR_FILE).stem
    return max(detectors, key=lambda entry: entry.name == usual)


def list_face_restorers(library: Library) -> list[str]:
    """Return the names by which a recipe can ask for a restorer: GFPGAN, CodeFormer, and of several files their own."""
    return restorer_names(_usable_entries(library, RESTORER_KIND))


def restorer_names(entries: Sequence[LibraryEntry]) -> list[str]:
    """Return the same of usable entries of the kind "face-restorer"."""
    names: list[str] = []
    for model in RESTORER_FILES:
        files = [entry.name for entry in entries if entry.info.card.outline == model]
        names += [model, *(files if len(files) > 1 else ())] if files else []
    return names


def restore_picture_faces(
    models: FaceModels,
    images: Sequence[Image.Image],
    *,
    weight: float,
    device: torch.device,
    on_face: OnFace | None = None,
) -> list[Image.Image]:
    """Restore the faces of pictures; warn of pictures without any, and of pictures with too many.

    Args:
        models: The networks.
        images: Pictures in RGB.
        weight: CodeFormer's weight, 0 for the best looks to 1 for the closest likeness.
        device: Where the networks compute.
        on_face: Called with the faces done and the faces of the picture, before each face and at the end of each
            picture; what it raises ends the work.
    """
    results = [
        restore_faces(models.restorer, models.detector, image, fidelity=weight, device=device, on_face=on_face)
        for image in images
    ]
    for message in dict.fromkeys(describe_faces_left_out(result) for result in results):
        if message:
            warn(message)
    without = sum(not result.face_count for result in results)
    if without:
        warn(f"no face was found in {quantity(without, 'picture')} of {len(images)}: nothing is restored there")
    return [result.image for result in results]


def describe_faces_left_out(result: RestoredImage) -> str:
    """Return a warning of faces that stay as they are because there are too many; an empty text if there are not."""
    if not result.left_out:
        return ""
    found = result.face_count + result.left_out
    return f"{found} faces were found in a picture, and the {result.face_count} surest are restored: crop it for others"


def _find_restorer(name: str | None, library: Library) -> tuple[LibraryEntry, str]:
    """Return the file of a restorer, and the name under which a recipe records it."""
    model_by_lower = {model.lower(): model for model in RESTORER_FILES}
    wanted = [model_by_lower[name.lower()]] if name and name.lower() in model_by_lower else []
    if name and not wanted:
        try:
            entry = library.entry(name, RESTORER_KIND, label="face restorer")
        except UnknownName:
            known = (*RESTORER_FILES, *list_face_restorers(library))
            raise UnknownName.with_suggestions("face restorer", name, dict.fromkeys(known)) from None
        return entry, entry.name
    entries = _usable_entries(library, RESTORER_KIND)
    for model in wanted or RESTORER_FILES:
        if found := [entry for entry in entries if entry.info.card.outline == model]:
            usual = Path(RESTORER_FILES[model]).stem
            # among others the last by name, which is the newest version
            return max(found, key=lambda entry: (entry.name == usual, entry.name.lower())), model
    raise UnknownName(f"{_file_advice(name)} is not in the library: put it into {_folder_advice(name)}")


def _file_advice(name: str | None) -> str:
    """Return which file to get."""
    files = {model.lower(): file for model, file in RESTORER_FILES.items()}
    return files.get((name or "").lower(), name) or " or ".join(RESTORER_FILES.values())


def _folder_advice(name: str | None) -> str:
    folders = {model.lower(): folder for model, folder in RESTORER_FOLDERS.items()}
    return folders.get((name or "").lower()) or " or ".join(RESTORER_FOLDERS.values())


def _usable_entries(library: Library, kind: str) -> list[LibraryEntry]:
    return [entry for entry in library.entries(kind=kind) if not entry.error]


def _open_once(
    models: WeakValueDictionary[ModelKey, Model],
    entry: LibraryEntry,
    device: torch.device | str,
    open_model: Callable[[Path], Model],
) -> Model:
    """Return a network that is open for a device already, or open it if there is none or its file has changed."""
    key = entry.path, entry.file.state, str(device)
    model = models.get(key)
    if model is None:
        model = models[key] = open_model(entry.path)
    return model
