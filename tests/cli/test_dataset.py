"""The verb `dataset`, as typed."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest
from PIL import Image

import velatura
from velatura.cli.app import main


@pytest.fixture
def photos(tmp_path):
    return shutil.copytree(velatura.tiny_pictures("neon"), tmp_path / "photos")


def test_checking_a_good_folder_says_so(photos, capsys):
    assert main(["dataset", "check", str(photos), "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("photos: 16 pictures")
    assert lines[1] == "sizes: 64x64 (16)"
    assert lines[-1] == "no problems found"


def test_checking_a_bad_folder_ends_with_status_2_after_telling_all(photos, capsys):
    (photos / "00.png").write_bytes(b"nothing")
    (photos / "01.txt").unlink()
    assert main(["dataset", "check", str(photos), "--size", "64"]) == 2
    said = capsys.readouterr()
    assert "error: 00.png: cannot be read (it is not a picture)" in said.out
    assert "error: 01.png: has no caption" in said.out
    assert said.err.startswith("error: 2 files of ")


def test_pictures_without_a_caption_are_named_together_with_the_cure(photos, capsys):
    for name in ("01", "02", "03"):
        (photos / f"{name}.txt").unlink()
    assert main(["dataset", "check", str(photos), "--size", "64"]) == 2
    out = capsys.readouterr().out
    assert f"error: 3 pictures in {photos} have no caption (01.png, 02.png, 03.png): write what each shows" in out
    assert f"velatura dataset caption {photos}" in out
    assert "has no caption" not in out


def test_many_findings_of_one_kind_are_one_line_with_the_cure(photos, capsys):
    assert main(["dataset", "check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "warning: 16 pictures are smaller than 512 pixels, so they are enlarged and become soft: use larger" in out
    assert "(00.png, 01.png, " in out
    assert "09.png and 6 more)" in out


def test_a_check_is_read_by_machines(photos, capsys):
    Image.new("RGB", (96, 64)).save(photos / "wide.png")
    assert main(["dataset", "check", str(photos), "--size", "64", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [each["file"] for each in read["pictures"]][-1] == "wide.png"
    assert {"caption": "wide", "caption_from": "name", "cut": 0.3333}.items() <= read["pictures"][-1].items()
    assert ("wide.png", "cropped", "warning") in {
        (each["file"], each["kind"], each["grade"]) for each in read["findings"]
    }


def test_cropping_writes_a_new_folder_and_says_what_was_done(photos, tmp_path, capsys):
    Image.new("RGB", (96, 24), "teal").save(photos / "wide one.png")
    out = tmp_path / "ready"
    assert main(["dataset", "crop", str(photos), "--size", "64", "--out", str(out), "--mirrors"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 34 pictures of 17" in said
    assert "64x64 (34)" in said
    assert "2 enlarged" in said
    assert "00016-0-wide one.png leaves out 75% of wide one.png" in said
    assert len(list(out.glob("*.txt"))) == 33  # the name of one says it, but not that of its mirror image


def test_cropping_to_an_odd_size_is_refused(photos, tmp_path, capsys):
    assert main(["dataset", "crop", str(photos), "--size", "63", "--out", str(tmp_path / "ready")]) == 2
    assert "choose a multiple of 8" in capsys.readouterr().err


def test_captioning_writes_what_is_missing(photos, capsys):
    before = (photos / "01.txt").read_text()
    (photos / "00.txt").unlink()
    assert main(["dataset", "caption", str(photos), "--before", "neon style"]) == 0
    printed = capsys.readouterr()
    said = printed.out.splitlines()
    assert "the tiny captioner names one of 20 subjects" in printed.err.splitlines()[0]
    assert "--existing replace" in printed.err.splitlines()[-2]  # why 15 are left
    assert printed.err.splitlines()[-1] == f"read them before you train: velatura dataset review {photos}"
    assert said[0].startswith("00.txt: neon style, a")
    assert said[-1] == "1 caption written, 15 pictures left as they are"
    assert (photos / "00.txt").read_text().startswith("neon style, a")
    assert (photos / "01.txt").read_text() == before


def test_captioning_with_something_unknown_is_refused(photos, capsys):
    assert main(["dataset", "caption", str(photos), "--with", "tini"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_reviewing_serves_a_page_until_ctrl_c(photos):
    words = [sys.executable, "-m", "velatura", "dataset", "review", str(photos), "--no-browser"]
    # whoever runs the tests in the background, as nohup does, passes on that SIGINT is ignored
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        review = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with review as command:
        url = re.search(r"16 pictures at (http://127\.0\.0\.1:\d+/\?token=\S+)", command.stdout.readline())[1]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as page:
            assert b"<title>Captions</title>" in page.read()
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=20)
    assert command.returncode == 0
    assert out.splitlines()[-1] == "ended; 0 changes are saved"
    assert err == ""
