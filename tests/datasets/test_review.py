"""Captions looked through on a page: the album behind it, its server, and the page in a browser."""

import json
import shutil
import urllib.error
import urllib.request

import pytest
from PIL import Image
from playwright.sync_api import expect

import velatura
from velatura.datasets.review import CaptionEditor
from velatura.datasets.review_server import serve
from velatura.errors import BadDataset

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def folder(tmp_path):
    """Four pictures: two with texts, one with a name, one with nothing."""
    for name in ("0.png", "1.png", "a cat.png", "IMG_0001.png"):
        Image.new("RGB", (8, 8), "teal").save(tmp_path / name)
    (tmp_path / "0.txt").write_text("house, red, sea\n")
    (tmp_path / "1.txt").write_text("boat, sea")
    return tmp_path


def texts(folder):
    return {path.name: path.read_text().strip() for path in folder.glob("*.txt")}


def test_an_album_shows_every_caption(folder):
    assert CaptionEditor.from_folder(folder).captions == {0: "house, red, sea", 1: "boat, sea", 2: "", 3: "a cat"}


def test_tags_are_added_removed_and_replaced_in_many_pictures(folder):
    album = CaptionEditor.from_folder(folder)
    assert list(album.add([0, 1, 3], "sea")) == [3]
    assert list(album.add([0, 1], "inca", at_start=True)) == [0, 1]
    assert list(album.replace([0, 1, 2, 3], "sea", "boat")) == [0, 1, 3]
    assert list(album.remove([0, 1, 2, 3], "red")) == [0]
    assert texts(folder) == {"0.txt": "inca, house, boat", "1.txt": "inca, boat", "a cat.txt": "a cat, boat"}


def test_every_change_is_undone_and_done_again(folder):
    before = texts(folder)
    album = CaptionEditor.from_folder(folder)
    album.set(3, "a cat asleep")
    album.add([0, 1, 2, 3], "neon")
    after = texts(folder)
    assert after["IMG_0001.txt"] == "neon"
    album.undo()
    album.undo()
    assert texts(folder) == before
    assert album.captions[3] == "a cat"
    album.redo()
    album.redo()
    assert texts(folder) == after
    with pytest.raises(BadDataset, match="nothing to redo"):
        album.redo()


def test_a_new_change_ends_what_could_be_done_again(folder):
    album = CaptionEditor.from_folder(folder)
    album.set(0, "x")
    album.undo()
    album.set(0, "y")
    assert (album.undo_count, album.redo_count) == (1, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda album: album.set(1, " "), r"1\.png would have no caption left"),
        (lambda album: album.remove([3], "a cat"), r"a cat\.png would have no caption left"),
        (lambda album: album.add([0], "a, b"), "is not a single tag"),
        (lambda album: album.add([9], "a"), "picture 9 does not exist"),
        (lambda album: album.undo(), "nothing to undo"),
    ],
)
def test_senseless_changes_are_refused_and_change_nothing(folder, change, reason):
    before = texts(folder)
    with pytest.raises(BadDataset, match=reason):
        change(CaptionEditor.from_folder(folder))
    assert texts(folder) == before


def test_what_another_program_wrote_is_not_overwritten(folder):
    album = CaptionEditor.from_folder(folder)
    (folder / "1.txt").write_text("boat, written elsewhere")
    with pytest.raises(BadDataset, match=r"caption of 1\.png was changed by another program"):
        album.add([0, 1], "inca")
    assert texts(folder) == {"0.txt": "house, red, sea", "1.txt": "boat, written elsewhere"}
    album.add([0, 1], "inca")
    assert texts(folder)["1.txt"] == "boat, written elsewhere, inca"


def test_an_album_with_a_text_that_cannot_be_read_is_refused(folder):
    (folder / "0.txt").write_bytes(b"ma\xeetre")
    with pytest.raises(BadDataset, match=r"0\.txt is not UTF-8"):
        CaptionEditor.from_folder(folder)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(BadDataset, match="contains no pictures"):
        CaptionEditor.from_folder(tmp_path)
    with pytest.raises(BadDataset, match="does not exist: name a folder"):
        CaptionEditor.from_folder(tmp_path / "nowhere")


