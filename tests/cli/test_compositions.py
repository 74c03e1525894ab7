import json
from hashlib import sha256
from pathlib import Path

import pytest

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main

MIX = "[('inca', 0.5), {'ink': 3, ('inca', 0.25): 1}]"


@pytest.fixture
def mix(tiny, tmp_path, monkeypatch):
    """A composition in the working folder, and the two hypernetworks that it names."""
    monkeypatch.chdir(tmp_path)
    both = {"inca.pt": [64, 96], "ink.safetensors": [96]}
    for place, (file, widths) in enumerate(both.items()):
        velatura.save(velatura.Hypernetwork.for_base(tiny, widths=widths, seed=place), file)
    Path("mix.hns").write_text(MIX, "utf-8")
    return tmp_path / "mix.hns"


def shown(capsys) -> str:
    assert main(["show", "mix.hns"]) == 0
    return capsys.readouterr().out


def test_show_draws_the_tree(mix, capsys):
    tree = """\
structure      one after the other
                 inca at 0.5
                 side by side
                   75% of ink at 1
                   25% of inca at 0.25
"""
    assert tree in shown(capsys)


def test_show_names_each_file_with_its_hash_and_who_changes_which_width(mix, capsys):
    said = shown(capsys)
    for name, file in {"inca": "inca.pt", "ink": "ink.safetensors"}.items():
        assert f"{name}: {file} ({sha256(Path(file).read_bytes()).hexdigest()[:10]}), hypernet " in said
    assert "widths         64: inca\n               96: inca, ink\n" in said
    assert "made for       tiny\n" in said
    assert "in a prompt    <hypernet:mix:1>\n" in said


def test_what_is_missing_or_damaged_is_told_and_the_rest_still_shown(mix, capsys):
    Path("inca.pt").write_bytes(b"PK\x03\x04 cut short")
    Path("ink.safetensors").rename("inks.safetensors")
    said = shown(capsys)
    assert "kind           hypernet, a composition that cannot be used: 2 of its parts cannot\n" in said
    assert "inca: cannot be used, inca.pt " in said
    assert "ink: cannot be used, no overlay is called 'ink'" in said
    assert "did you mean 'inks'" in said
    assert "made for       unknown\n" in said


def test_json_has_the_tree_the_members_and_the_widths(mix, capsys):
    Path("inca.pt").unlink()
    assert main(["show", "mix.hns", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    inca, inca_less = {"name": "inca", "strength": 0.5}, {"name": "inca", "strength": 0.25}
    blend = {"parts": [{"name": "ink", "strength": 1.0}, inca_less], "weights": [3.0, 1.0]}
    assert said["tree"] == {"parts": [inca, blend]}
    assert said["widths"] == {"96": ["ink"]}
    assert said["hash"] == sha256(MIX.encode()).hexdigest()
    missing, ink = said["members"]
    assert "no overlay is called 'inca'" in missing["problem"]
    assert ink["card"] == velatura.open_overlay("ink.safetensors").card.model_dump(mode="json")


def test_what_is_no_composition_is_one_line(mix, capsys):
    mix.write_text("import os", "utf-8")
    assert main(["show", "mix.hns"]) == USER_ERROR_STATUS
    assert capsys.readouterr().err.startswith("error: mix.hns is not a composition of hypernetworks")
