"""`velatura serve` before it serves: what it needs, and what it refuses."""

import pytest

from velatura.cli import serve
from velatura.cli.app import main


def test_without_the_extra_it_names_the_packages_and_the_command(monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "error: the server needs uvicorn: pip install velatura[serve]\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "add --listen if they may"),
        (["--auth", "me"], "write it as user:password"),
        (["--origin", "example.org"], "is not an origin"),
        (["--library", "nowhere", "--port", "0"], "nowhere is not a folder"),
        (["--host", "192.0.2.1", "--listen", "--port", "0"], "choose another --port"),
    ],
)
def test_a_mistake_is_refused_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_base_that_does_not_exist_ends_the_server(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--base", "nowhere", "--port", "0"]) == 2
    assert "no base is called 'nowhere'" in capsys.readouterr().err
