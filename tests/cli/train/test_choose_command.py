"""`velatura choose` on the command line."""

import json
import shlex

import pytest

import velatura
from velatura.cli.app import main
from velatura.training.kinds.choice import PURPOSES


@pytest.mark.parametrize("purpose", PURPOSES)
def test_it_answers_in_six_lines_with_a_command(purpose, capsys):
    folder = velatura.tiny_pictures("neon")
    assert main(["choose", str(folder), "--for", purpose]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pictures", "machine", "take", "costs", "or", "run"]
    assert lines[-1].split(maxsplit=1)[1].startswith(f"velatura train {lines[2].split()[1].rstrip(':')} {folder}")


def test_the_command_runs_as_pasted(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["choose", str(velatura.tiny_pictures("robot")), "--for", "word"])
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split(maxsplit=1)[1])
    assert main([*command[1:], "--dry-run"]) == 0


def test_an_aesthetic_has_no_options_that_its_command_lacks(capsys):
    main(["choose", "--for", "mood", "--json"])
    assert json.loads(capsys.readouterr().out)["take"]["command"] == "velatura train aesthetic photos"


def test_a_shorter_time_than_the_first_kind_takes_is_named(capsys):
    main(["choose", "--for", "style", "--minutes", "0.0001"])
    text = capsys.readouterr().out
    assert "it is done sooner" in text or "longer than you want" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--for style"),
        (["--for", "stile"], "did you mean 'style'"),
        (["nowhere", "--for", "style"], "nowhere does not exist"),
        (["--for", "style", "--base", "nothing.safetensors"], "nothing.safetensors does not exist"),
        (["--for", "style", "--base", "hub:owner/name"], "velatura pull hub:owner/name"),
    ],
)
def test_what_is_missing_or_wrong_is_named(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["choose", *words]) == 2
    assert message in capsys.readouterr().err
