"""A dataset's report as JSON, for jobs and for routes."""

from __future__ import annotations

from pathlib import Path

from velatura.datasets.check import DatasetReport
from velatura.server.errors import hide_paths


def describe_report(report: DatasetReport, roots: tuple[Path, ...]) -> dict[str, object]:
    """Return a report as JSON: sizes, tags and what was found, with files by their names below the folder."""

    def name(path: Path) -> str:
        return path.relative_to(report.folder).as_posix() if path != report.folder else "."

    pictures = [
        {
            "file": name(picture.path),
            "width": picture.width,
            "height": picture.height,
            "caption": picture.caption and picture.caption.text,
            "cropped_share": round(picture.cropped_share, 4),
            "blur": round(picture.blur, 4),
            "noise": round(picture.noise, 2),
        }
        for picture in report.pictures
    ]
    findings = [
        {
            "grade": finding.grade.value,
            "kind": finding.kind,
            "file": name(finding.file),
            "text": hide_paths(finding.text, roots),
        }
        for finding in report.findings
    ]
    return {
        "pixels": report.pixels,
        "files": pictures,
        "tags": dict(report.tags().most_common()),
        "findings": findings,
        "stops_training": bool(report.errors),
    }
