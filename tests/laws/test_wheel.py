"""A wheel built from the tree installs into an empty environment and makes a picture there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, velatura
assert sys.argv[1] in velatura.__file__, velatura.__file__
velatura.generate(velatura.tiny(), "a red house", steps=2, seed=7).save("house.png")
"""


def run(*words: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built without a network by the build tool of this environment."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it belongs to the extra `dev`")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (file,) = out.glob("velatura-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"velatura"}
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "src" / "velatura" / "server" / "page").rglob("*.*")]
    sources = {path.relative_to(ROOT / "src").as_posix() for path in files}
    assert sources <= set(names)


@pytest.mark.slow
def test_it_installs_into_an_empty_environment_and_paints(wheel, tmp_path):
    """What it depends on is lent by this environment, but not velatura itself: there is no network here."""
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    lent = tmp_path / "lent"
    lent.mkdir()
    for path in Path(pytest.__file__).parents[1].iterdir():
        if not path.name.startswith(("velatura", "_velatura", "_editable")) and path.suffix != ".pth":
            (lent / path.name).symlink_to(path)
    (site / "lent.pth").write_text(f"{lent}\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(python, "-c", PROGRAM, tmp_path / "env", cwd=tmp_path, env=clean)
    assert (tmp_path / "house.png").stat().st_size > 1000
    assert "generate" in run(tmp_path / "env" / "bin" / "velatura", "--help", cwd=tmp_path, env=clean)
