"""A folder looked at before anybody trains on it: what would stop the training, and what would spoil it."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from velatura.datasets.folder import all_folders, ignored_folders
from velatura.datasets.measures import blur, find_similar, grey, noise, perceptual_hash
from velatura.datasets.pictures import as_rgb, open_picture, picture_paths
from velatura.datasets.read_captions import (
    CAPTION_SUFFIXES,
    Caption,
    CaptionSource,
    NameRules,
    read_caption,
    read_caption_lists,
)
from velatura.errors import BadDataset

MAX_HASH_DISTANCE = (
    4  # of 64; bundled pictures differ in 10 or more, one saved at JPEG's quality 30 or resized in up to 4
)
MAX_BLUR = 0.6  # bundled pictures reach 0.39, those blurred by two of their 64 pixels have 0.60 in the middle
MAX_NOISE = 12.0  # of 255; bundled pictures reach 8.2, with noise of 20 in each channel they have 14
MAX_CROPPED_SHARE = 0.25  # of a picture
MAX_CAPTION_WORDS = 60  # about 75 tokens, after which a caption takes a second chunk


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
class PictureInfo:
    """One picture as it is: its size upright, what its file says, and what was measured."""

    path: Path
    width: int
    height: int
    mode: str
    caption: Caption | None
    repeats: int
    cropped_share: float  # share of it outside the middle square
    blur: float
    noise: float
    perceptual_hash: int
    mirrored_hash: int


@dataclass
class DatasetReport:
    """All that was found in a folder."""

    folder: Path
    pixels: int
    pictures: list[PictureInfo] = field(default_factory=list[PictureInfo])
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def errors(self) -> list[Finding]:
        """What would stop the training."""
        return [finding for finding in self.findings if finding.grade is Grade.ERROR]

    def tags(self) -> Counter[str]:
        """How many captions have each tag: what stands between commas."""
        captions = [picture.caption.text for picture in self.pictures if picture.caption]
        return Counter(tag for text in captions for tag in {part.strip() for part in text.split(",")} if tag)


def check_folder(folder: str | os.PathLike[str], pixels: int = 512, *, rules: NameRules | None = None) -> DatasetReport:
    """Read every picture to its end and look for what is wrong with it, its caption, and the folder as a whole.

    pixels: the side that pictures will be trained at. Raises BadDataset only for a missing folder or one without
    pictures: whatever else is wrong is in the report.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadDataset(f"{folder} is no folder; name a folder of pictures")
    report = DatasetReport(folder, pixels)
    for subfolder, repeats in all_folders(folder):
        _check_subfolder(subfolder, repeats, report, rules or NameRules())
    if not report.pictures and not report.findings:
        raise BadDataset(f"{folder} holds no pictures; put some in")
    for subfolder in ignored_folders(folder):
        text = f"its pictures are left out; call it 1_{subfolder.name} if they are to be learned from"
        report.findings.append(Finding(Grade.WARNING, "folder", subfolder, text))
    report.findings += _duplicate_findings(report.pictures)
    return report


def picture_count(folder: Path) -> int:
    """How many picture files there are, readable or not."""
    return sum(len(picture_paths(subfolder)) for subfolder, _ in all_folders(folder.expanduser()))


def _check_subfolder(folder: Path, repeats: int, report: DatasetReport, rules: NameRules) -> None:
    paths = picture_paths(folder)
    try:
        list_captions = read_caption_lists(folder)
    except BadDataset as error:
        report.findings.append(Finding(Grade.ERROR, "list", folder, str(error)))
        list_captions = {}
    for path in paths:
        caption = _check_caption(path, list_captions, rules, report.findings)
        try:
            info = _inspect_picture(path, caption, repeats, report.findings)
        except BadDataset as error:
            report.findings.append(Finding(Grade.ERROR, "unreadable", path, _reason(error, path)))
            continue
        report.pictures.append(info)
        report.findings += _quality_findings(info, report.pixels)
    report.findings += _name_findings(folder, paths)


