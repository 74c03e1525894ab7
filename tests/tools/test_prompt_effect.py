"""The tool that measures what overlays leave of a prompt: a row for each strength, and nothing is measured twice."""

from tools import prompt_effect
from velatura.training.run.verdict import overpowers


def test_every_strength_gets_a_row_and_is_measured_once(tmp_path, monkeypatch, capsys):
    page = tmp_path / "training.md"
    page.write_text("before\n<!-- table: prompt-effect -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(prompt_effect, "PAGE", page)
    monkeypatch.setattr(prompt_effect, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(prompt_effect, "RATES", {"hypernet": ("1e-2",)})
    monkeypatch.setattr(prompt_effect, "STRENGTHS", (0.5, 1.0))
    monkeypatch.setattr(prompt_effect, "STEPS", 4)
    monkeypatch.setattr("sys.argv", ["prompt_effect", str(tmp_path / "work")])
    prompt_effect.main()
    text = page.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "hypernetwork" in line]
    assert [row[:3] for row in rows] == [["hypernetwork", "0.01", "0.5"], ["hypernetwork", "0.01", "1"]]
    weak, strong = ([float(cell.removesuffix(" %")) for cell in row[3:]] for row in rows)
    assert 0 < weak[0] < strong[0]  # changes more at the higher strength
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")

    monkeypatch.setattr(prompt_effect, "measure", None)  # nothing is measured again
    capsys.readouterr()
    prompt_effect.main()
    assert page.read_text() == text


def test_the_page_shows_what_is_kept():
    text = prompt_effect.PAGE.read_text("utf-8")
    assert prompt_effect.fill_table(text, prompt_effect.read_results()) == text


def test_the_bound_of_strong_overlays_is_right_for_nearly_all_that_were_measured():
    measured = prompt_effect.read_results()
    wrong = [each for each in measured if overpowers(each.prompt_left) is not (each.kept < 0.5)]
    assert len(measured) == 30
    assert len(wrong) <= 5
