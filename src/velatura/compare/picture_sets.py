"""Sets of pictures with their names and texts, from folders or as images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from velatura.datasets.folder import describe_empty_folder, folders_with_repeats, resolve_folder
from velatura.datasets.pictures import picture_paths, read_upright
from velatura.datasets.read_captions import Caption, CaptionSource, NameRules, read_caption, read_caption_lists
from velatura.errors import BadDataset, BadFile, BadRecipe, choose_number, quantity
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.recipe.recipe import Recipe

Pictures = str | os.PathLike[str] | Sequence[Image.Image]


@dataclass(frozen=True)
class PictureSet:
    """Pictures in memory.

    Attributes:
        images: The pictures.
        names: Their file names without endings, "" for pictures that are not from a folder.
        texts: The text of each picture, None if one has none.
    """

    images: Sequence[Image.Image]
    names: Sequence[str]
    texts: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.images)

    def pairs_with(self, others: PictureSet) -> list[tuple[int, int]]:
        """Return the numbers of pictures of the same name in both sets, if all names are in the other set."""
        numbers = {name: number for number, name in enumerate(others.names) if name}
        if not all(name in numbers for name in self.names):
            return []
        return [(number, numbers[name]) for number, name in enumerate(self.names)]


def read_picture_set(pictures: Pictures, texts: Sequence[str] | None = None) -> PictureSet:
    """Read pictures and their texts.

    Args:
        pictures: A folder, whose subfolders named 10_NAME count too, a picture file, or images.
        texts: The texts; by default, of files, the prompts in them, else their captions. Names are not taken as texts.

    Raises:
        BadDataset: No picture is given, one cannot be read, or the texts are not as many as the pictures.
    """
    is_path = isinstance(pictures, str | os.PathLike)
    found = _read_files(Path(pictures).expanduser()) if is_path else _from_images(pictures)
    if texts is None:
        return found
    if len(texts) != len(found):
        raise BadDataset(
            f"{quantity(len(texts), 'text')} {choose_number(len(texts), 'is', 'are')} given for "
            f"{quantity(len(found), 'picture')}: give one for each picture"
        )
    return PictureSet(found.images, found.names, list(texts))


def _from_images(images: Sequence[Image.Image]) -> PictureSet:
    if not images:
        raise BadDataset("no picture is given: give a folder, or at least one image")
    return PictureSet(list(images), [""] * len(images), None)


def _read_files(path: Path) -> PictureSet:
    if path.is_file():
        paths, folder = [path], path.parent
    else:
        folder = resolve_folder(path)
        paths = [picture for subfolder, _ in folders_with_repeats(folder) for picture in picture_paths(subfolder)]
    if not paths:
        raise BadDataset(describe_empty_folder(folder))
    captions: dict[Path, Mapping[str, Caption]] = {}
    texts: list[str | None] = []
    for picture in paths:
        if picture.parent not in captions:
            captions[picture.parent] = read_caption_lists(picture.parent)
        texts.append(_text_of(picture, captions[picture.parent]))
    known = [text for text in texts if text]
    images = [read_upright(picture) for picture in paths]
    return PictureSet(images, [picture.stem for picture in paths], known if len(known) == len(paths) else None)


def _text_of(path: Path, list_captions: Mapping[str, Caption]) -> str | None:
    """Return the prompt inside a picture without its tags, or its caption, or None; its name is not a text."""
    try:
        prompt = TAG_PATTERN.sub("", Recipe.from_image(path).prompt).strip(" ,")
    except (BadRecipe, BadFile):
        prompt = ""
    if prompt:
        return prompt
    try:
        caption = read_caption(path, list_captions, NameRules())
    except BadDataset:
        return None
    return None if caption.source is CaptionSource.NAME else caption.text
