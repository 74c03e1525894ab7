"""Servers with other folders: with none of a library, and with that of an A1111 as it lies."""

from __future__ import annotations

import re

import pytest

import velatura
from tests.server.page.conftest import PAINTED, PROMPT, serve
from velatura.server.settings import ServerSettings


@pytest.fixture
def web_ui(tmp_path, tiny):
    """A folder of A1111 with a LoRA, a hypernetwork and an embedding where A1111 has them."""
    overlays = {
        "models/Lora/styles/brush.safetensors": velatura.Lora.for_base(tiny, rank=1, name="brush"),
        "models/hypernetworks/glass.pt": velatura.Hypernetwork.for_base(tiny, name="glass"),
        "embeddings/clay.pt": velatura.Embedding.for_base(tiny, vectors=1, name="clay"),
    }
    for place, overlay in overlays.items():
        path = tmp_path / "webui" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        velatura.save(overlay, path)
    return tmp_path / "webui"


def test_a_page_without_a_library_says_what_to_do_and_paints(open_page, tmp_path, port):
    with serve(ServerSettings.of(library=(), out=tmp_path / "out", batch=1), port):
        page = open_page("#paint", address=f"http://127.0.0.1:{port}/")
        page.get_by_text("No overlays yet: start the server with --library").wait_for()
        page.get_by_role("button", name="a red house on the beach").click()
        page.get_by_label("Steps", exact=True).fill("1")
        page.get_by_role("button", name="Paint", exact=True).click()
        page.locator(f"{PAINTED}[alt='a red house on the beach']").wait_for()
        page.get_by_role("tab", name="Library").click()
        page.get_by_text("No files yet").wait_for()
        page.close()


def test_a_folder_of_a1111_is_shown_as_it_lies(open_page, web_ui, tmp_path, port):
    with serve(ServerSettings.of(library=(web_ui,), out=tmp_path / "out", batch=1), port):
        page = open_page("#paint", address=f"http://127.0.0.1:{port}/")
        for name, kind, call in (
            ("brush", "LoRA", "<lora:brush:1>"),
            ("glass", "Hypernetwork", "<hypernet:glass:1>"),
            ("clay", "Embedding", "clay"),
        ):
            page.get_by_role("button", name=re.compile(f"^{name} {kind}")).click()
            assert call in page.locator(PROMPT).input_value()
        page.get_by_label("Steps", exact=True).fill("1")
        page.get_by_role("button", name="Paint", exact=True).click()
        page.locator(".effect", has_text="<lora:brush:1>").first.wait_for()
        page.close()
