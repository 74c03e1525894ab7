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


def shape(message: ast.expr, texts: dict[str, str]) -> str:
    """A message as far as the source shows it: what is filled in is a dash, but for the texts that it gives a name."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(shape(part, texts) for part in message.values)
    if isinstance(message, ast.BinOp):
        return shape(message.left, texts) + shape(message.right, texts)
    if isinstance(message, ast.FormattedValue):
        return shape(message.value, texts) if isinstance(message.value, ast.Name) else "-"
    return texts.get(message.id, "-") if isinstance(message, ast.Name) else "-"


def builders(path: Path) -> Iterator[ast.FunctionDef]:
    """The functions of a file that are declared to return one of ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) in CLASSES:
            yield node


def advises_itself(builder: ast.FunctionDef) -> bool:
    """Whether a builder adds what to do to the reason that it is given."""
    final = builder.body[-1]
    call = final.value if isinstance(final, ast.Return) else None
    return isinstance(call, ast.Call) and bool(call.args) and bool(re.search(r"; \w+ \w+", shape(call.args[0], {})))


def constants(path: Path) -> dict[str, str]:
    """The texts that a file gives a name."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


BUILDERS = {builder.name for path in SOURCES for builder in builders(path)}
ADVISING_BUILDERS = {builder.name for path in SOURCES for builder in builders(path) if advises_itself(builder)}


def raised_by(path: Path) -> Iterator[ast.Call]:
    """Every place where a file raises one of ours with a message."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and called(node.exc) in {*CLASSES, *BUILDERS}:
            yield node.exc


RAISES = [
    pytest.param(call, constants(path), id=f"{path.relative_to(ROOT / 'src' / 'velatura')}:{call.lineno}")
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


@pytest.mark.parametrize(("call", "texts"), RAISES)
def test_a_message_says_what_to_do(call, texts):
    assert call.args, "say what was found, what was expected and what to do"
    if (
        not isinstance(call.func, ast.Name) or call.func.id in ADVISING_BUILDERS
    ):  # built by UnknownName.among, by pydantic
        return
    message = max((shape(argument, texts) for argument in call.args), key=len)
    assert not message.strip("-") or ADVISES.search(message), message  # only dashes: the parts are built elsewhere


def test_errors_live_in_one_tree():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            bases = {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()
            assert path.name == "errors.py" or not bases & {"Exception", "VelaturaError", *CLASSES}, path


def test_public_errors_are_those_of_the_tree():
    velatura = importlib.import_module("velatura")
    assert velatura.VelaturaError is VelaturaError
