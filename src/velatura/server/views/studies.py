"""Studies as routes and jobs show them, and their report made fit for a frame of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path

from velatura.server.errors import hide_paths
from velatura.studies.results import REPORT_NAME, STUDY_RESULTS_NAME, read_results

COMMAND = re.compile(r"(<pre>)(.*?)(</pre>)", re.DOTALL)
SHOWN_FIGURES = ("score", "likeness", "kept", "together", "other_left", "strength")
LINK = re.compile(r'<a href="[^"]*">(.*?)</a>', re.DOTALL)
# The report has its own styles and pictures inside it, and nothing else: no script, no request
REPORT_POLICY = "; ".join(
    ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "frame-ancestors 'self'", "sandbox"]
)


def describe_study(path: Path) -> dict[str, object]:
    """Return what a study has found so far: the trials done, the kinds with their scores, the recommendation.

    Args:
        path: The folder of the study.
    """
    results = read_results(path / STUDY_RESULTS_NAME)
    has_report = (path / REPORT_NAME).is_file()
    if results is None:
        return {
            "trials": 0,
            "base": None,
            "budget": None,
            "together": None,
            "recommendation": None,
            "kinds": [],
            "has_report": has_report,
        }
    kinds = [
        {
            "kind": kind,
            **{name: results.describe(kind, name) for name in SHOWN_FIGURES},
            "trials": len(results.of_kind(kind)),
        }
        for kind in results.kinds
    ]
    return {
        "trials": len(results.trials),
        "base": results.base,
        "budget": results.budget,
        "together": results.together,
        "recommendation": results.recommendation(),
        "kinds": kinds,
        "has_report": has_report,
    }


def read_report(path: Path, roots: Iterable[Path]) -> str:
    """Return the report of a study without paths of this machine in its commands, and without links to files.

    Args:
        path: The folder of the study.
        roots: Folders whose paths are hidden.
    """
    page = (path / REPORT_NAME).read_text("utf-8")
    roots = tuple(roots)

    def hide(found: re.Match[str]) -> str:
        return f"{found[1]}{escape(hide_paths(unescape(found[2]), roots))}{found[3]}"

    return LINK.sub(r"\1", COMMAND.sub(hide, page))
