"""Law 10: what README and docs show runs as it stands, on the tiny base."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import velatura
from velatura.cli.app import main
from velatura.merging.bake import calibration
from velatura.sampling import generate
from velatura.sampling.job import prepare_job

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONG_RUN = re.compile(r"(steps[= ])\d{3,}")
INTERVAL = re.compile(r"((?:snapshot|preview)[_-]every[= ])\d+")  # at most as long as such a run
SWEEP = re.compile(r'(steps=)2(?=,\s*out="sweep")')  # which has two rounds
SNAPSHOT = re.compile(r"\b000(?:050|100|150|200)\b")


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text()) if kind == language]


def documents(language: str) -> list[Path]:
    # test_first_hour runs the commands of that page, and compares what they print
    pages = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "first-hour.md"]
    return [path for path in (ROOT / "README.md", *pages) if blocks(path, language)]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(block: str) -> list[list[str]]:
    """The words of each line typed at a prompt, without comments."""
    return [shlex.split(line[2:], comments=True) for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty working folder with somebody's photos in it."""
    shutil.copytree(velatura.tiny_pictures("neon"), tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["two steps", pytest.param("as written", marks=pytest.mark.slow)])
def shorten(request, monkeypatch):
    """Train and paint with two steps, so that all else is run every time; the slow tests do it as it is written.

    A bake looks at fewer prompts.
    """
    if request.param == "as written":
        return lambda text: text
    monkeypatch.setattr(calibration, "DEFAULT_PROMPT_COUNT", 4)
    monkeypatch.setattr(generate, "prepare_job", lambda base, recipe, *rest: prepare_job(base, cut(recipe), *rest))
    return lambda text: SWEEP.sub(
        r"\g<1>4", SNAPSHOT.sub("000002", INTERVAL.sub(r"\g<1>1", LONG_RUN.sub(r"\g<1>2", text)))
    )


def cut(recipe: velatura.Recipe) -> velatura.Recipe:
    """A recipe of at most two steps."""
    return recipe if recipe.steps <= 2 else recipe.replace(steps=2)


@pytest.mark.parametrize("document", documents("python"), ids=named)
@pytest.mark.usefixtures("desk")
# of a run cut to two steps, and of a LoRA that is saved before it is trained
@pytest.mark.filterwarnings("ignore:.*never reached", "ignore:.*has no effect", "ignore:the first round is only")
def test_python_blocks_run(document, shorten):
    names: dict[str, object] = {}
    for block in blocks(document, "python"):
        exec(compile(shorten(block), named(document), "exec"), names)


@pytest.mark.parametrize("document", documents("console"), ids=named)
@pytest.mark.usefixtures("desk")
@pytest.mark.filterwarnings("ignore:this is a grid")  # the page shows what `generate` makes of one
def test_console_blocks_run(document, shorten, capsys):
    for block in blocks(document, "console"):
        for program, *words in commands(shorten(block)):
            assert program == "velatura"
            assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=named)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target
