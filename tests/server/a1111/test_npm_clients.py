"""Clients of A1111's API from npm against our server; they run where node is, and npm can install them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # they install packages

# In versions of which every call was read. sharp, which some of them use, ships its library in packages from 0.33 on
PACKAGES = {
    "a1111-webui-api": "1.9.30001",
    "stable-diffusion-api": "0.0.7",
    "stable-diffusion-client": "0.1.0",
    "node-sd-webui": "0.0.8",
    "modelfusion": "0.137.0",
}
MANIFEST = {"private": True, "dependencies": {**PACKAGES, "sharp": "^0.33.0"}, "overrides": {"sharp": "$sharp"}}
SAME_CALLS = ("a1111-webui-api", "stable-diffusion-api", "stable-diffusion-client")
# stable-diffusion-api reads a field `name` of models, which A1111 does not have either
BROKEN_CALLS = {"stable-diffusion-api": {"setModel"}}
SMALL, LARGE = [64, 64], [128, 128]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where npm has installed the clients."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text(json.dumps(MANIFEST))
    command = [npm, "install", "--no-fund", "--no-audit", "--ignore-scripts"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=180)
    except (subprocess.SubprocessError, OSError):
        pytest.skip("npm cannot install the clients here")
    return folder


def run_client(name: str, port: int, packages: Path) -> dict[str, Any]:
    """Return what the calls of a client answered, by their names."""
    script = Path(__file__).with_name("npm_clients.mjs")
    command = ["node", str(script), name, str(port), str(packages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    failures = {call: answer for call, answer in answers.items() if "error" in answer}
    assert failures.keys() == BROKEN_CALLS.get(name, set()), failures
    return {call: answer.get("value") for call, answer in answers.items()}


@pytest.mark.parametrize("name", SAME_CALLS)
def test_every_call_of_the_stable_diffusion_api_clients_is_answered(name, port, packages):
    answers = run_client(name, port, packages)
    assert answers["txt2img"] == {"sizes": [SMALL], "seed": 7}
    assert answers["hires"] == [LARGE]
    assert answers["img2img"] == answers["inpaint"] == [SMALL]
    assert (answers["extraSingle"], answers["extraBatch"]) == ([LARGE], [LARGE, LARGE])
    assert "Euler" in {sampler["name"] for sampler in answers["getSamplers"]}
    assert "Lanczos" in {upscaler["name"] for upscaler in answers["getUpscalers"]}
    assert [model["model_name"] for model in answers["getSdModels"]] == ["tiny"]
    assert answers["getCurrentModel"].startswith("tiny")
    assert answers["getProgress"]["state"]["job_count"] == 0
    assert answers["waitForReady"] is True


def test_every_call_of_node_sd_webui_is_answered(port, packages):
    answers = run_client("node-sd-webui", port, packages)
    assert len(answers["txt2img"]["images"]) == 1
    # It reads infotexts by position, as they were before A1111 1.9: since then the third value is the scheduler
    assert (answers["pngInfo"]["steps"], answers["pngInfo"]["samplingMethod"]) == (1, "Euler a")
    assert answers["pngInfo"]["prompt"] == "a red house"
    assert len(answers["script"]["images"]) == 3  # two pictures and the grid


def test_modelfusion_paints(port, packages):
    answers = run_client("modelfusion", port, packages)
    assert answers["generateImage"] == SMALL
    assert answers["negative"] > 100
