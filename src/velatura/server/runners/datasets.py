"""Run jobs on datasets: check, crop, caption."""

from __future__ import annotations

from velatura.datasets.captioners.captioner import CAPTIONER_NAMES, open_captioner
from velatura.datasets.check import check_folder, picture_count
from velatura.datasets.crop import CropOptions, crop_folder
from velatura.datasets.pictures import OnPicture
from velatura.datasets.write_captions import caption_folder
from velatura.errors import BadDataset, UnknownName
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.dataset_requests import CaptionRequest, CheckRequest, CropRequest
from velatura.server.views.datasets import describe_report
from velatura.tiny import DATA_FOLDER


def run_check(context: JobContext) -> None:
    """Look for what would stop or spoil a training."""
    request, folders = context.request, context.resources.folders
    assert isinstance(request, CheckRequest)
    report = check_folder(folders.dataset(request.dataset), request.pixels, on_picture=_report(context, "checking"))
    context.finish(describe_report(report, folders.roots))


def run_crop(context: JobContext) -> None:
    """Crop the pictures of a dataset into a new one."""
    request, folders = context.request, context.resources.folders
    assert isinstance(request, CropRequest)
    options = CropOptions(
        request.pixels,
        request.shape,
        request.focus,
        split_below=request.split_below,
        overlap=request.overlap,
        mirrors=request.mirrors,
    )
    out = folders.datasets / request.name
    pictures = crop_folder(folders.dataset(request.dataset), out, options, on_picture=_report(context, "cropping"))
    context.finish(
        {
            "dataset": request.name,
            "pictures_written": len(pictures),
            "crops": [
                {
                    "file": picture.file.name,
                    "source": picture.source.name,
                    "box": [round(side) for side in picture.box],
                    "cropped_share": round(picture.cropped_share, 4),
                    "is_enlarged": picture.is_enlarged,
                }
                for picture in pictures
            ],
        }
    )


def _report(context: JobContext, stage: str) -> OnPicture:
    """Return a function that reports each picture as a step, and ends a job that is cancelled."""

    def on_picture(done: int, total: int) -> None:
        context.check()
        context.step(done, total, stage)

    return on_picture


def run_caption(context: JobContext) -> None:
    """Write a caption for each picture of a dataset."""
    request, folders = context.request, context.resources.folders
    assert isinstance(request, CaptionRequest)
    if request.captioner not in CAPTIONER_NAMES:
        raise UnknownName.with_suggestions("captioner", request.captioner, CAPTIONER_NAMES)
    dataset = folders.dataset(request.dataset)
    if dataset.is_relative_to(DATA_FOLDER):
        raise BadDataset("the captions of a bundled set cannot be changed: upload pictures of your own")
    captioner = open_captioner(request.captioner, request.threshold)
    total, written = picture_count(dataset), dict[str, str]()
    for caption in caption_folder(dataset, captioner, existing=request.existing, prefix=request.before):
        context.check()
        written[caption.file.relative_to(dataset).as_posix()] = caption.text
        context.step(len(written), total, "captioning")
    context.finish({"captions": written, "left": total - len(written)})
