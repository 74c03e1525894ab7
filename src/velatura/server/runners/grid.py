"""Run grid jobs: pictures side by side that differ in one to three settings, written as one picture and as a page."""

from __future__ import annotations

from velatura.compare.cells import Axis, is_base_axis
from velatura.compare.grid import grid
from velatura.compare.grid_page import save_page
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.pictures import PAGE_ENDING
from velatura.server.jobs.prepare import check_grid_sizes
from velatura.server.jobs.requests import GridAxis, GridRequest
from velatura.server.runners.paint import open_init_image


def run_grid(context: JobContext) -> None:
    """Paint a grid and store it, as one picture and as a page beside it."""
    request, models = context.request, context.resources.models
    assert isinstance(request, GridRequest)
    axes = [axis for axis in (request.x, request.y, request.z) if axis]
    goes_through_bases = any(is_base_axis(axis.name, request.recipe) for axis in axes)
    base = None if goes_through_bases else models.base_of(request.recipe, request.base, request.vae)
    if base is not None:
        check_grid_sizes(request, context.resources.settings, base.family.default_pixels)

    def on_step(done: int, total: int) -> None:
        context.check()
        context.step(done, total, "painting")

    result = grid(
        base,
        request.recipe,
        x=_axis(request.x),
        y=_axis(request.y),
        z=_axis(request.z),
        matrix=request.matrix,
        library=models.library,
        source=open_init_image(request, context.resources.inputs),
        lenient=request.lenient,
        open_base=models.base,
        on_step=on_step,
    )
    pictures = context.resources.pictures
    stored = pictures.save_image(
        result.image, result.recipe, context.job, 0, ending=f".{request.ending}", infotext=result.infotext()
    )
    save_page(result, pictures.path(stored).with_suffix(PAGE_ENDING))
    context.report_picture(stored)
    kept = [stored]
    if request.keeps_pictures:
        cells = [cell for row in result.rows for cell in row]
        kept += [context.save_picture(cell, number, request.ending) for number, cell in enumerate(cells, 1)]
    context.finish({"pictures": [picture.id for picture in kept]})


def _axis(axis: GridAxis | None) -> Axis | None:
    if axis is None:
        return None
    return axis.name, list(axis.values)
