"""Files come whole, once, and no larger than allowed, whatever their server does."""

import contextlib
import errno
import gzip
import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velatura.downloads.partial_file import PartialFile, PartialFileRecord, lock_target
from velatura.downloads.pull import pull
from velatura.downloads.transfer import RemoteFile, Transfer, file_name
from velatura.errors import AlreadyExists, BadFile, DownloadFailed

NAME = "/files/ink.safetensors"


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def begun(desk, body, count, url, etag='"one"'):
    """Leave what an interrupted run leaves."""
    part = PartialFile(desk / "ink.safetensors")
    part.begin(PartialFileRecord(url, etag, len(body)))
    part.path.write_bytes(body[:count])


def test_a_file_comes_whole_under_its_name(server, fetch, desk, lora):
    done = fetch(server.offers(NAME, lora))
    assert (desk / "ink.safetensors").read_bytes() == lora
    assert names(desk) == ["ink.safetensors"]
    assert (done.path, done.kind) == (desk / "ink.safetensors", "lora")
    assert done.sha256 == hashlib.sha256(lora).hexdigest()


def test_it_is_called_part_until_all_has_come(server, web, desk, lora):
    seen = []

    def look(_done, _total):
        seen.append(names(desk))

    pull(server.offers(NAME, lora), desk, web=web, on_bytes=look)
    assert seen
    assert all(
        names == ["ink.safetensors.part", "ink.safetensors.part.json", "ink.safetensors.part.lock"] for names in seen
    )


