"""What docs/a1111-api.md shows runs as it stands."""

from __future__ import annotations

import subprocess

from PIL import Image

from tests.server.a1111.conftest import page_blocks, page_text


def test_the_pages_commands_run(port, tmp_path):
    for block in page_blocks("sh", port):
        subprocess.run(["bash", "-ec", block], check=True, capture_output=True, cwd=tmp_path, timeout=120)
    with Image.open(tmp_path / "house.png") as image:
        assert image.text["parameters"].startswith("a red house on a beach")
    assert '"images":["' in (tmp_path / "styled.json").read_text("utf-8")


def test_the_page_names_every_route(client):
    routes = [path for path in client.get("/api/openapi.json").json()["paths"] if path.startswith("/sdapi/v1/")]
    missing = [route for route in routes if route.removeprefix("/sdapi/v1/") not in page_text()]
    assert missing == []
