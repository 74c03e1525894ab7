"""Check of a folder of pictures before training: errors that would stop it, and flaws that would spoil it."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps

from velatura.datasets.captioners.lint_captions import CaptionFlaw, find_contradictions, lint_captions
from velatura.datasets.folder import (
    all_folders,
    check_same_shape,
    describe_empty_folder,
    find_befores,
    folders_with_repeats,
    ignored_folders,
    resolve_folder,
)
from velatura.datasets.measures import blur, find_similar, grey, noise, perceptual_hash
from velatura.datasets.name_captions import NameRules
from velatura.datasets.pictures import (
    OnPicture,
    as_rgb,
    describe_unread,
    find_pixel_problems,
    open_picture,
    picture_paths,
    read_picture,
    read_upright,
    turn_upright,
    unread_pictures,
)
from velatura.datasets.read_captions import (
    CAPTION_SUFFIXES,
    Caption,
    CaptionSource,
    find_caption_file,
    find_list_problems,
    find_unread_fields,
    odd_texts,
    read_caption,
    read_caption_lists,
)
from velatura.datasets.templates import split_tags
from velatura.errors import BadDataset, MissingCaption, gather_warnings
from velatura.tiny_world import describe_limits_of_training, select_judged, words_of

# Of 64 bits: bundled pictures differ in 10 or more, copies resized or saved as JPEG of quality 30 in at most 4
MAX_HASH_DISTANCE = 4
MAX_BLUR = 0.6  # bundled pictures have at most 0.39, blurred by 2 of their 64 pixels a median of 0.60
MAX_NOISE = 12.0  # of 255: bundled pictures have at most 8.2, with noise of 20 in every channel 14
MAX_CROPPED_SHARE = 0.25  # of a picture
TINY_PIXELS = 64  # of the tiny base's pictures
MAX_CAPTION_WORDS = 60  # about 75 tokens; a longer caption takes a second chunk


class Grade(StrEnum):
    """Severity of a finding: it stops a training, it teaches something unwanted, or it is worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One finding: `kind` is a word for programs, `text` a description for people that follows the file's name."""

    grade: Grade
    kind: str
    file: Path
    text: str


@dataclass(frozen=True)
class PictureInfo:
    """Measurements of one picture, turned upright."""

    path: Path
    width: int
    height: int
    mode: str
    caption: Caption | None
    repeats: int
    cropped_share: float  # outside the middle square
    blur: float
    noise: float
    perceptual_hash: int
    mirrored_hash: int


@dataclass
class DatasetReport:
    """Pictures and findings of a folder that is to be trained on at `pixels`.

    Attributes:
        folder: The folder of the pictures; of a zip, where it was unpacked.
        pixels: Side of the pictures in training.
        source: What was checked: the folder, or the zip.
        pictures: What was measured of each picture that can be read.
        findings: What was found, in the order of the files.
    """

    folder: Path
    pixels: int
    source: Path
    pictures: list[PictureInfo] = field(default_factory=list[PictureInfo])
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def is_unpacked(self) -> bool:
        """Return True if the pictures are in a zip, of which those without a caption are learned without words."""
        return self.folder != self.source

    @property
    def errors(self) -> list[Finding]:
        """Return the findings that would stop a training."""
        return [finding for finding in self.findings if finding.grade is Grade.ERROR]

    def tags(self) -> Counter[str]:
        """Count the captions that have a tag, by tag; tags are separated by commas."""
        captions = [picture.caption.text for picture in self.pictures if picture.caption]
        tags_of_captions = (dict.fromkeys(part.strip() for part in split_tags(text)) for text in captions)
        return Counter(tag for tags in tags_of_captions for tag in tags if tag)  # in the order of the pictures


@gather_warnings()
def check_folder(
    folder: str | os.PathLike[str],
    pixels: int = 512,
    *,
    rules: NameRules | None = None,
    name: str | None = None,
    for_tiny: bool = False,
    on_picture: OnPicture | None = None,
) -> DatasetReport:
    """Read every picture completely and look for faults of pictures, captions and the folder.

    Args:
        folder: Folder of pictures, as for `read_dataset`.
        pixels: Side of the pictures in training.
        rules: Make captions from file names.
        name: What the overlay will be called, whose words may stand in all captions. None: the folder's name.
        for_tiny: Look also for words and pictures that the tiny base does not know, by its own CLIP.
        on_picture: Called after each picture with how many are read, and how many there are. What it raises ends the
            check.

    Raises:
        BadDataset: The folder is missing or has no pictures. All other faults are in the report.
    """
    source = Path(folder).expanduser()
    folder = resolve_folder(source)
    report = DatasetReport(folder, pixels, source)
    total, done = picture_count(folder), 0
    for subfolder, repeats in all_folders(folder):
        for _ in _check_subfolder(subfolder, repeats, report, rules or NameRules()):
            done += 1
            if on_picture is not None:
                on_picture(done, total)
    if not report.pictures and not report.findings:
        raise BadDataset(describe_empty_folder(folder))
    for subfolder, _ in all_folders(folder):
        if unread := unread_pictures(subfolder):
            report.findings.append(Finding(Grade.WARNING, "unread", subfolder, describe_unread(unread)))
    for subfolder in ignored_folders(folder):
        text = f"its pictures are ignored; rename it to 1_{subfolder.name} to train on them"
        report.findings.append(Finding(Grade.WARNING, "folder", subfolder, text))
    alike = list(_find_alike(report.pictures))
    report.findings += _duplicate_findings(alike)
    if name is None:
        name = source.stem if report.is_unpacked else source.absolute().name
    report.findings += _caption_findings(report, alike, name)
    if for_tiny:
        captions = [picture.caption.text for picture in report.pictures if picture.caption]
        pictures = [read_picture(picture.path, TINY_PIXELS) for picture in select_judged(report.pictures)]
        limits = describe_limits_of_training(captions, words_of(name), pictures)
        report.findings += [Finding(Grade.WARNING, "tiny", folder, limit) for limit in limits]
    return report


