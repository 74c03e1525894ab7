"""Law 7: imports run down and in no circle, every door has one keeper, and `import velatura` is light."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
FILES = sorted((SRC / "velatura").rglob("*.py"))

# From the top of the house to its ground. A module may import its own part and what stands on a lower floor.
FLOORS = (
    {"cli"},
    {"velatura", "server"},
    {"studies"},
    {"training"},
    {"compare"},
    {"sampling", "datasets", "downloads", "merging"},
    {"library", "tiny_world"},
    {"tiny"},
    {"formats"},
    {"overlays"},
    {"base", "face_restoration"},
    {"upscaling"},
    {"tensors", "card", "prompts"},
    {"png_colours"},
    {"files", "image_files", "png_files", "arguments", "text_encodings", "imports"},
    {"errors"},
)
FLOOR = {part: height for height, parts in enumerate(reversed(FLOORS)) for part in parts}

LONG_LOOPS = {"denoise", "run", "training_step"}  # loops that are written in paragraphs
SCREENS = {"rich", "typer", "tqdm", "click"}


def dotted(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The room a module is in: `velatura.base.text_encoder` is in `base`, the package's own front in `velatura`."""
    return module.split(".")[1] if "." in module else module


MODULES = {dotted(path): path for path in FILES}
NAMES = sorted(MODULES)
ROOMS = sorted({part_of(name) for name in NAMES} - {"__main__"})


def modules_of(room: str) -> list[str]:
    return [name for name in NAMES if part_of(name) == room]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imported(module: str) -> Iterator[str]:
    """What a module imports from this package, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in MODULES else node.module


def packages(module: str) -> set[str]:
    """The top names of all that a module imports, ours and others'."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@cache
def words(module: str) -> set[str]:
    """Every name and dotted name in a module's code: `print`, `sys.stderr`, `layer.register_forward_hook`."""
    return {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Name | ast.Attribute)}


def run(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_stands_on_a_floor():
    assert {part_of(name) for name in NAMES if name != "velatura.__main__"} <= set(FLOOR)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_down_only(room):
    upward = [
        f"{module} imports {other}"
        for module in modules_of(room)
        for other in imported(module)
        if part_of(other) != room and FLOOR[part_of(other)] >= FLOOR[room]
    ]
    assert not upward, f"{upward}, which stand as high or higher: move what is shared down"


def test_imports_form_no_circle():
    try:
        TopologicalSorter({name: set(imported(name)) for name in NAMES}).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_public_names_are_complete_and_sorted():
    velatura = importlib.import_module("velatura")
    assert list(velatura.__all__) == sorted(velatura.__all__)
    assert set(velatura.__all__) <= set(dir(velatura))
    for name in velatura.__all__:
        assert getattr(velatura, name) is not None
    shown = {name for name in dir(velatura) if not name.startswith("_")} - {part_of(module) for module in NAMES}
    assert shown - set(velatura.__all__) <= {"TYPE_CHECKING", "Any", "annotations"}


def test_type_checkers_lazy_imports_and_all_know_the_same_public_names():
    front = tree("velatura")
    checked = next(node for node in front.body if isinstance(node, ast.If))
    typed = {name.name: node.module for node in checked.body for name in node.names}
    lazy = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in front.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert {name: f"velatura.{module}" for name, module in lazy["_MODULES"].items()} == typed
    eager = {
        name.name
        for node in front.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("velatura.")
        for name in node.names
    }
    assert set(lazy["__all__"]) == {*typed, *eager}


def test_what_the_documents_import_is_public():
    blocks = [
        block
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert len(blocks) > 10
    inner = {
        module for block in blocks for module in re.findall(r"^\s*(?:from|import) (velatura\.[\w.]+)", block, re.M)
    }
    assert not inner, f"import these from velatura itself: {sorted(inner)}"


def test_contributing_tells_the_floors_as_they_are():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^    ((?:\w+(?:/|\.py) +)+)", section, re.M)
    told = [{name.removesuffix("/").removesuffix(".py") for name in row.split()} for row in rows]
    assert [{"velatura" if name == "__init__" else name for name in row} for row in told] == list(FLOORS)
    here = {
        path.stem for path in (SRC / "velatura").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {name for row in told for name in row} == here - {"__main__"}


def test_folders_hold_at_most_sixteen_files_and_say_what_they_are_for():
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) <= 16, folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_importing_velatura_does_not_import_torch():
    assert run("import sys, velatura; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("part", ["prompts", "sampling.recipe", "training.plan"])
def test_prompts_recipes_and_plans_do_not_import_torch(part):
    inside = [name for name in NAMES if name == f"velatura.{part}" or name.startswith(f"velatura.{part}.")]
    assert inside
    assert run(f"import sys, {', '.join(inside)}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("room", ROOMS)
def test_only_seams_registers_hooks(room):
    modules = [name for name in modules_of(room) if name != "velatura.overlays.hooks.seams"]
    assert not [
        f"{name}: {word}" for name in modules for word in words(name) if re.search(r"\.register_\w*hook$", word)
    ]


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "tensors"])
def test_only_tensors_opens_tensor_files(room):
    for module in modules_of(room):
        assert not {"safetensors", "pickle", "zipfile"} & packages(module), module
        assert not {"torch.load", "torch.save", "np.load", "numpy.load"} & words(module), module


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in {"cli", "server"}])
def test_only_the_faces_know_of_screens(room):
    for module in modules_of(room):
        assert not SCREENS & packages(module), module
        assert not {"print", "input", "sys.stdout", "sys.stderr"} & words(module), module


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_functions_are_short(room):
    for module in modules_of(room):
        assert len(MODULES[module].read_text().splitlines()) <= 400, module
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert body_lines(node) <= (100 if node.name in LONG_LOOPS else 60), f"{module}.{node.name}"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long a function is below its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0
