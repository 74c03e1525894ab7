"""schemathesis sends what the OpenAPI document allows, and what it forbids, and is answered as the document says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import socket_server
from velatura.server.app import create_app
from velatura.server.settings import ServerSettings

pytestmark = pytest.mark.slow  # it installs a package

# The document cannot say which texts are images, nor which names there are; and 0 is taken for false, as in A1111
UNFIT_CHECKS = "positive_data_acceptance,negative_data_rejection"
MAX_EXAMPLES, MAX_SECONDS = 4, 60
# Answers that never end (events), and those that come when a job is done, which may take any number of steps
ENDLESS = r"/events$|/(txt2img|img2img|interrogate|checkpoint-merger|reload-checkpoint)$|/v1/(train|create)/"


@pytest.fixture(scope="module")
def schemathesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where pip has installed schemathesis."""
    folder = tmp_path_factory.mktemp("schemathesis")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "schemathesis>=4,<5"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    except (subprocess.SubprocessError, OSError):
        pytest.skip("schemathesis cannot be installed here")
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[str]:
    """The address of a server that takes only small pictures and a short queue."""
    out = tmp_path_factory.mktemp("fuzzed")
    settings = ServerSettings.of(library=(models,), out=out, max_picture_pixels=64 * 64, max_queued_jobs=10)
    with socket_server(create_app(settings)) as port:
        yield f"http://127.0.0.1:{port}"


def test_every_answer_is_as_the_openapi_document_says_and_none_is_a_server_error(schemathesis, address, tmp_path):
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/api/openapi.json"]
    command += ["--exclude-checks", UNFIT_CHECKS, "--phases", "coverage,fuzzing", "--exclude-path-regex", ENDLESS]
    command += ["--max-examples", str(MAX_EXAMPLES), "--max-time", str(MAX_SECONDS), "--request-timeout", "30"]
    command += ["--generation-deterministic", "--suppress-health-check", "all"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(schemathesis), "NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS + 120,
        check=False,
    )
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert done.returncode == 0, done.stdout[:6000] + done.stdout[-3000:] + done.stderr[-2000:]
    assert tested, done.stdout[-2000:]
    assert int(tested[1]) >= 40