def asked(url, body=None, **headers):
    """Status and answer of one request."""
    request = urllib.request.Request(url, body if body is None else json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_who_knows_the_token_and_comes_to_this_host_is_answered(folder):
    before = texts(folder)
    change = {"action": "add", "ids": [0], "tag": "x"}
    with serve(CaptionEditor.from_folder(folder)) as server:
        root = f"http://127.0.0.1:{server.server_port}"
        for path in ("/", "/captions", "/picture/0", "/?token=wrong", "/captions?token="):
            assert asked(root + path)[0] == 403
        assert asked(f"{root}/change?token=wrong", change)[0] == 403
        assert asked(f"{root}/change?token={server.token}", change, Host="evil.example:80")[0] == 403
        assert asked(f"{root}/other?token={server.token}")[0] == 404
        assert asked(f"{root}/picture/99?token={server.token}")[0] == 404
        assert asked(f"{root}/change?token={server.token}", {"action": "burn"})[0] == 409
        assert asked(f"{root}/change?token={server.token}", [1])[0] == 409
        assert asked(f"{root}/change?token={server.token}", change, **{"Content-Length": str(2**21)})[0] == 413
        assert texts(folder) == before
        assert asked(f"{root}/change?token={server.token}", change)[0] == 200
    assert texts(folder)["0.txt"] == "house, red, sea, x"


def test_a_port_in_use_is_refused(folder):
    with (
        serve(CaptionEditor.from_folder(folder)) as server,
        pytest.raises(BadDataset, match=r"cannot be used .*choose another"),
    ):
        serve(CaptionEditor.from_folder(folder), server.server_port).__enter__()


@pytest.fixture
def page(playwright_engine):
    if CHROMIUM is None:
        pytest.skip("there is no chromium to look at pages with: apt-get install chromium")
    browser = playwright_engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser.new_page(viewport={"width": 1200, "height": 850})
    browser.close()


def test_captions_are_changed_on_the_page_and_saved_as_they_are(page, tmp_path):
    folder = shutil.copytree(velatura.tiny_pictures("neon"), tmp_path / "neon")
    (folder / "03.txt").write_text("an orange star, <b>bold</b>")
    outside, errors = [], []
    page.on("request", lambda request: outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    with serve(CaptionEditor.from_folder(folder)) as server:
        page.goto(server.url)
        expect(page.locator("article")).to_have_count(16)
        expect(page.get_by_role("button", name="<b>bold</b> ×")).to_be_visible()

        first = page.get_by_label("Caption of 00.png")
        first.fill("a pink mug, under the sea")
        first.blur()
        expect(page.get_by_role("status")).to_have_text("Saved, 1 changed.")
        assert (folder / "00.txt").read_text() == "a pink mug, under the sea\n"

        page.get_by_label("Tag", exact=True).fill("neon style")
        page.get_by_role("button", name="Add as first").click()
        expect(page.get_by_role("status")).to_have_text("Saved, 16 changed.")
        assert all(path.read_text().startswith("neon style, ") for path in folder.glob("*.txt"))

        page.locator("article").nth(1).get_by_role("button", name="neon style ×").click()
        expect(page.get_by_role("status")).to_have_text("Saved, 1 changed.")
        assert not (folder / "01.txt").read_text().startswith("neon style")
        page.screenshot(path=tmp_path / "page.png")

        for _ in range(3):
            page.get_by_role("button", name="Undo").click()
            expect(page.get_by_role("status")).to_contain_text("Saved")
        expect(page.get_by_role("button", name="Undo")).to_be_disabled()
        expect(first).to_have_value("under the sea, a pink mug")

        page.get_by_label("Show only pictures with").fill("red boat")
        expect(page.locator("article:visible")).to_have_count(1)
        page.get_by_role("button", name="Choose all shown").click()
        page.get_by_role("button", name="Add at the end").click()
        expect(page.get_by_role("status")).to_have_text("Saved, 1 changed.")
        page.get_by_label("Caption of 05.png").fill("")
        page.get_by_label("Caption of 05.png").blur()
        expect(page.get_by_role("status")).to_contain_text("would have no caption left")
        shown = page.locator("article:visible img").evaluate_all("all => all.every(each => each.naturalWidth > 0)")
        assert shown
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert sum(path.read_text().endswith(", neon style\n") for path in folder.glob("*.txt")) == 1
    assert [url for url in outside if not url.startswith("http://127.0.0.1:")] == []
    assert [each for each in errors if "409" not in each] == []
