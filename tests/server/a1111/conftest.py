"""Ways to ask the server as a program that speaks A1111's API."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.server.conftest import socket_server
from velatura.server.a1111.settings import OPTION_PREFIX
from velatura.server.state import ServerState

SMALL = {"steps": 1, "width": 64, "height": 64, "seed": 7}  # the tiny base's size


class A1111Client:
    """A client of the routes under /sdapi/v1."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, route: str, **query: Any) -> Any:
        """Return the answer to a GET as JSON."""
        answer = self.client.get(f"/sdapi/v1/{route}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, route: str, status: int = 200, **fields: Any) -> Any:
        """Return the answer to a POST as JSON."""
        answer = self.client.post(f"/sdapi/v1/{route}", json=fields)
        assert answer.status_code == status, answer.text
        return answer.json()

    def paint(self, route: str = "txt2img", **fields: Any) -> tuple[list[Image.Image], dict[str, Any]]:
        """Return the pictures of a small request, and what `info` says of them."""
        answer = self.post(route, **{"prompt": "a red house", **SMALL, **fields})
        return [to_image(text) for text in answer["images"]], json.loads(answer["info"])


@contextmanager
def import_client(module: str, *packages: str, folders: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Import a client library, installed into a folder of its own if it is not there; skip the tests without it."""
    pytest.importorskip("requests", reason=f"{module} needs requests")
    folder = folders.mktemp(module)
    try:
        library = import_module(module)
    except ImportError:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError):
            pytest.skip(f"{packages[0]} cannot be installed here")
        sys.path.insert(0, str(folder))
        library = import_module(module)
    yield library
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


def to_image(text: str) -> Image.Image:
    """Decode the base64 of an image."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def to_base64(image: Image.Image) -> str:
    """Encode an image as base64 of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def a1111(client: TestClient, state: ServerState) -> Iterator[A1111Client]:
    """A client; settings that it changes are forgotten afterwards."""
    yield A1111Client(client)
    for name in state.options.all():
        if name.startswith(OPTION_PREFIX):
            state.options.reset(name)


@pytest.fixture(scope="session")
def port(client: TestClient) -> Iterator[int]:
    """Port at which the running server answers programs that need a socket."""
    with socket_server(client.app, lifespan="off") as number:
        yield number


def page_text() -> str:
    """Return the page about A1111's API."""
    return (Path(__file__).parents[3] / "docs" / "a1111-api.md").read_text("utf-8")


def page_blocks(language: str, port: int) -> list[str]:
    """Return the code of a language in docs/a1111-api.md, for a server at a port."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page_text(), re.MULTILINE | re.DOTALL)
    return [block.replace("7860", str(port)) for block in blocks]


@pytest.fixture(scope="session")
def gradient() -> Image.Image:
    """An image in which every place has another colour."""
    image = Image.new("RGB", (64, 64))
    image.putdata([(4 * x, 4 * y, 128) for y in range(64) for x in range(64)])
    return image
