"""Law: the changelog is a list of entries, each of which stands there once."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

LINES = (Path(__file__).parents[2] / "CHANGELOG.md").read_text("utf-8").splitlines()


def test_no_line_stands_twice():
    counts = Counter(line for line in LINES if line.startswith(("- ", "  ")))
    assert [line for line, count in counts.items() if count > 1] == []


def test_a_line_that_goes_on_follows_its_entry():
    orphans = [line for before, line in pairwise(LINES) if line.startswith("  ") and not before]
    assert orphans == []