def _check_caption(
    path: Path, list_captions: dict[str, Caption], rules: NameRules, findings: list[Finding]
) -> Caption | None:
    try:
        caption = read_caption(path, list_captions, rules)
    except BadDataset as error:
        findings.append(Finding(Grade.ERROR, "caption", path, _reason(error, path)))
        return None
    if caption.source is CaptionSource.NAME:
        findings.append(Finding(Grade.NOTE, "named", path, f"its name is its caption: {caption.text!r}"))
    if len(caption.text.split()) > MAX_CAPTION_WORDS:
        text = f"its caption has {len(caption.text.split())} words; beyond about 75 tokens it takes a second chunk"
        findings.append(Finding(Grade.NOTE, "long", path, text))
    return caption


def _inspect_picture(path: Path, caption: Caption | None, repeats: int, findings: list[Finding]) -> PictureInfo:
    with open_picture(path) as image:
        findings += _file_findings(path, image)
        mode = image.mode
        picture = as_rgb(ImageOps.exif_transpose(image))
    luminance, side = grey(picture), min(picture.size)
    cropped_share = 1 - side / max(picture.size)
    hashes = perceptual_hash(picture), perceptual_hash(ImageOps.mirror(picture))
    return PictureInfo(
        path, *picture.size, mode, caption, repeats, cropped_share, blur(luminance), noise(luminance), *hashes
    )


def _file_findings(path: Path, image: Image.Image) -> Iterator[Finding]:
    """What the file says of itself that one may not expect."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        yield Finding(Grade.NOTE, "turned", path, "its camera was held sideways or upside down; it is read upright")
    if getattr(image, "n_frames", 1) > 1:
        yield Finding(Grade.WARNING, "animated", path, "it has several frames, of which the first is read")
    if image.has_transparency_data:
        yield Finding(Grade.NOTE, "transparent", path, "what is transparent becomes white, or counts less where asked")
    elif image.mode not in {"RGB", "L"}:
        yield Finding(Grade.NOTE, "mode", path, f"its colours are {image.mode}, which are brought to RGB")


def _quality_findings(info: PictureInfo, pixels: int) -> Iterator[Finding]:
    size, path = f"{info.width}x{info.height}", info.path
    if min(info.width, info.height) < pixels:
        yield Finding(Grade.WARNING, "small", path, f"it is {size}, so it is enlarged to {pixels} and looks soft")
    if info.cropped_share > MAX_CROPPED_SHARE:
        text = f"it is {size}: its middle square leaves out {info.cropped_share:.0%}; try velatura dataset crop"
        yield Finding(Grade.WARNING, "cropped", path, text)
    if info.blur > MAX_BLUR:
        yield Finding(Grade.WARNING, "blurred", path, f"it may be blurred or enlarged ({info.blur:.2f} of 1)")
    if info.noise > MAX_NOISE:
        yield Finding(Grade.WARNING, "noisy", path, f"it may be noisy ({info.noise:.0f} of 255)")


def _duplicate_findings(pictures: Sequence[PictureInfo]) -> Iterator[Finding]:
    """Pictures that look like an earlier one, or like its mirror image."""
    reported = set[int]()
    count = len(pictures)
    hashes = [picture.perceptual_hash for picture in pictures] + [picture.mirrored_hash for picture in pictures]
    for first, second in find_similar(hashes, MAX_HASH_DISTANCE):
        earlier, later = sorted((first % count, second % count))
        if earlier == later or later in reported or (first >= count and second >= count):
            continue  # a symmetric picture looks like its own mirror image
        reported.add(later)
        how = "looks like" if second < count else "looks like the mirror image of"
        yield Finding(Grade.WARNING, "duplicate", pictures[later].path, f"it {how} {pictures[earlier].path.name}")


def _name_findings(folder: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    stems = Counter(path.stem for path in paths)
    for path in paths:
        if stems[path.stem] > 1:
            yield Finding(Grade.WARNING, "name", path, "another picture of this name shares its caption")
    texts = [path for path in sorted(folder.iterdir()) if path.suffix in CAPTION_SUFFIXES and path.stem not in stems]
    for path in texts if paths else ():
        yield Finding(Grade.NOTE, "stray", path, "it belongs to no picture")


def _reason(error: BadDataset, path: Path) -> str:
    """What went wrong, without the path that stands before it already."""
    return str(error).removeprefix(f"{path} ")
