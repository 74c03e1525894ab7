"""The verdict of a run is a file of its folder, which may be moved and is not trusted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from velatura.errors import BadFile
from velatura.training.run.stored_verdict import VERDICT_NAME, read_verdict, write_verdict
from velatura.training.run.verdict import Verdict


def verdict_in(folder: Path) -> Verdict:
    return Verdict(
        file=folder / "inca.safetensors",
        kind="hypernet",
        steps=60,
        rate=3e-4,
        result_step=50,
        rescues=1,
        validation_before=0.52,
        validation_after=float("nan"),
        best=folder / "snapshots" / "inca-best.safetensors",
        best_step=50,
        best_loss=0.25,
        strength=0.7,
        strength_note="best strength 0.7 (0.6 to 0.9)",
        pictures=(folder / "strengths.png", folder / "previews.png"),
        plot=folder / "loss.png",
        sheet_command=f"velatura grid 'a <hypernet:inca:1>' --library {folder}",
        a1111_command=f"velatura convert {folder}/inca.safetensors {folder}/inca.pt",
    )


def test_a_verdict_is_read_as_it_was_written_also_where_its_folder_was_moved_to(tmp_path):
    (tmp_path / "old").mkdir()
    write_verdict(verdict_in(tmp_path / "old"), tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == [VERDICT_NAME]
    (tmp_path / "old").rename(tmp_path / "new")
    expected = verdict_in(tmp_path / "new")
    assert read_verdict(tmp_path / "new") == replace(expected, validation_after=None, sheet_command="")
    facts = json.loads((tmp_path / "new" / VERDICT_NAME).read_text())
    assert facts["version"] == 1
    assert facts["best"] == "snapshots/inca-best.safetensors"
    assert str(tmp_path) not in json.dumps(facts)


def test_a_file_that_the_run_wrote_for_a1111_takes_the_place_of_the_command(tmp_path):
    write_verdict(replace(verdict_in(tmp_path), a1111_file=tmp_path / "inca.pt"), tmp_path)
    verdict = read_verdict(tmp_path)
    assert (verdict.a1111_file, verdict.a1111_command) == (tmp_path / "inca.pt", "")


def test_a_run_without_a_verdict_has_none(tmp_path):
    assert read_verdict(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "was written by a newer velatura .version 2"),
        ({"version": "1"}, "is not a verdict"),
        ({"version": None}, "is not a verdict"),
        ({"steps": "many"}, "is damaged .steps: "),
        ({"file": "../inca.safetensors"}, "is not in the run folder"),
        ({"pictures": ["/etc/passwd"]}, "is not in the run folder"),
        ({"best": "snapshots/../../x"}, "is not in the run folder"),
    ],
)
def test_a_verdict_that_cannot_be_believed_is_refused(tmp_path, change, message):
    write_verdict(verdict_in(tmp_path), tmp_path)
    facts = json.loads((tmp_path / VERDICT_NAME).read_text())
    (tmp_path / VERDICT_NAME).write_text(json.dumps(facts | change))
    with pytest.raises(BadFile, match=message):
        read_verdict(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\0", "[" * 100_000])
def test_what_is_not_json_of_a_verdict_is_refused(tmp_path, text):
    (tmp_path / VERDICT_NAME).write_text(text)
    with pytest.raises(BadFile, match=r"verdict\.json .*the run itself is not harmed"):
        read_verdict(tmp_path)


def test_a_field_of_a_later_version_with_the_same_number_is_passed_over(tmp_path):
    write_verdict(verdict_in(tmp_path), tmp_path)
    facts = json.loads((tmp_path / VERDICT_NAME).read_text())
    (tmp_path / VERDICT_NAME).write_text(json.dumps(facts | {"a later field": 1}))
    assert read_verdict(tmp_path).steps == 60
