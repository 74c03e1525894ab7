"""Law 8: every error class is raised by some test, and its message says what to do."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from velatura import errors
from velatura.errors import VelaturaError

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "velatura").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
CLASSES = sorted(
    name
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, VelaturaError) and kind is not VelaturaError
)

# What was found stands before a colon or semicolon, what to do (or another error that says it) after it;
# or the message says what must be; or it asks back.
ADVISES = re.compile(r"[;:] (.*\w+ .*(\w+|-)|-)|\bmust\b|\?$", re.DOTALL)


def called(call: ast.expr) -> str:
    """The error class that an expression builds: `BadFile(...)`, `errors.BadFile(...)`, `UnknownName.among(...)`."""
    if isinstance(call, ast.Call):
        return called(call.func)
    if isinstance(call, ast.Attribute):
        return call.attr if call.attr in CLASSES else called(call.value)
    return call.id if isinstance(call, ast.Name) else ""


def builders(path: Path) -> Iterator[str]:
    """The functions of a file that are declared to return one of ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) in CLASSES:
            yield node.name


BUILDERS = {name for path in SOURCES for name in builders(path)}


def raised_by(path: Path) -> Iterator[ast.Call]:
    """Every place where a file raises one of ours with a message."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and called(node.exc) in {*CLASSES, *BUILDERS}:
            yield node.exc


def shape(message: ast.expr) -> str:
    """A message as far as the source shows it: what is filled in is a dash."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "-" for part in message.values)
    if isinstance(message, ast.BinOp):
        return shape(message.left) + shape(message.right)
    return "-"


RAISES = [
    pytest.param(call, id=f"{path.relative_to(ROOT / 'src' / 'velatura')}:{call.lineno}")
    for path in SOURCES
    for call in raised_by(path)
]


@pytest.mark.parametrize("name", CLASSES)
def test_some_test_raises_it(name):
    raises = re.compile(rf"pytest\.raises\(\s*(\w+\.)?{name}\b")
    assert any(raises.search(path.read_text()) for path in TESTS)


@pytest.mark.parametrize("name", CLASSES)
def test_something_raises_it(name):
    assert any(re.search(rf"\b{name}(\.among)?\(", path.read_text()) for path in SOURCES)


@pytest.mark.parametrize("call", RAISES)
def test_a_message_says_what_to_do(call):
    assert call.args, "say what was found, what was expected and what to do"
    message = max(map(shape, call.args), key=len)
    if isinstance(call.func, ast.Name) and message != "-":  # else built elsewhere: by UnknownName.among, by pydantic
        assert ADVISES.search(message), message


def test_errors_live_in_one_tree():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            bases = {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()
            assert path.name == "errors.py" or not bases & {"Exception", "VelaturaError", *CLASSES}, path


def test_public_errors_are_those_of_the_tree():
    velatura = importlib.import_module("velatura")
    assert velatura.VelaturaError is VelaturaError
