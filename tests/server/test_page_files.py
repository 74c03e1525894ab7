"""The files of the page: their types, how browsers keep them, and what the page may run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.conftest import open_client
from velatura.server.page_files import CONTENT_SECURITY_POLICY, PAGE_FOLDER
from velatura.server.settings import ServerSettings

FILES = sorted(path for path in PAGE_FOLDER.rglob("*") if path.is_file())
# As the HTML standard and RFC 9239 name them: a browser runs a module of no other type
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_FIRST_BYTES = 150 * 1024


def test_every_file_has_its_type_and_is_kept_until_it_changes(client):
    for path in FILES:
        name = path.relative_to(PAGE_FOLDER).as_posix()
        answer = client.get(f"/page/{name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].partition(";")[0] == TYPES[path.suffix]
        again = client.get(f"/page/{name}", headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
    assert client.get("/page/style.css", headers={"If-None-Match": '"other"'}).status_code == 200


def test_what_a_first_visit_loads_is_small(client):
    """A tab loads its modules when it is shown; the first one is there at once."""
    first_tab = re.findall(r'import\("\./(\w+\.js)"\)', (PAGE_FOLDER / "tabs/table.js").read_text("utf-8"))[0]
    loaded: set[Path] = set()
    waiting = [PAGE_FOLDER / name for name in ("index.html", "style.css", "icon.svg", "app.js", f"tabs/{first_tab}")]
    while waiting:
        path = waiting.pop().resolve()
        if path not in loaded:
            loaded.add(path)
            waiting += [path.parent / name for name in re.findall(r'from "(\.[^"]+)"', path.read_text("utf-8"))]
    assert sum(path.stat().st_size for path in loaded) < MAX_FIRST_BYTES
    packed = client.get("/page/app.js", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == (PAGE_FOLDER / "app.js").read_bytes()
    plain = client.get("/page/app.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["etag"] != packed.headers["etag"]


def test_folders_of_the_page_hold_sixteen_files_at_most():
    for folder in {path.parent for path in FILES}:
        assert len([path for path in FILES if path.parent == folder]) <= 16


def test_nothing_is_inline_and_nothing_comes_from_outside(client):
    answer = client.get("/")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", answer.text) == []
    for path in FILES:
        addresses = re.findall(
            r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"http://www\.w3\.org/2000/svg", "", path.read_text("utf-8"))
        )
        assert addresses == [], path.name


def test_every_file_that_the_page_names_is_there(client):
    names = re.findall(r'(?:href|src)="page/([^"]+)"', client.get("/").text)
    assert "app.js" in names
    for name in names:
        assert client.head(f"/page/{name}").status_code == 200
    for path in FILES:
        if path.suffix == ".js":
            for target in re.findall(r'(?:from|import)\s*\(?"(\.[^"]+)"', path.read_text("utf-8")):
                assert (path.parent / target).is_file(), f"{path.name} imports {target}"


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "tabs", "", "nothing.js", "app.js/"])
def test_nothing_else_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_api_alone_serves_no_page(tmp_path):
    client = open_client(ServerSettings.of(library=(tmp_path,), out=tmp_path / "out", api_only=True))
    assert [client.get(path).status_code for path in ("/", "/page/app.js", "/internal/ping")] == [404, 404, 200]
    client.app.state.velatura.stop()
