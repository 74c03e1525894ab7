"""Verdict of a run as a file of its folder, verdict.json, so that it can be asked for when the run is over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import cast

from pydantic import TypeAdapter, ValidationError

from velatura.errors import BadFile
from velatura.training.run.log import atomic_write
from velatura.training.run.verdict import Verdict, a1111_command

VERDICT_NAME = "verdict.json"
VERDICT_VERSION = 1  # counts up when a field changes its meaning; a new field alone does not need it
VERDICT_TYPE = TypeAdapter(Verdict)


def write_verdict(verdict: Verdict, folder: Path) -> None:
    """Write the verdict of a run into its folder, whole or not at all.

    Paths are stored relative to the folder, which may be moved. Commands are left out, as they name where it was.

    Args:
        verdict: The verdict, whose files are in the folder.
        folder: The run folder.

    Raises:
        BadFile: The file cannot be written.
    """
    inside = replace(
        _with_paths(verdict, lambda path: Path(path.relative_to(folder).as_posix())),
        sheet_command="",
        a1111_command="",
    )
    facts = {"version": VERDICT_VERSION, **json.loads(VERDICT_TYPE.dump_json(inside))}
    with atomic_write(folder / VERDICT_NAME) as temp_path:
        temp_path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_verdict(folder: Path) -> Verdict | None:
    """Return the verdict of a run, None if there is none: the run is not finished, or of an older version.

    Raises:
        BadFile: The file is damaged, or a newer version of velatura wrote it.
    """
    path = folder / VERDICT_NAME
    try:
        facts: object = json.loads(path.read_bytes())
        version = cast("dict[str, object]", facts).get("version") if isinstance(facts, dict) else None
        if isinstance(version, int) and version > VERDICT_VERSION:
            raise BadFile(
                f"{path} was written by a newer velatura (version {version} of its verdicts): update this one"
            )
        if version != VERDICT_VERSION:
            raise BadFile(f"{path} is not a verdict: it has no version; the run itself is not harmed")
        verdict = VERDICT_TYPE.validate_python(facts)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise BadFile(f"{path} is damaged ({field}: {problem['msg']}): the run itself is not harmed") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path} cannot be read ({error}): the run itself is not harmed") from None
    verdict = _with_paths(verdict, lambda relative: _path_inside(folder, relative))
    return replace(verdict, a1111_command="" if verdict.a1111_file else a1111_command(verdict.kind, verdict.file))


def _with_paths(verdict: Verdict, change: Callable[[Path], Path]) -> Verdict:
    """Return a verdict with all of its paths changed."""
    return replace(
        verdict,
        file=change(verdict.file),
        best=verdict.best and change(verdict.best),
        pictures=tuple(map(change, verdict.pictures)),
        plot=verdict.plot and change(verdict.plot),
        a1111_file=verdict.a1111_file and change(verdict.a1111_file),
    )


def _path_inside(folder: Path, relative: Path) -> Path:
    """Return the path in the folder; raises BadFile if it leads out of it."""
    parts = PurePosixPath(relative.as_posix())
    if parts.is_absolute() or relative.is_absolute() or ".." in parts.parts:
        raise BadFile(f"{folder / VERDICT_NAME} names {relative}, which is not in the run folder: do not trust it")
    return folder / relative