def picture_count(folder: Path) -> int:
    """Return the number of picture files, readable or not."""
    return sum(len(picture_paths(subfolder)) for subfolder, _ in all_folders(folder.expanduser()))


def _check_subfolder(folder: Path, repeats: int, report: DatasetReport, rules: NameRules) -> Iterator[Path]:
    """Add the pictures of a folder and what is found to a report, and yield each picture after it was read."""
    paths = picture_paths(folder)
    try:
        list_captions = read_caption_lists(folder)
    except BadDataset as error:
        report.findings.append(Finding(Grade.ERROR, "list", folder, str(error)))
        list_captions = {}
    captions: list[Caption] = []
    for path in paths:
        caption = _check_caption(path, list_captions, rules, report)
        captions += [] if caption is None else [caption]
        try:
            info = _inspect_picture(path, caption, repeats, report.findings)
        except BadDataset as error:
            report.findings.append(Finding(Grade.ERROR, "unreadable", path, _reason(error, path)))
        else:
            report.pictures.append(info)
            report.findings += _quality_findings(info, report.pixels)
        yield path
    for kind, problems in (
        ("fields", find_unread_fields(captions)),
        ("missing", find_list_problems(list_captions, paths)),
    ):
        report.findings += [Finding(Grade.WARNING, kind, file, problem) for file, problem in problems]
    report.findings += _name_findings(folder, paths)
    report.findings += _pair_findings(folder, [info for info in report.pictures if info.path.parent == folder])


def _check_caption(
    path: Path, list_captions: dict[str, Caption], rules: NameRules, report: DatasetReport
) -> Caption | None:
    findings = report.findings
    try:
        caption = read_caption(path, list_captions, rules)
    except MissingCaption as error:
        if report.is_unpacked:
            text = "it has no caption, so it is learned without words; write what it shows into a .txt file"
            findings.append(Finding(Grade.WARNING, "caption", path, text))
            return None
        findings.append(Finding(Grade.ERROR, "caption", path, _reason(error, path)))
        return None
    except BadDataset as error:
        findings.append(Finding(Grade.ERROR, "caption", path, _reason(error, path)))
        return None
    if caption.source is CaptionSource.NAME:
        findings.append(Finding(Grade.NOTE, "named", path, f"its file name is its caption: {caption.text!r}"))
    if not caption.text:
        text = "its text file is empty, so it is learned without words; write what it shows, or remove the file"
        findings.append(Finding(Grade.WARNING, "empty", path, text))
    if caption.is_infotext:
        text = "its text holds the settings of a generated picture; only the prompt is learned"
        findings.append(Finding(Grade.WARNING, "infotext", path, text))
    findings += [
        Finding(Grade.WARNING, "odd", path, f"its caption has {problem}") for problem in odd_texts(caption.text)
    ]
    if len(caption.text.splitlines()) > 1:
        text = (
            "its caption has several lines, learned as one text; to learn the first line, as kohya's scripts do, train "
            "with --caption-lines first"
        )
        findings.append(Finding(Grade.NOTE, "lines", path, text))
    if len(caption.text.split()) > MAX_CAPTION_WORDS:
        text = f"its caption has {len(caption.text.split())} words; beyond about 75 tokens it takes a second chunk"
        findings.append(Finding(Grade.NOTE, "long", path, text))
    return caption


def _inspect_picture(path: Path, caption: Caption | None, repeats: int, findings: list[Finding]) -> PictureInfo:
    with open_picture(path) as image:
        findings += _file_findings(path, image)
        mode, is_png = image.mode, image.format == "PNG"
        upright = turn_upright(image)
        for kind, problem in find_pixel_problems(path, upright, is_png=is_png):
            findings.append(Finding(Grade.WARNING, kind, path, f"it {problem}"))
        picture = as_rgb(upright, path.name)
    luminance = grey(picture)
    return PictureInfo(
        path=path,
        width=picture.width,
        height=picture.height,
        mode=mode,
        caption=caption,
        repeats=repeats,
        cropped_share=1 - min(picture.size) / max(picture.size),
        blur=blur(luminance),
        noise=noise(luminance),
        perceptual_hash=perceptual_hash(picture),
        mirrored_hash=perceptual_hash(ImageOps.mirror(picture)),
    )


