"""What docs/server.md shows runs as it stands, against a server of this test."""

import re
import subprocess
from pathlib import Path

import httpx2

from tests.server.test_process import finish, start

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


def test_the_page_of_the_server_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process, url = start(tmp_path)
    port = url.rstrip("/").rpartition(":")[2]
    shell, python = (
        [block.replace("7860", port) for block in re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)]
        for kind in ("sh", "py")
    )
    try:
        said = [
            subprocess.run(["bash", "-c", block], check=True, capture_output=True, text=True).stdout for block in shell
        ]
        assert '"state":"queued"' in said[0]
        assert "event: done" in said[1]
        assert (tmp_path / "house.png").read_bytes().startswith(b"\x89PNG")
        for block in python:
            exec(compile(block, "docs/server.md", "exec"), {})
        assert len(list(tmp_path.glob("cat-*.png"))) == 2
        assert httpx2.get(f"{url}api/pictures", params={"search": "blue cat"}).json()["pictures"][0]["width"] == 64
    finally:
        process.terminate()
        finish(process)
