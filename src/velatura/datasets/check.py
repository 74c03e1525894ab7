"""A folder looked at before anybody trains on it: what would stop the training, and what would spoil it."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from velatura.datasets.captions import TEXT_SUFFIXES, Caption, NameRules, Source, caption_of, read_lists
from velatura.datasets.folder import all_folders, folders_left_out
from velatura.datasets.measures import alike, blur, grey, look, noise
from velatura.datasets.pictures import as_rgb, opened, picture_paths
from velatura.errors import BadDataset

MOST_BITS = 4  # of 64; bundled pictures differ in 10 or more, one saved at JPEG's quality 30 or resized in up to 4
BLURRED = 0.6  # bundled pictures reach 0.39, those blurred by two of their 64 pixels have 0.60 in the middle
NOISY = 12.0  # of 255; bundled pictures reach 8.2, with noise of 20 in each channel they have 14
MUCH_CUT = 0.25  # of a picture
LONG_WORDS = 60  # about 75 tokens, after which a caption takes a second chunk


class Grade(StrEnum):
    """How bad a finding is: training stops, it learns something unwanted, or it is worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing found: kind is a word for machines, text a sentence's end for people."""

    grade: Grade
    kind: str
    file: Path
    text: str


@dataclass(frozen=True)
class Looked:
    """One picture as it is: its size upright, what its file says, and what was measured."""

    path: Path
    width: int
    height: int
    mode: str
    caption: Caption | None
    repeats: int
    cut: float  # share of it outside the middle square
    blur: float
    noise: float
    look: int
    mirrored_look: int


@dataclass
class Report:
    """All that was found in a folder."""

    folder: Path
    pixels: int
    pictures: list[Looked] = field(default_factory=list[Looked])
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def errors(self) -> list[Finding]:
        """What would stop the training."""
        return [finding for finding in self.findings if finding.grade is Grade.ERROR]

    def tags(self) -> Counter[str]:
        """How many captions have each tag: what stands between commas."""
        captions = [picture.caption.text for picture in self.pictures if picture.caption]
        return Counter(tag for text in captions for tag in {part.strip() for part in text.split(",")} if tag)


def check_folder(folder: str | os.PathLike[str], pixels: int = 512, *, rules: NameRules | None = None) -> Report:
    """Read every picture to its end and look for what is wrong with it, its caption, and the folder as a whole.

    pixels: the side that pictures will be trained at. Raises BadDataset only for a missing folder or one without
    pictures: whatever else is wrong is in the report.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadDataset(f"{folder} is no folder; name a folder of pictures")
    report = Report(folder, pixels)
    for inner, repeats in all_folders(folder):
        _check_inner(inner, repeats, report, rules or NameRules())
    if not report.pictures and not report.findings:
        raise BadDataset(f"{folder} holds no pictures; put some in")
    for inner in folders_left_out(folder):
        text = f"its pictures are left out; call it 1_{inner.name} if they are to be learned from"
        report.findings.append(Finding(Grade.WARNING, "folder", inner, text))
    report.findings += _duplicates(report.pictures)
    return report


def picture_count(folder: Path) -> int:
    """How many picture files there are, readable or not."""
    return sum(len(picture_paths(inner)) for inner, _ in all_folders(folder.expanduser()))


def _check_inner(folder: Path, repeats: int, report: Report, rules: NameRules) -> None:
    paths = picture_paths(folder)
    try:
        listed = read_lists(folder)
    except BadDataset as error:
        report.findings.append(Finding(Grade.ERROR, "list", folder, str(error)))
        listed = {}
    for path in paths:
        caption = _caption(path, listed, rules, report.findings)
        try:
            looked = _look(path, caption, repeats, report.findings)
        except BadDataset as error:
            report.findings.append(Finding(Grade.ERROR, "unreadable", path, _reason(error, path)))
            continue
        report.pictures.append(looked)
        report.findings += _remarks(looked, report.pixels)
    report.findings += _strays(folder, paths)


def _caption(path: Path, listed: dict[str, Caption], rules: NameRules, findings: list[Finding]) -> Caption | None:
    try:
        caption = caption_of(path, listed, rules)
    except BadDataset as error:
        findings.append(Finding(Grade.ERROR, "caption", path, _reason(error, path)))
        return None
    if caption.source is Source.NAME:
        findings.append(Finding(Grade.NOTE, "named", path, f"its name is its caption: {caption.text!r}"))
    if len(caption.text.split()) > LONG_WORDS:
        text = f"its caption has {len(caption.text.split())} words; beyond about 75 tokens it takes a second chunk"
        findings.append(Finding(Grade.NOTE, "long", path, text))
    return caption


def _look(path: Path, caption: Caption | None, repeats: int, findings: list[Finding]) -> Looked:
    with opened(path) as image:
        findings += _oddities(path, image)
        mode = image.mode
        picture = as_rgb(ImageOps.exif_transpose(image))
    seen, side = grey(picture), min(picture.size)
    cut = 1 - side / max(picture.size)
    looks = look(picture), look(ImageOps.mirror(picture))
    return Looked(path, *picture.size, mode, caption, repeats, cut, blur(seen), noise(seen), *looks)


def _oddities(path: Path, image: Image.Image) -> Iterator[Finding]:
    """What the file says of itself that one may not expect."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        yield Finding(Grade.NOTE, "turned", path, "its camera was held sideways or upside down; it is read upright")
    if getattr(image, "n_frames", 1) > 1:
        yield Finding(Grade.WARNING, "animated", path, "it has several frames, of which the first is read")
    if image.has_transparency_data:
        yield Finding(Grade.NOTE, "transparent", path, "what is transparent becomes white, or counts less where asked")
    elif image.mode not in {"RGB", "L"}:
        yield Finding(Grade.NOTE, "mode", path, f"its colours are {image.mode}, which are brought to RGB")


