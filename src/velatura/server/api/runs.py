"""Routes of trainings' run folders: list, losses, previews, sheets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel

from velatura.errors import BadFile
from velatura.server.errors import not_found
from velatura.server.folders import resolve_inside
from velatura.server.state import ServerState, State
from velatura.server.views.runs import SHEETS, RunInfo, describe_run_folder, preview_rows
from velatura.training.run.summary import find_runs, is_run_folder, read_run

router = APIRouter(prefix="/api/runs", tags=["runs"])


class RunLosses(BaseModel):
    """Losses of a run by step, thinned to a number of points."""

    steps: list[int]
    losses: list[float]


@router.get("")
def list_runs(state: State) -> list[RunInfo]:
    """List the runs in the server's folder of runs, the newest first."""
    found: list[RunInfo] = []
    paths = sorted(find_runs(state.folders.runs), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        try:
            found.append(describe_run_folder(path, state.folders.runs))
        except (BadFile, OSError):  # damaged, or of another program
            continue
    return found


@router.get("/{run}")
def get_run(state: State, run: str) -> RunInfo:
    """Return a run."""
    return describe_run_folder(_run_folder(state, run), state.folders.runs)


@router.get("/{run}/losses")
def get_losses(state: State, run: str, points: Annotated[int, Query(ge=2, le=10000)] = 1000) -> RunLosses:
    """Return the losses of a run, thinned to at most so many points."""
    losses: dict[int, float] = {}
    for line in (_run_folder(state, run) / "log.jsonl").read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line, while it is written
            continue
        if isinstance(record, dict) and "loss" in record:
            losses[int(record["step"])] = float(record["loss"])  # pyright: ignore[reportUnknownArgumentType]
    steps = sorted(losses)
    interval = -(-len(steps) // points) or 1
    kept = steps[::interval]
    return RunLosses(steps=kept, losses=[losses[step] for step in kept])


@router.get("/{run}/previews/{step}/{number}", response_class=FileResponse)
def get_preview(state: State, run: str, step: int, number: int) -> FileResponse:
    """Return a picture that was painted after a step; numbers begin at 1."""
    path = _run_folder(state, run)
    row = preview_rows(path, read_run(path).name).get(step, [])
    if not 1 <= number <= len(row):
        raise not_found("preview")
    return FileResponse(row[number - 1], media_type="image/png", headers={"Cache-Control": "no-cache"})


@router.get("/{run}/sheets/{sheet}", response_class=FileResponse)
def get_sheet(state: State, run: str, sheet: str) -> FileResponse:
    """Return a picture of a run: loss.png, previews.png or strengths.png."""
    path = _run_folder(state, run) / sheet
    if sheet not in SHEETS or not path.is_file():
        raise not_found("sheet")
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "no-cache"})


def _run_folder(state: ServerState, run: str) -> Path:
    path = resolve_inside(state.folders.runs, run, "run")
    if not is_run_folder(path):
        raise not_found("run")
    return path
