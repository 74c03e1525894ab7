"""Styles from the styles.csv of a library's folders, and the route that lists them."""

from __future__ import annotations

from fastapi import APIRouter

from velatura.errors import BadFile
from velatura.prompts.styles import Style, read_styles
from velatura.server.state import ServerState, State

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

STYLE_FILE = "styles.csv"
MAX_STYLE_BYTES = 2**22


def read_library_styles(state: ServerState) -> dict[str, Style]:
    """Return the styles of all folders by name, those of the folder given first before others.

    Raises:
        BadFile: A table is damaged.
    """
    styles: dict[str, Style] = {}
    for folder in (*state.folders.library, state.folders.out):
        path = folder / STYLE_FILE
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                text = file.read(MAX_STYLE_BYTES).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise BadFile(f"{path} cannot be read as a text in UTF-8: save it again") from None
        styles = read_styles(text) | styles
    return styles


@router.get("/prompt-styles")
def list_styles(state: State) -> list[dict[str, str]]:
    """List the styles."""
    return [
        {"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative}
        for style in read_library_styles(state).values()
    ]
