"""The verbs `dataset check`, `crop`, `caption` and `review`: a folder of pictures made ready to train on."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velatura.cli.screen import say, say_json
from velatura.errors import BadDataset

if TYPE_CHECKING:
    from velatura.datasets.check import Report
    from velatura.datasets.crop import Cut

MOST_LINES = 10  # of one kind of finding
MOST_TAGS = 12
MUCH_CUT = 0.25  # of a picture

dataset = typer.Typer(no_args_is_help=True, help="Make a folder of pictures ready to train on.")

Folder = Annotated[Path, typer.Argument(help="A folder of pictures.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataset.callback()
def _dataset() -> None:
    """Make a folder of pictures ready to train on."""


@dataset.command("check")
def check(
    folder: Folder,
    *,
    size: Annotated[int, typer.Option(help="Pixels that pictures will be trained at.", min=8)] = 512,
    as_json: Json = False,
) -> None:
    """Look for what would stop or spoil a training: broken files, missing captions, copies, blur, what is cut off.

    velatura dataset check photos/ --size 64

    velatura dataset check photos/ --json
    """
    from velatura.datasets.check import check_folder

    report = check_folder(folder, size)
    if as_json:
        say_json(json.dumps(_as_json(report), ensure_ascii=False, indent=2))
    else:
        _print(report)
    if report.errors:
        files = len({finding.file for finding in report.errors})
        raise BadDataset(f"{files} files of {folder} would stop a training; put them right, or take them away")


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
    """Cut pictures to size around what stands out in them, into a new folder, with their captions and masks.

    velatura dataset crop photos/ --size 64 --out ready/

    velatura dataset crop photos/ --size 512 --buckets --split 0.5 --mirrors --out ready/
    """
    from velatura.datasets.crop import Cutting, crop_folder

    shape = "buckets" if buckets else "square"
    cutting = Cutting(size, shape, focus, split_below=split, overlap=overlap, mirrors=mirrors)
    _print_cuts(crop_folder(folder, out, cutting), out, is_split=split > 0)


def _print_cuts(cuts: "list[Cut]", out: Path, *, is_split: bool) -> None:
    sizes = Counter(f"{cut.size[0]}x{cut.size[1]}" for cut in cuts)
    say(f"{out}: {len(cuts)} pictures of {len({cut.source for cut in cuts})}")
    say("sizes: " + ", ".join(f"{each} ({count})" for each, count in sizes.most_common()))
    enlarged = sum(cut.is_enlarged for cut in cuts)
    if enlarged:
        say(f"{enlarged} enlarged, as they have fewer pixels: they will look soft")
    for source, cut in {cut.source: cut for cut in reversed(cuts) if not is_split}.items():
        if cut.left_out > MUCH_CUT:
            say(f"{cut.file.name} leaves out {cut.left_out:.0%} of {source.name}")


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
    """Write what each picture shows into the text beside it; nothing is downloaded.

    velatura dataset caption photos/

    velatura dataset caption photos/ --with wd14-tagger/ --existing append --before "inca style"
    """
    from velatura.datasets.caption import caption_folder, open_captioner
    from velatura.datasets.check import picture_count

    count = 0
    for written in caption_folder(folder, open_captioner(captioner, threshold), existing=existing, before=before):
        say(f"{_inside(written.file, folder.expanduser())}: {written.text}")
        count += 1
    say(f"{count} captions written, {picture_count(folder) - count} pictures left as they are")


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

    from velatura.datasets.review import Album
    from velatura.datasets.review_page import serving

    album = Album.of(folder)
    with serving(album, port) as server:
        say(f"{folder}: {len(album.paths)} pictures at {server.url}", "Ctrl-C ends it; every change is saved at once")
        sys.stdout.flush()
        if browser:
            webbrowser.open(server.url)
        try:
            server.wait()
        except KeyboardInterrupt:
            say(f"ended; {album.undo_count} changes are saved")


def _print(report: "Report") -> None:
    pictures = report.pictures
    sizes = Counter(f"{each.width}x{each.height}" for each in pictures).most_common(5)
    counted = sum(each.repeats for each in pictures)
    say(f"{report.folder}: {len(pictures)} pictures" + (f", counted {counted}" if counted != len(pictures) else ""))
    say("sizes: " + ", ".join(f"{size} ({count})" for size, count in sizes))
    tags = report.tags().most_common(MOST_TAGS)
    say("tags: " + (", ".join(f"{tag} ({count})" for tag, count in tags) or "none"))
    for kind, count in Counter((each.grade, each.kind) for each in report.findings).items():
        found = [each for each in report.findings if (each.grade, each.kind) == kind]
        for each in found[:MOST_LINES]:
            say(f"{each.grade}: {_inside(each.file, report.folder)}: {each.text}")
        if count > MOST_LINES:
            say(f"{kind[0]}: ... and {count - MOST_LINES} more of this kind ({kind[1]}); --json lists all")
    if not report.findings:
        say("nothing to complain of")


def _as_json(report: "Report") -> dict[str, object]:
    pictures = [
        {
            "file": _inside(each.path, report.folder),
            "width": each.width,
            "height": each.height,
            "mode": each.mode,
            "caption": each.caption and each.caption.text,
            "caption_from": each.caption and each.caption.source,
            "repeats": each.repeats,
            "cut": round(each.cut, 4),
            "blur": round(each.blur, 4),
            "noise": round(each.noise, 2),
            "look": f"{each.look:016x}",
        }
        for each in report.pictures
    ]
    findings = [
        {"grade": each.grade, "kind": each.kind, "file": _inside(each.file, report.folder), "text": each.text}
        for each in report.findings
    ]
    head: dict[str, object] = {"folder": str(report.folder), "size": report.pixels}
    return {**head, "pictures": pictures, "tags": dict(report.tags().most_common()), "findings": findings}


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path != folder else "."
