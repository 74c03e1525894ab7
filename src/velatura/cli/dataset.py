"""Run `velatura dataset check`, `crop`, `caption` and `review`: prepare a folder of pictures for training."""

import json
import sys
from collections import Counter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from velatura.cli.screen import print_error, say, say_json
from velatura.cli.train.options import bundled_or_given
from velatura.errors import BadDataset, choose_number, quantity

if TYPE_CHECKING:
    from velatura.datasets.check import DatasetReport
    from velatura.datasets.crop import CroppedPicture

MIN_GROUP = 3  # findings of one kind that are said in one line, with what to do
GROUPED_FINDINGS = {
    "small": "pictures are smaller than {pixels} pixels, so they are enlarged and become soft: use larger ones, or a "
    "lower --size",
    "cropped": "pictures lose more than a quarter to the middle square: try `velatura dataset crop`, or train with "
    "--set shape=buckets",
    "blurred": "pictures may be blurred or enlarged: look at them, and take out those that are",
    "noisy": "pictures may be noisy: look at them, and take out those that are",
    "named": "captions are file names: read them, and write a .txt file where a name says nothing",
    "mode": "pictures have another colour mode and are converted to RGB",
    "turned": "pictures are stored sideways or upside down, and are turned upright",
    "transparent": "pictures have transparent areas, which become white, or count less if masks are on",
    "animated": "pictures have several frames: only the first one is used",
    "stray": "text files have the name of no picture: rename them, or take them away",
}
MAX_FINDINGS_SHOWN = 10  # of one kind of finding
MAX_TAGS_SHOWN = 12
TINY_CAPTIONER_HINT = (
    "the tiny captioner names one of 20 subjects (house, cat, key, ...), a colour, a place and a time of day, whatever "
    "a picture shows: for photographs give --with blip, --with wd14 or a folder"
)

dataset = typer.Typer(no_args_is_help=True, help="Make a folder of pictures ready to train on.")

