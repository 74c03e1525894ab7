"""What a terminal is given: no text from a file or its name may move its cursor, colour it, or turn its lines round."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest

import velatura
from velatura.cli import screen
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.cli.screen import ProgressLines, escape, print_error, say, say_json, show_warning
from velatura.errors import VelaturaWarning

# ECMA-48: what begins with ESC or CSI (of one byte too) is acted on; UAX 9: these change the direction of what follows
HOSTILE = "in\x1b[2J\x9b31m\r\x07\b\x7f\u202eca"
BELL_AND_ESCAPE = "in\x1b[2J\x07ca"  # what a file system takes everywhere but on Windows
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")


def is_tame(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def inca(tiny, tmp_path, monkeypatch):
    """A folder with an overlay whose name and note are hostile."""
    monkeypatch.chdir(tmp_path)
    overlay = velatura.Hypernetwork.for_base(tiny, widths=[96], seed=1, name=HOSTILE)
    overlay.card = overlay.card.replace(note=HOSTILE, trigger_words=(HOSTILE,))
    file = tmp_path / f"{BELL_AND_ESCAPE}.safetensors"
    velatura.save(overlay, file)
    return file


def test_letters_and_spaces_of_every_language_stay():
    text = "größe\u00a0日本\u3000語 می\u200cخواهم 👩\u200d🎨 × ·"
    assert escape(text) == text


def test_what_a_terminal_acts_on_is_written_out():
    assert escape("a\x1b[2J\x9b\n\u202e\u2028\udcff") == r"a\x1b[2J\x9b\n\u202e\u2028\udcff"


def test_each_thing_said_is_one_line(capsys):
    say("a\nerror: b", Path("c"))
    assert capsys.readouterr().out == "a\\nerror: b\nc\n"


def test_a_complaint_is_one_line_on_stderr(capsys):
    print_error("a\x1b\n  b")
    assert capsys.readouterr() == ("", "a\\x1b b\n")


def test_json_loses_nothing(capsys):
    value = {"name": HOSTILE + "größe 👩\U000e0001", "undecodable": "\udcff"}
    say_json(json.dumps(value, indent=2, ensure_ascii=False))
    said = capsys.readouterr().out
    assert is_tame(said)
    assert "größe" in said
    assert json.loads(said) == value


def test_a_terminal_of_few_letters_is_no_error(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), "cp1252", newline="")
    monkeypatch.setattr(sys, "stdout", narrow)
    say("größe 日")
    say_json(json.dumps("größe 👩", ensure_ascii=False))
    narrow.flush()
    said, read = narrow.buffer.getvalue().decode("cp1252").splitlines()
    assert said == r"größe \u65e5"
    assert json.loads(read) == "größe 👩"


def test_nothing_else_in_the_command_line_prints():
    for file in Path(screen.__file__).parent.glob("*.py"):
        called = {node.func.id for node in ast.walk(ast.parse(file.read_text())) if is_call_by_name(node)}
        assert "print" not in called or file.name == "screen.py", f"{file.name} prints: let it say or complain"


def is_call_by_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@posix
@pytest.mark.parametrize("words", ["list", "list --json", "show", "show --json", "convert"])
def test_a_hostile_file_does_nothing_to_the_terminal(words, inca, capsys):
    verb, *options = words.split()
    files = {"list": [], "show": [inca.name], "convert": [inca.name, f"{BELL_AND_ESCAPE}.pt"]}[verb]
    assert main([verb, *files, *options]) == 0
    said = capsys.readouterr().out
    assert "ca" in said
    assert is_tame(said)


@posix
@pytest.mark.usefixtures("inca")
@pytest.mark.parametrize(
    "words",
    [
        ["show", f"{BELL_AND_ESCAPE}.pt"],
        ["generate", f"a house <hypernet:{BELL_AND_ESCAPE}2:1>"],
        ["generate", "a house", "--base", BELL_AND_ESCAPE],
        ["train", "hypernet", BELL_AND_ESCAPE],
        ["convert", f"{BELL_AND_ESCAPE}.safetensors", f"x.{BELL_AND_ESCAPE}"],
        [BELL_AND_ESCAPE],
        ["list", f"--{BELL_AND_ESCAPE}"],
    ],
    ids=lambda words: words[0] if words[0].isprintable() else "no verb",
)
def test_a_mistake_that_names_it_neither(words, capsys):
    assert main(words) == USER_ERROR_STATUS
    out, said = capsys.readouterr()
    assert out == ""
    assert is_tame(said)
    assert said.count("\n") == 1


def test_a_warning_of_ours_is_one_line(capsys):
    show_warning(VelaturaWarning(HOSTILE), VelaturaWarning, "here.py", 1)
    said = capsys.readouterr().err
    assert said.startswith("warning: in\\x1b[2J")
    assert is_tame(said)
    assert said.count("\n") == 1


def test_the_warnings_of_libraries_are_tamed_too(capsys):
    show_warning(UserWarning(HOSTILE), UserWarning, "here.py", 1, None, None)
    said = capsys.readouterr().err
    assert said.startswith("here.py:1: UserWarning: in\\x1b[2J")
    assert is_tame(said)


def test_long_work_prints_a_line_for_each_twentieth_and_short_work_none(capsys):
    times = iter([0.0, *range(1, 1000)])
    lines = ProgressLines("painting", lambda: next(times))
    for done in range(1, 101):  # one step a second; the first ten are quiet
        lines.update(done, 100)
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "painting: 10 of 100"
    assert printed[-1] == "painting: 100 of 100"
    assert len(printed) == 19


def test_work_that_had_lines_has_one_at_its_end_and_only_one(capsys):
    times = iter([0, *range(11, 200)])
    lines = ProgressLines("painting", lambda: next(times))
    for done in range(41, 60):
        lines.update(done, 60)
    lines.update(60, 60)
    lines.update(60, 60)
    assert capsys.readouterr().err.splitlines()[-2:] == ["painting: 59 of 60", "painting: 60 of 60"]


def test_slow_work_prints_a_line_every_half_minute(capsys):
    times = iter([0.0, 31.0, 40.0, 62.0])
    lines = ProgressLines("painting", lambda: next(times))
    for done in (1, 2, 3):
        lines.update(done, 1000)
    assert capsys.readouterr().err.splitlines() == ["painting: 1 of 1000", "painting: 3 of 1000"]
