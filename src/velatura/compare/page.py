"""Pages of reports: one look for all of them, and each one HTML file that needs no other file."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template


def fill_page(package: str, name: str, title: str, **fields: str) -> str:
    """Return a page: the frame that all pages share, around the template of one.

    Args:
        package: The package that has the template.
        name: The template's file: styles of its own in a <style> element, if it has any, and then what the page shows,
            with $title and the names of the fields.
        title: The title, as plain text.
        **fields: The texts of the fields, as HTML.
    """
    frame = Template((files("velatura.compare") / "page.html").read_text("utf-8"))
    template = (files(package) / name).read_text("utf-8")
    style, body = "", template
    if template.startswith("<style>"):
        style, _, body = template.removeprefix("<style>").partition("</style>")
    filled = Template(body.strip()).substitute(title=escape(title), **fields)
    return frame.substitute(title=escape(title), style=style.strip("\n"), body=filled)