Folder = Annotated[Path, typer.Argument(help="A folder of pictures.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataset.callback()
def _dataset() -> None:
    """Make a folder of pictures ready to train on."""


@dataset.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, or a zip of one.", callback=bundled_or_given)],
    *,
    size: Annotated[
        int | None,
        typer.Option(help="Pixels that pictures will be trained at.", min=8, show_default="512, for tiny 64"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base that will be trained on: for tiny, what it does not know is named.", show_default="none"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What the overlay will be called: captions may all have it.", show_default="the folder's name"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what would stop or spoil a training: broken files, copies, blur, large crops, and flaws of captions.

    velatura dataset check photos/ --base tiny

    velatura dataset check photos/ --json
    """
    from velatura.datasets.check import check_folder

    is_tiny = base == "tiny"
    report = check_folder(folder, size or (64 if is_tiny else 512), name=name, for_tiny=is_tiny)
    if as_json:
        say_json(json.dumps(_report_as_json(report), ensure_ascii=False, indent=2))
    else:
        _print_report(report)
    if report.errors:
        file_count = len({finding.file for finding in report.errors})
        raise BadDataset(
            f"{quantity(file_count, 'file')} of {folder} would stop a training; put "
            f"{choose_number(file_count, 'it', 'them')} right, or take {choose_number(file_count, 'it', 'them')} away"
        )


@dataset.command("crop")
def crop(
    folder: Folder,
    *,
    out: Annotated[Path, typer.Option(help="A new folder for what is cut.")],
    size: Annotated[int, typer.Option(help="Pixels of a side, or of about that area with --buckets.")] = 512,
    buckets: Annotated[bool, typer.Option("--buckets", help="Keep each picture's own shape, nearly.")] = False,
    focus: Annotated[str, typer.Option(help="What the cut keeps: salient, middle, faces (needs OpenCV).")] = "salient",
    split: Annotated[float, typer.Option(help="Split pictures of which a square keeps less than this share.")] = 0.0,
    overlap: Annotated[float, typer.Option(help="Share by which the pieces of a split picture overlap.")] = 0.2,
    mirrors: Annotated[bool, typer.Option("--mirrors", help="Add each picture mirrored.")] = False,
) -> None:
    """Crop pictures to size around what stands out, into a new folder, with their captions and masks.

    velatura dataset crop photos/ --size 64 --out ready/

    velatura dataset crop photos/ --size 512 --buckets --split 0.5 --mirrors --out ready/
    """
    from velatura.datasets.crop import CropOptions, crop_folder

    shape = "buckets" if buckets else "square"
    options = CropOptions(size, shape, focus, split_below=split, overlap=overlap, mirrors=mirrors)
    _print_crops(crop_folder(folder, out, options), out, is_split=split > 0)


def _print_crops(pictures: "list[CroppedPicture]", out: Path, *, is_split: bool) -> None:
    from velatura.datasets.check import MAX_CROPPED_SHARE

    sizes = Counter(f"{picture.size[0]}x{picture.size[1]}" for picture in pictures)
    say(f"{out}: {quantity(len(pictures), 'picture')} of {len({picture.source for picture in pictures})}")
    say("sizes: " + ", ".join(f"{size} ({count})" for size, count in sizes.most_common()))
    enlarged_count = sum(picture.is_enlarged for picture in pictures)
    if enlarged_count:
        say(f"{enlarged_count} enlarged, as they have fewer pixels: they will look soft")
    for source, picture in {picture.source: picture for picture in reversed(pictures) if not is_split}.items():
        if picture.cropped_share > MAX_CROPPED_SHARE:
            say(f"{picture.file.name} leaves out {picture.cropped_share:.0%} of {source.name}")


@dataset.command("caption")
def caption(
    folder: Folder,
    *,
    captioner: Annotated[
        str,
        typer.Option("--with", help="tiny, blip or wd14 (from the hub's cache), or a folder of a model or tagger."),
    ] = "tiny",
    existing: Annotated[str, typer.Option(help="Captions that are there: keep, replace, prepend, append.")] = "keep",
    before: Annotated[str, typer.Option(help="Words before each new caption.", show_default="none")] = "",
    threshold: Annotated[
        float | None, typer.Option(help="How likely a tag must be, for taggers.", show_default="the tagger's")
    ] = None,
) -> None:
    """Write a caption for each picture into a text file beside it; nothing is downloaded.

    velatura dataset caption photos/

    velatura dataset caption photos/ --with wd14-tagger/ --existing append --before "inca style"
    """
    from velatura.datasets.check import picture_count
    from velatura.datasets.folder import resolve_folder

    resolve_folder(folder)
    from velatura.datasets.captioners.captioner import open_captioner
    from velatura.datasets.write_captions import caption_folder

    if captioner == "tiny":
        print_error(TINY_CAPTIONER_HINT)
    count = 0
    for written in caption_folder(folder, open_captioner(captioner, threshold), existing=existing, prefix=before):
        say(f"{_relative_name(written.file, folder.expanduser())}: {written.text}")
        count += 1
    left = picture_count(folder) - count
    kept = f"{quantity(left, 'picture')} left as {choose_number(left, 'it is', 'they are')}"
    say(f"{quantity(count, 'caption')} written, {kept}")
    if left and existing == "keep":
        print_error("captions in text files, lists and file names are kept: --existing replace writes new ones instead")
    if count:
        print_error(f"read them before you train: velatura dataset review {quote(str(folder))}")


@dataset.command("review")
def review(
    folder: Folder,
    *,
    port: Annotated[int, typer.Option(help="Port of the page.", show_default="a free one", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Look through captions on a page in the browser, and change them one by one or in bulk; Ctrl-C ends it.

    velatura dataset review ready/

    velatura dataset review ready/ --port 7861 --no-browser
    """
    import webbrowser

    from velatura.datasets.review import CaptionEditor
    from velatura.datasets.review_server import serve

    album = CaptionEditor.from_folder(folder)
    with serve(album, port) as server:
        say(
            f"{folder}: {quantity(len(album.paths), 'picture')} at {server.url}",
            "Ctrl-C ends it; every change is saved at once",
        )
        sys.stdout.flush()
        if browser:
            webbrowser.open(server.url)
        try:
            server.wait()
        except KeyboardInterrupt:
            say(f"ended; {quantity(album.undo_count, 'change')} {choose_number(album.undo_count, 'is', 'are')} saved")


def _print_report(report: "DatasetReport") -> None:
    pictures = report.pictures
    sizes = Counter(f"{picture.width}x{picture.height}" for picture in pictures).most_common(5)
    counted_total = sum(picture.repeats for picture in pictures)
    say(
        f"{report.source}: {quantity(len(pictures), 'picture')}"
        + (f", counted {counted_total}" if counted_total != len(pictures) else "")
    )
    say("sizes: " + ", ".join(f"{size} ({count})" for size, count in sizes))
    tags = report.tags().most_common(MAX_TAGS_SHOWN)
    say("tags: " + (", ".join(f"{tag} ({count})" for tag, count in tags) or "none"))
    for grade, kind in dict.fromkeys((finding.grade, finding.kind) for finding in report.findings):
        found = [finding for finding in report.findings if (finding.grade, finding.kind) == (grade, kind)]
        captionless = [finding.file for finding in found if finding.text.startswith("has no caption")]
        if len(captionless) > 1:
            from velatura.datasets.folder import describe_missing_captions

            say(f"{grade}: {describe_missing_captions(report.folder, captionless)}")
            found = [finding for finding in found if finding.file not in captionless]
        if len(found) >= MIN_GROUP and kind in GROUPED_FINDINGS:
            names = ", ".join(_relative_name(finding.file, report.folder) for finding in found[:MAX_FINDINGS_SHOWN])
            more = f" and {len(found) - MAX_FINDINGS_SHOWN} more" if len(found) > MAX_FINDINGS_SHOWN else ""
            say(f"{grade}: {len(found)} {GROUPED_FINDINGS[kind].format(pixels=report.pixels)} ({names}{more})")
            continue
        for finding in found[:MAX_FINDINGS_SHOWN]:
            name = _relative_name(finding.file, report.folder)
            say(f"{finding.grade}: {finding.text}" if name == "." else f"{finding.grade}: {name}: {finding.text}")
        if len(found) > MAX_FINDINGS_SHOWN:
            say(f"{grade}: ... and {len(found) - MAX_FINDINGS_SHOWN} more of this kind ({kind}); --json lists all")
    if not report.findings:
        say("no problems found")


def _report_as_json(report: "DatasetReport") -> dict[str, object]:
    pictures = [
        {
            "file": _relative_name(picture.path, report.folder),
            "width": picture.width,
            "height": picture.height,
            "mode": picture.mode,
            "caption": picture.caption and picture.caption.text,
            "caption_from": picture.caption and picture.caption.source,
            "repeats": picture.repeats,
            "cut": round(picture.cropped_share, 4),
            "blur": round(picture.blur, 4),
            "noise": round(picture.noise, 2),
            "look": f"{picture.perceptual_hash:016x}",
        }
        for picture in report.pictures
    ]
    findings = [
        {
            "grade": finding.grade,
            "kind": finding.kind,
            "file": _relative_name(finding.file, report.folder),
            "text": finding.text,
        }
        for finding in report.findings
    ]
    head: dict[str, object] = {"folder": str(report.source), "size": report.pixels}
    return {**head, "pictures": pictures, "tags": dict(report.tags().most_common()), "findings": findings}


def _relative_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path != folder else "."
