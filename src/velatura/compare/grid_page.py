"""Write a grid as one HTML file: the pictures in full size, with the recipes that reproduce them."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from velatura.compare.cells import axis_labels
from velatura.compare.grid import Grid
from velatura.compare.page import fill_page
from velatura.compare.training_report import picture_tag
from velatura.files import atomic_write
from velatura.sampling.generate import Picture


def grid_page(grid: Grid) -> str:
    """Return the page, with the pictures in it, so that it needs no other file and no network."""
    titles = axis_labels(grid.z) if grid.z else [""]
    tables = [_table(grid, sheet, title) for sheet, title in zip(grid.sheets, titles, strict=True)]
    title = grid.recipe.prompt or "(no prompt)"
    return fill_page("velatura.compare", "grid.html", title, tables="\n".join(tables), recipe=escape(grid.infotext()))


def save_page(grid: Grid, path: Path) -> None:
    """Write the page atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(grid_page(grid), "utf-8")


def _table(grid: Grid, sheet: Sequence[Sequence[Picture]], title: str) -> str:
    headers = "".join(f'<th scope="col">{escape(label)}</th>' for label in axis_labels(grid.x))
    corner = "<td></td>" if grid.y else ""
    row_labels = axis_labels(grid.y) if grid.y else [None]
    rows = "\n".join(_row(row, label) for row, label in zip(sheet, row_labels, strict=True))
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}\n<thead><tr>{corner}{headers}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _row(row: Sequence[Picture], label: str | None) -> str:
    header = "" if label is None else f'<th scope="row">{escape(label)}</th>'
    return f"<tr>{header}{''.join(map(_cell, row))}</tr>"


def _cell(picture: Picture) -> str:
    text = picture.recipe.infotext()
    image_tag = picture_tag(picture.image, picture.recipe.prompt)
    return f"<td>{image_tag}<details><summary>recipe</summary><pre>{escape(text)}</pre></details></td>"
