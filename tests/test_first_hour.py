"""docs/first-hour.md is the transcript of one whole journey: every line that it shows is printed."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import velatura
from velatura.cli.app import main
from velatura.compare.strength_trade import TradePoint
from velatura.compare.tune import Tuning
from velatura.training.run import end_sheet, end_tune
from velatura.training.run.report import Run

DOCUMENT = Path(__file__).parents[1] / "docs" / "first-hour.md"
BLOCK = re.compile(r"^```(console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d(?:[\d.,:/x-]*\d)?(?:e-?\d+)?%?")
HASH = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b")
AMOUNT = re.compile(r"(about )?(#|half a|a) (s|seconds|minutes?|hours|[kMG]i?B)\b")


def journey() -> Iterator[tuple[str, list[str]]]:
    """Yield each command with the lines that it prints."""
    for _, text in BLOCK.findall(DOCUMENT.read_text("utf-8")):
        commands = re.split(r"^\$ velatura ", text, flags=re.MULTILINE)[1:]
        yield from ((command.splitlines()[0], command.splitlines()[1:]) for command in commands)


def mask(line: str) -> str:
    """Return a line without its hashes, numbers, units and lists of numbers, which differ from machine to machine."""
    masked = AMOUNT.sub("#", NUMBER.sub("#", HASH.sub("#", line))).replace("# at step #", "#")
    return re.sub(r"#(, #)+", "#", masked).strip()


def tune_at_once(run: Run, *_: object) -> Tuning:
    """Write the strength that serves best as a training does, without painting for it: that takes long."""
    point = TradePoint(0.8, likeness=0.5, kept=0.9, score=0.45)
    tuning = Tuning(0.8, 0.7, 0.9, (point,), prompts=("a house",) * 12, seeds=1, reference="pictures")
    tuning.write(run.file)
    return tuning


def test_every_line_of_the_journey_is_printed(tmp_path, monkeypatch, capsys):
    shutil.copytree(velatura.tiny_pictures("neon"), tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(end_sheet, "is_sheet_due", lambda _base, is_asked: is_asked is not False)  # as for a user
    monkeypatch.setattr(end_tune, "is_tune_due", lambda _base, is_asked, _steps: is_asked is not False)
    monkeypatch.setattr(end_tune, "_tune", tune_at_once)
    for command, lines in journey():
        status = main(shlex.split(re.sub(r"(steps )\d{3,}", r"\g<1>2", command)))
        printed = capsys.readouterr()
        is_mistake = any(line.startswith("error:") for line in lines)
        assert status == (2 if is_mistake else 0), printed.err
        text = (printed.err if is_mistake else printed.out).replace(str(tmp_path), "/home/ana")
        shown = [mask(line) for line in text.splitlines()]
        missing = [line for line in map(mask, lines) if line not in shown]
        assert not missing, f"{command}\n{missing}\n{shown}"
