"""What docs/server.md shows runs as it stands, against the server of these tests behind a real port."""

import re
import subprocess
from pathlib import Path
from threading import Thread

import httpx2
import pytest
import uvicorn

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


@pytest.fixture
def port(client):
    """A port at which the running application answers."""
    config = uvicorn.Config(client.app, port=0, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_the_page_of_the_server_runs(port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell, python = (
        [
            block.replace("7860", str(port)).replace('"steps": 20', '"steps": 2')
            for block in re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
        ]
        for kind in ("sh", "py")
    )
    said = [subprocess.run(["bash", "-c", block], check=True, capture_output=True, text=True).stdout for block in shell]
    assert '"state":"queued"' in said[0]
    assert "event: done" in said[1]
    pictures = httpx2.get(f"http://127.0.0.1:{port}/api/pictures?search=a red house on a beach").json()["pictures"]
    assert pictures[0]["width"] == 64
    assert (tmp_path / "house.png").stat().st_size > 0
    for block in python:
        exec(compile(block.replace('"seed": 8', '"seed": 8, "steps": 2'), "docs/server.md", "exec"), {})
    assert [path.read_bytes()[:4] for path in tmp_path.glob("cat-*.png")] == [b"\x89PNG"] * 2