def _file_findings(path: Path, image: Image.Image) -> Iterator[Finding]:
    """Yield notes on properties of the file that its user may not expect."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        yield Finding(Grade.NOTE, "turned", path, "it is stored sideways or upside down, and is turned upright")
    if getattr(image, "n_frames", 1) > 1:
        yield Finding(Grade.WARNING, "animated", path, "it has several frames; only the first is used")
    if image.has_transparency_data:
        yield Finding(Grade.NOTE, "transparent", path, "transparent areas become white, or count less if masks are on")
    elif image.mode not in {"RGB", "L"}:
        yield Finding(Grade.NOTE, "mode", path, f"its colour mode {image.mode} is converted to RGB")


def _quality_findings(info: PictureInfo, pixels: int) -> Iterator[Finding]:
    size, path = f"{info.width}x{info.height}", info.path
    if min(info.width, info.height) < pixels:
        yield Finding(Grade.WARNING, "small", path, f"it is {size}, so it is enlarged to {pixels} and becomes soft")
    if info.cropped_share > MAX_CROPPED_SHARE:
        text = f"it is {size}: the middle square leaves out {info.cropped_share:.0%}; try velatura dataset crop"
        yield Finding(Grade.WARNING, "cropped", path, text)
    if info.blur > MAX_BLUR:
        yield Finding(Grade.WARNING, "blurred", path, f"it may be blurred or enlarged ({info.blur:.2f} of 1)")
    if info.noise > MAX_NOISE:
        yield Finding(Grade.WARNING, "noisy", path, f"it may be noisy ({info.noise:.0f} of 255)")


class AlikePictures(NamedTuple):
    """Two pictures that look the same, or one like the other mirrored."""

    earlier: Path
    later: Path
    is_mirrored: bool


def _find_alike(pictures: Sequence[PictureInfo]) -> Iterator[AlikePictures]:
    """Yield every picture that looks like an earlier one, or like its mirror image, with that one."""
    reported = set[int]()
    count = len(pictures)
    hashes = [picture.perceptual_hash for picture in pictures] + [picture.mirrored_hash for picture in pictures]
    for first, second in find_similar(hashes, MAX_HASH_DISTANCE):
        earlier, later = sorted((first % count, second % count))
        if earlier == later or later in reported or (first >= count and second >= count):
            continue  # a symmetric picture looks like its own mirror image
        reported.add(later)
        yield AlikePictures(pictures[earlier].path, pictures[later].path, is_mirrored=second >= count)


def _duplicate_findings(alike: Iterable[AlikePictures]) -> Iterator[Finding]:
    for earlier, later, is_mirrored in alike:
        how = "looks like the mirror image of" if is_mirrored else "looks like"
        yield Finding(Grade.WARNING, "duplicate", later, f"it {how} {earlier.name}")


def _caption_findings(report: DatasetReport, alike: Iterable[AlikePictures], name: str) -> Iterator[Finding]:
    """Yield the flaws of training captions; those of class pictures may all be the same."""
    folders = [subfolder for subfolder, _ in folders_with_repeats(report.folder)]
    training_pictures = [picture for picture in report.pictures if picture.path.parent in folders]
    captions = {picture.path: picture.caption.text for picture in training_pictures if picture.caption}
    names = [name, *(subfolder.name for subfolder in folders if subfolder != report.folder)]
    same = [(pair.earlier, pair.later) for pair in alike if not pair.is_mirrored]
    flaws: list[CaptionFlaw] = [*lint_captions(captions, names), *find_contradictions(captions, same)]
    for flaw in flaws:
        yield Finding(Grade.WARNING, flaw.kind, flaw.file or report.folder, flaw.text)


def _pair_findings(folder: Path, pictures: Sequence[PictureInfo]) -> Iterator[Finding]:
    """Yield errors of pictures before an edit, for pix2pix models."""
    try:
        befores = find_befores(folder, {path.stem for path in picture_paths(folder)})
    except BadDataset as error:
        yield Finding(Grade.ERROR, "pair", folder, str(error))
        return
    for info in pictures:
        before = befores.get(info.path.stem)
        if before is None:
            continue
        try:
            read_upright(before)
            check_same_shape(info.path, (info.width, info.height), before)
        except BadDataset as error:
            yield Finding(Grade.ERROR, "pair", before, _reason(error, before))


def _name_findings(folder: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    stems = Counter(path.stem for path in paths)
    for path in paths:
        if stems[path.stem] > 1:
            yield Finding(Grade.WARNING, "name", path, "another picture with this name shares its caption")
    used = {find_caption_file(path) for path in paths}
    others = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in CAPTION_SUFFIXES and path not in used]
    texts = [path for path in others if path.stem not in stems]
    for path in texts if paths else ():
        yield Finding(Grade.NOTE, "stray", path, "no picture has this name")


def _reason(error: BadDataset, path: Path) -> str:
    """Return the error's message without the path, which is shown before it."""
    return str(error).removeprefix(f"{path} ")