def test_progress_ends_at_the_files_size(server, fetch, lora):
    progress = []
    fetch(server.offers(NAME, lora), on_bytes=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (len(lora), len(lora))


def test_a_broken_connection_goes_on_where_it_broke(server, fetch, desk, lora, slept):
    fetch(server.offers(NAME, lora, breaks=[5000, 7000]))
    assert (desk / "ink.safetensors").read_bytes() == lora
    assert server.ranges() == [None, "bytes=5000-", "bytes=12000-"]
    assert server.asked[1][1]["If-Range"] == '"one"'
    assert slept == [1, 1]


def test_it_gives_up_on_one_that_never_goes_on_and_keeps_what_came(server, fetch, desk, lora):
    url = server.offers(NAME, lora, breaks=[5000, *[0] * 20])
    with pytest.raises(DownloadFailed, match=r"the connection broke after 5,000 bytes .*the bytes so far are kept"):
        fetch(url)
    assert names(desk) == ["ink.safetensors.part", "ink.safetensors.part.json"]
    server.replies[NAME].breaks.clear()
    server.asked.clear()
    fetch(url)
    assert server.ranges() == ["bytes=5000-"]
    assert (desk / "ink.safetensors").read_bytes() == lora


def test_ctrl_c_keeps_what_came_and_says_so(server, fetch, desk, lora):
    url = server.offers(NAME, lora)

    def press(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interruption:
        fetch(url, on_bytes=press)
    assert "the same command resumes" in interruption.value.__notes__[0]
    partial_size = (desk / "ink.safetensors.part").stat().st_size
    assert partial_size > 0
    assert not (desk / "ink.safetensors").exists()
    fetch(url)
    assert (desk / "ink.safetensors").read_bytes() == lora


def test_a_file_that_changed_is_fetched_anew(server, fetch, desk, lora):
    url = server.offers(NAME, lora, etag='"two"')
    begun(desk, b"x" * len(lora), 4000, url, etag='"one"')
    fetch(url)
    assert (desk / "ink.safetensors").read_bytes() == lora
    assert server.ranges() == ["bytes=4000-"]


def test_a_part_of_another_address_is_not_gone_on_with(server, fetch, desk, lora):
    url = server.offers(NAME, lora)
    begun(desk, b"x" * len(lora), 4000, server.root + "/others/ink.safetensors")
    fetch(url)
    assert server.ranges() == [None]
    assert (desk / "ink.safetensors").read_bytes() == lora


def test_a_part_whose_server_could_not_know_it_again_is_not_gone_on_with(server, fetch, desk, lora):
    url = server.offers(NAME, lora, etag=None)
    begun(desk, lora, 4000, url, etag="")
    fetch(url)
    assert server.ranges() == [None]


def test_a_weak_etag_is_no_reason_to_go_on(server, fetch, desk, lora):
    url = server.offers(NAME, lora, etag='W/"one"', breaks=[5000])
    fetch(url)
    assert server.ranges() == [None, None]
    assert (desk / "ink.safetensors").read_bytes() == lora


def test_a_part_that_was_whole_already_is_only_named(server, fetch, desk, lora):
    url = server.offers(NAME, lora)
    begun(desk, lora, len(lora), url)
    fetch(url)
    assert server.ranges() == [f"bytes={len(lora)}-"]
    assert names(desk) == ["ink.safetensors"]


def test_a_part_longer_than_the_file_is_fetched_anew(server, fetch, desk, lora):
    url = server.offers(NAME, lora)
    begun(desk, lora + b"more", len(lora) + 4, url)
    fetch(url)
    assert (desk / "ink.safetensors").read_bytes() == lora


def test_a_damaged_note_is_no_reason_to_go_on(server, fetch, desk, lora):
    url = server.offers(NAME, lora)
    begun(desk, lora, 4000, url)
    (desk / "ink.safetensors.part.json").write_text("{")
    fetch(url)
    assert server.ranges() == [None]


def test_the_wrong_part_of_a_file_is_not_taken(server, fetch, desk, lora):
    url = server.offers(NAME, lora)
    begun(desk, lora, 4000, url)
    good = server.replies[NAME]

    def liar(handler):
        if handler.headers.get("Range"):
            handler.answer(206, lora[3000:], Content_Range=f"bytes 3000-{len(lora) - 1}/{len(lora)}", ETag='"one"')
        else:
            good(handler)

    server.replies[NAME] = liar
    fetch(url)
    assert (desk / "ink.safetensors").read_bytes() == lora


def test_a_server_that_never_says_the_same_is_given_up(server, fetch, desk, lora):
    url = server.offers(NAME, lora)
    server.replies[NAME] = lambda handler: handler.answer(206, lora, Content_Range="bytes 7-8/9", ETag='"one"')
    with pytest.raises(DownloadFailed, match="changes during the download"):
        fetch(url)
    assert names(desk) == []


def test_what_is_announced_as_too_large_is_not_begun(server, fetch, desk, lora):
    with pytest.raises(DownloadFailed, match=r"over the limit of 0\.0 MB: allow more with --limit"):
        fetch(server.offers(NAME, lora), limit=len(lora) - 1)
    assert names(desk) == []


def endless(handler):
    """Send without ever saying how much."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/octet-stream")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def test_what_never_ends_is_cut_off_at_the_limit(server, fetch, desk):
    server.replies[NAME] = endless
    with pytest.raises(DownloadFailed, match=r"sends more than 1.0 MB, the limit: it is deleted"):
        fetch(server.root + NAME, limit=1_000_000)
    assert names(desk) == []


def test_what_ends_before_its_announced_length_never_gets_its_name(server, fetch, desk, lora):
    server.replies[NAME] = lambda handler: handler.answer(200, lora, Content_Length=len(lora) + 1000, ETag='"one"')
    with pytest.raises(DownloadFailed, match="the connection broke"):
        fetch(server.root + NAME)
    assert "ink.safetensors" not in names(desk)


def test_more_than_fits_on_the_disk_is_not_begun(server, fetch, desk, lora, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadFailed, match="are free: choose another disk"):
        fetch(server.offers(NAME, lora))
    assert names(desk) == []


def test_a_web_page_is_no_file(server, fetch, desk):
    server.replies[NAME] = lambda handler: handler.answer(200, b"<html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(DownloadFailed, match="is a web page, not a file: it may need a login"):
        fetch(server.root + NAME)
    assert names(desk) == []


def test_a_compressed_answer_is_refused_unread(server, fetch, desk):
    bomb = gzip.compress(bytes(10_000_000))
    server.replies[NAME] = lambda handler: handler.answer(200, bomb, Content_Encoding="gzip")
    with pytest.raises(DownloadFailed, match="is compressed with 'gzip', although it must not be"):
        fetch(server.root + NAME)
    assert names(desk) == []
    assert server.asked[0][1]["Accept-Encoding"] == "identity"


def test_what_is_no_model_does_not_stay(server, fetch, desk):
    with pytest.raises(BadFile):
        fetch(server.offers(NAME, b"not what it says" * 100))
    assert names(desk) == []


def test_a_pickle_called_safetensors_is_refused(server, fetch, desk, hypernet):
    with pytest.raises(BadFile, match=r"is a torch file, not safetensors.*do not trust it"):
        fetch(server.offers(NAME, hypernet))
    assert names(desk) == []


def test_a_file_that_is_there_is_not_replaced(server, fetch, desk, lora):
    (desk / "ink.safetensors").write_bytes(b"mine")
    with pytest.raises(AlreadyExists, match="already exists, and is another file"):
        fetch(server.offers(NAME, lora))
    assert (desk / "ink.safetensors").read_bytes() == b"mine"
    assert names(desk) == ["ink.safetensors"]


def test_two_commands_do_not_fetch_one_file_at_once(server, fetch, desk, lora):
    with lock_target(desk / "ink.safetensors"), pytest.raises(AlreadyExists, match="by another command: wait for it"):
        fetch(server.offers(NAME, lora))
    fetch(server.offers(NAME, lora))
    assert names(desk) == ["ink.safetensors"]


def test_of_many_at_once_each_fetches_or_is_refused(server, web, desk, lora):
    url, outcomes = server.offers(NAME, lora), []

    def go():
        try:
            outcomes.append(pull(url, desk, web=web).was_there)
        except AlreadyExists:
            outcomes.append(None)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(False) == 1
    assert (desk / "ink.safetensors").read_bytes() == lora
    assert names(desk) == ["ink.safetensors"]


def test_a_folder_made_for_nothing_goes_again(server, fetch, tmp_path):
    with pytest.raises(DownloadFailed, match=r"does not exist \(404\)"):
        fetch(server.root + NAME, to=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_target_that_is_not_a_folder_is_refused(server, fetch, tmp_path, lora):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadFailed, match="cannot be written"):
        fetch(server.offers(NAME, lora), to=tmp_path / "file" / "below")


def test_another_disk_gets_a_copy(server, fetch, desk, lora, monkeypatch):
    (desk / "models" / "Lora").mkdir(parents=True)
    rename = Path.rename

    def refuse(path, target):
        if path.suffix == ".part":
            raise OSError(errno.EXDEV, "another disk")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    fetch(server.offers(NAME, lora))
    assert (desk / "models" / "Lora" / "ink.safetensors").read_bytes() == lora
    assert names(desk) == ["ink.safetensors"]


def test_a_wrong_size_is_refused_before_anything_is_written(server, web, desk, lora):
    part = PartialFile(desk / "ink.safetensors")
    remote_file = RemoteFile(server.offers(NAME, lora), size=len(lora) + 1)
    with pytest.raises(DownloadFailed, match=r"but its service states"):
        Transfer(web, remote_file, part, limit=10**9).run()
    assert names(desk) == []


def test_a_full_disk_is_reported_and_the_bytes_so_far_are_kept(server, fetch, desk, lora, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("velatura.downloads.transfer.Transfer._write", full)
    with pytest.raises(DownloadFailed, match=r"cannot be written \(No space left on device\): make room"):
        fetch(server.offers(NAME, lora))
    assert names(desk) == ["ink.safetensors.part", "ink.safetensors.part.json"]


ODD = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
RANGES = st.builds(
    "bytes {}-{}/{}".format, st.integers(-1, 99), st.integers(-1, 99), st.integers(0, 10**20) | st.just("*")
)


HEADERS = st.fixed_dictionaries(
    {
        "content-range": ODD | RANGES,
        "content-length": ODD | st.integers(0, 10**40).map(str),
        "etag": ODD,
        "last-modified": ODD,
        "content-type": ODD,
    }
)
NAMES = st.builds(
    "{}{}".format, st.sampled_from(["", "a; filename=", "a; filename*=UTF-8''", "a; filename*0*=x''%"]), ODD
)
FILE = RemoteFile("https://example.org/ink.pt")
NAMELESS = RemoteFile("https://example.org/7")


class Odd(httpx2.BaseTransport):
    """A server that answers with whatever headers it is told."""

    code = 200
    headers: dict[str, str]

    def handle_request(self, _request):
        headers = {name: value.encode("latin-1") for name, value in self.headers.items()}
        return httpx2.Response(self.code, headers=headers, stream=httpx2.ByteStream(b"weights"))


@pytest.fixture
def odd(web):
    """Ask an odd server."""
    odd = Odd()
    web._client = httpx2.Client(transport=odd)
    return odd


def test_no_odd_header_breaks_anything(odd, web, desk):
    @settings(deadline=None)
    @given(st.sampled_from([200, 206, 416]), HEADERS)
    def ask(code, headers):
        odd.code, odd.headers = code, headers
        with contextlib.suppress(DownloadFailed):
            Transfer(web, FILE, PartialFile(desk / "ink.pt"), limit=1000).run()

    ask()


def test_no_odd_name_breaks_anything(odd, web):
    @settings(deadline=None)
    @given(NAMES)
    def ask(disposition):
        odd.headers = {"content-disposition": disposition}
        with contextlib.suppress(DownloadFailed):
            file_name(web, NAMELESS)

    ask()
