"""The documentation site: it builds without a warning, and its API pages name all that is public."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import velatura

ROOT = Path(__file__).parents[2]


def test_the_api_pages_list_every_public_name_once():
    pages = "".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    assert sorted(re.findall(r"^::: velatura\.(\w+)$", pages, re.M)) == sorted(velatura.__all__)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the site is built where the extra `docs` is installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    clean = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "api" / "pictures.html").read_text()
    assert "num_inference_steps" not in page
    assert 'id="velatura.generate"' in page or "velatura.sampling.generate.generate" in page
    assert "guidance" in page
