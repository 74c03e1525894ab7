"""The witness of pictures, trainings and files: what is as it was passes, what is not is named."""

import json

import pytest

from tools import witness
from tools.witness_cases import CASES

CHEAP = "picture/sampler LCM"
RESULTS = {f"{CHEAP}: x.png pixels", f"{CHEAP}: x.png told"}


def test_a_picture_is_as_it_was_until_a_hash_of_it_is_another(tmp_path, capsys):
    kept = tmp_path / "hashes.json"
    assert witness.main(["--only", CHEAP, "--out", str(kept)]) == 0
    hashes = json.loads(kept.read_text("utf-8"))
    assert hashes.keys() == RESULTS
    assert witness.main(["--only", CHEAP, "--against", str(kept)]) == 0
    assert "differs" not in capsys.readouterr().out
    changed = hashes | {f"{CHEAP}: x.png pixels": "0", "picture/of another part": "0"}
    kept.write_text(json.dumps(changed), "utf-8")
    assert witness.main(["--only", CHEAP, "--against", str(kept)]) == 1
    told = capsys.readouterr().out
    assert f"differs: {CHEAP}: x.png pixels" in told
    assert "another part" not in told


def test_results_that_only_one_side_has_are_named():
    assert witness.differences({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == ["gone:    a", "new:     c"]


def test_a_case_that_fails_is_told_and_others_go_on(monkeypatch, capsys):
    monkeypatch.setitem(CASES, "broken/words", ("generate --no-such-option",))
    monkeypatch.setitem(CASES, "broken/then help", ("show --help",))
    assert witness.main(["--only", "broken/"]) == 1
    told = capsys.readouterr().out
    assert "no-such-option" in told
    assert "2 results" in told


def test_a_part_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        witness.main(["--only", "sculpture/"])
    assert "sculpture/" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"a": [1, 2], "seconds": 3}', '{"seconds": 4, "a": [1, 2]}'])
def test_seconds_and_the_order_of_fields_do_not_count(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text, "utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": [1, 2]}', "utf-8")
    assert witness.hashes_of(path) == witness.hashes_of(other)
    other.write_text('{"a": [1, 3]}', "utf-8")
    assert witness.hashes_of(path) != witness.hashes_of(other)
