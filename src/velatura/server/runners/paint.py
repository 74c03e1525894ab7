"""Run paint jobs: batch by batch, together with waiting jobs whose pictures fit into the same batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL.Image import Image
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import VelaturaError, redirect_warnings
from velatura.sampling.generate import BatchRunner, Picture
from velatura.sampling.job import Job, prepare_job, split_into_batches
from velatura.sampling.masks import InitImage, read_mask
from velatura.sampling.pipeline import check_overlays_fit
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve.overlays import OverlayResolver
from velatura.sampling.validate import warn_of_tiny_limits
from velatura.server.errors import ApiError, BatchLeftOut
from velatura.server.inputs import InputStore
from velatura.server.jobs.context import JobContext, JobResources
from velatura.server.jobs.job import JobStopped
from velatura.server.jobs.prepare import check_size
from velatura.server.jobs.requests import GridRequest, PaintRequest
from velatura.server.jobs.worker import open_context

MAX_WAITING_READ = 32  # paint jobs that are looked at for a batch in common


class PreparedPictures(NamedTuple):
    """Pictures ready to be made, by their positions in a request, and what preparing them warned of."""

    base: Base
    jobs: dict[int, Job]
    warnings: list[str]


@dataclass(eq=False)
class PaintTask:
    """A paint job that is running.

    Attributes:
        context: The job.
        request: What was asked for.
        jobs: The pictures that are still to be made, by their positions.
        total, done: Steps of all pictures, and steps taken.
        skipped: The positions of pictures that were left out.
    """

    context: JobContext
    request: PaintRequest
    jobs: dict[int, Job]
    total: int
    done: int = 0
    skipped: list[int] = field(default_factory=list[int])

    @classmethod
    def begin(cls, context: JobContext, prepared: PreparedPictures) -> PaintTask:
        """Return the task of a job, and give it the warnings of its preparation."""
        assert isinstance(context.request, PaintRequest)
        for message in prepared.warnings:
            context.warn(message)
        return cls(context, context.request, prepared.jobs, sum(job.steps for job in prepared.jobs.values()))

    def is_wanted(self) -> bool:
        """Return False for a job that has ended; one that was cancelled ends here."""
        if not self.context.has_ended and self.context.is_cancelled:
            self.context.settle(JobStopped())
        return not self.context.has_ended

    def finish_if_complete(self) -> None:
        """End the job if all its pictures are there."""
        if self.jobs or not self.is_wanted():
            return
        pictures = self.context.resources.pictures.of_job(self.context.job.id)
        self.context.finish({"pictures": [picture.id for picture in pictures], "skipped": sorted(self.skipped)})


class BatchItem(NamedTuple):
    """A picture of a batch: whose it is, and which."""

    task: PaintTask
    position: int
    job: Job


def run_paint(context: JobContext) -> None:
    """Paint the pictures of a job, and those of waiting jobs that fit into its batch."""
    assert isinstance(context.request, PaintRequest)
    made = {picture.position for picture in context.resources.pictures.of_job(context.job.id)}
    prepared = prepare_pictures(context.request, context.resources, made)
    max_pictures = context.resources.models.batch_pictures(prepared.base)
    tasks = [PaintTask.begin(context, prepared)]
    tasks += _take_companions(context, prepared, max_pictures)
    try:
        _run_batches(context.resources.models.runner(prepared.base), tasks, max_pictures)
    except BaseException as error:  # noqa: BLE001  # each job settles it
        for task in tasks:
            if not task.context.has_ended:
                task.context.settle(error)


def prepare_pictures(request: PaintRequest, resources: JobResources, made: set[int]) -> PreparedPictures:
    """Open the base and prepare the pictures of a request.

    Args:
        request: The request.
        resources: What jobs share.
        made: Positions of pictures that are there already.

    Raises:
        VelaturaError: A recipe cannot be made.
        ApiError: A picture of the base's own size would be too large.
    """
    warnings: list[str] = []
    with redirect_warnings(warnings.append):
        base = resources.models.base_of(request.recipes[0], request.base, request.vae)
        for recipe in request.recipes:
            check_size(recipe, resources.settings, base.family.default_pixels)
        resolver = OverlayResolver(resources.models.library, None, lenient=request.lenient)
        init_image = open_init_image(request, resources.inputs)
        warn_of_tiny_limits(base, request.recipes, resources.models.library, init_image=init_image)
        jobs = {
            position: prepare_job(base, recipe, resolver, init_image)
            for position, recipe in enumerate(request.recipes)
            if position not in made
        }
        for batch in split_into_batches(list(jobs.values())):
            check_overlays_fit(base, batch)
    return PreparedPictures(base, jobs, warnings)


def open_init_image(request: PaintRequest | GridRequest, inputs: InputStore) -> InitImage | None:
    """Return the image and mask that a request begins from, None if there is none."""
    if request.image is None:
        return None
    mask = None if request.mask is None else read_mask(inputs.open(request.mask), invert=request.mask_inverted)
    return InitImage(inputs.open(request.image), mask)


def _take_companions(context: JobContext, prepared: PreparedPictures, max_pictures: int) -> Iterator[PaintTask]:
    """Take waiting jobs whose pictures all fit into the batch of a job's pictures, as long as there is room.

    A job with pictures of several batches, or one that cannot be prepared, waits for its turn.
    """
    keys, room = {job.batch_key for job in prepared.jobs.values()}, max_pictures - len(prepared.jobs)
    resources, request = context.resources, context.request
    if len(keys) != 1 or room <= 0:
        return
    assert isinstance(request, PaintRequest)
    for waiting in resources.service.queue.waiting("device", "paint", MAX_WAITING_READ):
        other = PaintRequest.model_validate(waiting.request)
        was_started = waiting.started is not None  # and may have pictures already
        if len(other.recipes) > room or was_started or _shared_fields(other) != _shared_fields(request):
            continue
        try:
            pictures = prepare_pictures(other, resources, set())
        except (VelaturaError, ApiError):
            continue
        if {job.batch_key for job in pictures.jobs.values()} != keys:
            continue
        taken = resources.service.queue.take_job(waiting.id)
        companion = taken and open_context(taken, resources)
        if companion:
            room -= len(pictures.jobs)
            yield PaintTask.begin(companion, pictures)


def _shared_fields(request: PaintRequest) -> object:
    """Return what requests must share at least, to be painted in one batch."""

    def without_text(recipe: Recipe) -> str:
        texts = dict.fromkeys(("prompt", "negative", "hires_prompt", "hires_negative"), "")
        return recipe.replace(**texts, seed=None, variation_seed=None).model_dump_json()

    recipes = {without_text(recipe) for recipe in request.recipes}
    return (
        request.base,
        request.vae,
        request.image,
        request.mask,
        request.mask_inverted,
        request.lenient,
        frozenset(recipes),
    )


def _run_batches(runner: BatchRunner, tasks: Sequence[PaintTask], max_pictures: int) -> None:
    """Make the pictures of all tasks, batch by batch, and end each task when its pictures are there."""
    items = [BatchItem(task, position, job) for task in tasks for position, job in task.jobs.items()]
    item_by_job = {item.job: item for item in items}
    for batch in split_into_batches([item.job for item in items], max_pictures):
        _run_items(runner, [item_by_job[job] for job in batch])
        for task in tasks:
            task.finish_if_complete()
    for task in tasks:  # a job that was started again when all its pictures were there
        task.finish_if_complete()


def _run_items(runner: BatchRunner, items: Sequence[BatchItem]) -> None:
    """Make the pictures of a batch and store them; if that fails, make them one by one."""
    items = [item for item in items if item.task.is_wanted()]
    if not items:
        return
    watch = BatchWatch(runner, items)
    try:
        pictures = runner.run([item.job for item in items], watch.on_denoised, watch.on_face)
    except BatchLeftOut:
        pictures = []
    except Exception as error:  # noqa: BLE001  # it may be the fault of one picture: its job settles it
        if len(items) == 1:
            items[0].task.context.settle(error)
        else:
            for item in items:
                _run_items(runner, [item])
        return
    _store(items, pictures, watch.skipped)


def _store(items: Sequence[BatchItem], pictures: Sequence[Picture], skipped: set[PaintTask]) -> None:
    """Write the pictures of a batch that are wanted, and cross all of them off."""
    for index, (task, position, job) in enumerate(items):
        del task.jobs[position]
        if not task.is_wanted():
            continue
        if task in skipped:
            task.skipped.append(position)
            task.total -= job.steps
            task.done = min(task.done, task.total)
            task.context.log(f"picture {position + 1} of {len(task.request.recipes)} is left out")
        else:
            task.context.save_picture(pictures[index], position, task.request.ending)


class BatchWatch:
    """Watch over a batch, called after each step and before each face: it heeds wishes to skip, to cancel or to stop.

    Attributes:
        skipped: The jobs whose pictures of this batch are left out.
    """

    def __init__(self, runner: BatchRunner, items: Sequence[BatchItem]) -> None:
        self._runner = runner
        self._rows: dict[PaintTask, dict[int, int]] = {}  # the batch's rows by a task's positions
        for row, item in enumerate(items):
            self._rows.setdefault(item.task, {})[item.position] = row
        self.skipped: set[PaintTask] = set()

    def on_denoised(self, latents: Tensor) -> None:
        """Report a step of the batch.

        Raises:
            JobStopped, BatchLeftOut: See `on_face`.
        """
        self.on_face()
        for task, rows in self._rows.items():
            if task not in self.skipped and not task.context.is_cancelled:
                self._report(task, rows, latents)

    def on_face(self, *_: int) -> None:
        """Heed what is asked of the batch.

        Raises:
            JobStopped: The server ends.
            BatchLeftOut: All jobs of the batch were cancelled, or skip these pictures.
        """
        if any(task.context.resources.service.is_stopping.is_set() for task in self._rows):
            raise JobStopped
        self.skipped |= {task for task in self._rows if task.context.takes_skip()}
        if all(task in self.skipped or task.context.is_cancelled for task in self._rows):
            raise BatchLeftOut

    def _report(self, task: PaintTask, rows: dict[int, int], latents: Tensor) -> None:
        task.done = min(task.done + len(rows), task.total)

        def previews() -> dict[int, Image]:
            images = self._runner.previews(latents[list(rows.values())])
            return dict(zip(rows, images, strict=True))

        task.context.step(task.done, task.total, "painting", previews=previews if task.request.previews else None)
