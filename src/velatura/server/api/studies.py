"""Routes of studies: list, results, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from velatura.server.errors import not_found
from velatura.server.folders import resolve_inside
from velatura.server.state import ServerState, State
from velatura.server.views.studies import REPORT_POLICY, describe_study, read_report
from velatura.studies.results import REPORT_NAME

router = APIRouter(prefix="/api/studies", tags=["studies"])

REPORT_HEADERS = {
    "Content-Security-Policy": REPORT_POLICY,
    "X-Frame-Options": "SAMEORIGIN",  # the page shows it in a frame
    "Cache-Control": "no-cache",
}


class StudyInfo(BaseModel):
    """A study: what it has found so far.

    `kinds` has the scores of each kind in words, with their spread over seeds, the best kind first; one that was not
    measured is empty. `together` is another overlay that was attached too, with its strength.
    """

    study: str
    trials: int
    base: str | None
    budget: str | None
    together: str | None
    recommendation: str | None
    kinds: list[dict[str, Any]]
    has_report: bool


@router.get("")
def list_studies(state: State) -> list[StudyInfo]:
    """List the studies, the newest first."""
    folders = [path for path in state.folders.studies.iterdir() if path.is_dir() and path.name[0] != "."]
    return [_describe(path) for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]


@router.get("/{study}")
def get_study(state: State, study: str) -> StudyInfo:
    """Return a study."""
    return _describe(_study_folder(state, study))


@router.get(
    "/{study}/report",
    response_class=Response,  # HTMLResponse would have the document say that errors are HTML too
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def get_report(state: State, study: str) -> HTMLResponse:
    """Return the report of a study, a page that runs nothing and asks for nothing."""
    path = _study_folder(state, study)
    if not (path / REPORT_NAME).is_file():
        raise not_found("report")
    return HTMLResponse(read_report(path, state.folders.roots), headers=REPORT_HEADERS)


def _study_folder(state: ServerState, study: str) -> Path:
    path = resolve_inside(state.folders.studies, study, "study")
    if not path.is_dir() or path.parent != state.folders.studies:
        raise not_found("study")
    return path


def _describe(path: Path) -> StudyInfo:
    return StudyInfo.model_validate({"study": path.name, **describe_study(path)})
