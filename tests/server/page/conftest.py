"""A browser and the running server behind a real port, for the tests of this folder; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.conftest import socket_server
from velatura.server.app import create_app
from velatura.server.settings import ServerSettings

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROMPT = "#panel-paint [data-field=prompt] textarea"
PAINTED = "#panel-paint .stage-view > img"
MAX_LOOKS = 1200  # a minute, on a machine that is busy with other tests


def until(page: Any, expression: str, argument: object = None) -> None:
    """Wait until a script says yes; `wait_for_function` evaluates strings inside the page, which its policy forbids."""
    for _ in range(MAX_LOOKS):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


@contextmanager
def serve(settings: ServerSettings, port: int) -> Iterator[None]:
    """Serve at a port, and at the end close all connections at once."""
    app = create_app(settings)
    with socket_server(app, port=port, timeout_graceful_shutdown=1):
        yield
        app.state.velatura.begin_stop()
    app.state.velatura.stop()  # in the thread that began: the lock of the output folder is its own


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="package")
def address(client: TestClient) -> Iterator[str]:
    """The address at which the running application answers."""
    with socket_server(client.app, lifespan="off", timeout_graceful_shutdown=2) as number:
        yield f"http://127.0.0.1:{number}/"


@pytest.fixture(scope="package")
def browser(address: str, playwright_engine: Any) -> Iterator[Any]:
    """A browser without a window."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser is here: install chromium to test the page")
    arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    browser = playwright_engine.chromium.launch(executable_path=path, args=arguments)
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page as a new visitor; nothing may fail in its scripts, and nothing is asked from elsewhere."""
    contexts: list[Any] = []
    faults: list[str] = []

    def log(message: Any) -> None:
        is_refusal = "/api/" in message.location["url"]  # the browser writes down every answer of 4xx
        if message.type == "error" and not is_refusal:
            faults.append(message.text)

    def watch(page: Any, address: str) -> None:
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", log)
        page.on(
            "request", lambda request: request.url.startswith((address, "data:", "blob:")) or faults.append(request.url)
        )

    def open_page(part: str = "", *, context: Any = None, address: str = address, **options: Any) -> Any:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            context.set_default_timeout(60_000)  # on a machine that is busy with other tests
            contexts.append(context)
        page = context.new_page()
        watch(page, address)
        page.goto(f"{address}{part}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def blank(browser: Any, address: str) -> Iterator[Any]:
    """A page for scripts that call its modules."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{address}#info")
    yield page
    context.close()