def _remarks(looked: Looked, pixels: int) -> Iterator[Finding]:
    size, path = f"{looked.width}x{looked.height}", looked.path
    if min(looked.width, looked.height) < pixels:
        yield Finding(Grade.WARNING, "small", path, f"it is {size}, so it is enlarged to {pixels} and looks soft")
    if looked.cut > MUCH_CUT:
        text = f"it is {size}: its middle square leaves out {looked.cut:.0%}; try velatura dataset crop"
        yield Finding(Grade.WARNING, "cropped", path, text)
    if looked.blur > BLURRED:
        yield Finding(Grade.WARNING, "blurred", path, f"it may be blurred or enlarged ({looked.blur:.2f} of 1)")
    if looked.noise > NOISY:
        yield Finding(Grade.WARNING, "noisy", path, f"it may be noisy ({looked.noise:.0f} of 255)")


def _duplicates(pictures: Sequence[Looked]) -> Iterator[Finding]:
    """Pictures that look like an earlier one, or like its mirror image."""
    reported = set[int]()
    count = len(pictures)
    both = [picture.look for picture in pictures] + [picture.mirrored_look for picture in pictures]
    for first, second in alike(both, MOST_BITS):
        earlier, later = sorted((first % count, second % count))
        if earlier == later or later in reported or (first >= count and second >= count):
            continue  # a symmetric picture looks like its own mirror image
        reported.add(later)
        how = "looks like" if second < count else "looks like the mirror image of"
        yield Finding(Grade.WARNING, "duplicate", pictures[later].path, f"it {how} {pictures[earlier].path.name}")


def _strays(folder: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    stems = Counter(path.stem for path in paths)
    for path in paths:
        if stems[path.stem] > 1:
            yield Finding(Grade.WARNING, "name", path, "another picture of this name shares its caption")
    texts = [path for path in sorted(folder.iterdir()) if path.suffix in TEXT_SUFFIXES and path.stem not in stems]
    for path in texts if paths else ():
        yield Finding(Grade.NOTE, "stray", path, "it belongs to no picture")


def _reason(error: BadDataset, path: Path) -> str:
    """What went wrong, without the path that stands before it already."""
    return str(error).removeprefix(f"{path} ")
