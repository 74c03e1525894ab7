"""Check the arguments of public functions by their annotations, so that a wrong type is refused in one clear line."""

from __future__ import annotations

import inspect
import numbers
import types
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import cache, wraps
from os import PathLike
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

from velatura.errors import BadArgument

CheckedParameters = ParamSpec("CheckedParameters")
CheckedResult = TypeVar("CheckedResult")

NUMBER_TYPES: dict[object, type] = {int: numbers.Integral, float: numbers.Real}  # NumPy's count too
ARRAY_KINDS: dict[object, str] = {int: "iu", float: "iuf"}  # letters of NumPy's types
MAX_VALUE_LENGTH = 40  # characters of a wrong value that a message shows
NO_WORD = type(None)
# What a message calls the types that an annotation allows; other types are called by their names
TYPE_WORDS: dict[object, str] = {
    NO_WORD: "None",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    PathLike: "a path",
    Callable: "a function",
    Mapping: "a mapping",
    dict: "a dictionary",
}
# How to come by a value of one of our own types
ADVICE = {
    "Base": "open one with velatura.open_base(PATH) or velatura.tiny()",
    "Overlay": "open its file with velatura.open_overlay(PATH)",
    "Library": "make one with velatura.Library(FOLDER)",
    "Plan": "make one with velatura.Plan.preset(KIND, FAMILY)",
    "Recipe": "make one with velatura.Recipe(prompt=...)",
    "InitImage": "make one with velatura.InitImage(PICTURE)",
    "Saving": "make one with velatura.Saving(...)",
}


def check_arguments(
    *, skip: Collection[str] = ()
) -> Callable[[Callable[CheckedParameters, CheckedResult]], Callable[CheckedParameters, CheckedResult]]:
    """Return a decorator that refuses arguments whose type is not the one in the function's annotations.

    Only what can be seen from outside is checked: the type of a value, and the types of the items in a list, tuple or
    mapping. Annotations that mean nothing while the program runs (protocols, names for type checkers only) allow all.

    Args:
        skip: Parameters that the function checks itself.
    """

    def decorate(function: Callable[CheckedParameters, CheckedResult]) -> Callable[CheckedParameters, CheckedResult]:
        signature = inspect.signature(function)

        @wraps(function)
        def checked(*args: CheckedParameters.args, **kwargs: CheckedParameters.kwargs) -> CheckedResult:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                parameter = signature.parameters[name]
                if name not in skip and parameter.kind is not parameter.VAR_KEYWORD:
                    annotation = _evaluate(function, name)
                    values = value if parameter.kind is parameter.VAR_POSITIONAL else (value,)
                    for single_value in values:
                        _check(function.__qualname__, name, single_value, annotation)
            return function(*args, **kwargs)

        return checked

    return decorate


def describe_value(value: object) -> str:
    """Describe a wrong value for a message: a text or number as it is, anything else by its type."""
    if value is None or isinstance(value, str | int | float | PathLike):
        return repr(cast("object", value))[:MAX_VALUE_LENGTH]
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "AEIOU" else f"a {kind}"


def matches(value: object, annotation: object) -> bool:
    """Return True if a value may be what an annotation says; annotations that cannot be checked allow every value."""
    origin, options = get_origin(annotation), get_args(annotation)
    if origin in {Union, types.UnionType}:
        return any(matches(value, option) for option in options)
    if origin is Literal:
        return any(_is_kind_of(value, type(cast("object", option))) for option in options)
    if origin is Callable:
        return callable(value) and not hasattr(value, "parameters")  # a model is callable, and never meant as one
    kind = NUMBER_TYPES.get(annotation, origin or annotation)
    if kind is None or not _is_plain_class(kind):
        return kind is not None or value is None
    if kind is bool:
        return _is_truth_value(value)
    is_instance = isinstance(value, cast("type", kind)) and (origin is None or _items_match(value, origin, options))
    return is_instance or _is_row_of_numbers(value, origin, options)


def _is_kind_of(value: object, kind: type) -> bool:
    """Return True if a value may stand for a literal of a type; True and False are not numbers here."""
    if kind is bool or _is_truth_value(value):
        return kind is bool and _is_truth_value(value)
    return isinstance(value, NUMBER_TYPES.get(kind, kind))


def _is_truth_value(value: object) -> bool:
    """Return True for True and False, NumPy's too."""
    return isinstance(value, bool) or (isinstance(value, Hashable) and getattr(value, "dtype", None) == "bool")


def _is_row_of_numbers(value: object, origin: Any, options: tuple[Any, ...]) -> bool:
    """Return True for a NumPy array of one dimension where a sequence of its numbers may be."""
    kinds = ARRAY_KINDS.get(options[0], "") if options and origin in {Sequence, Collection, Iterable} else ""
    dtype_kind = getattr(getattr(value, "dtype", None), "kind", None)  # which a tensor has not
    return getattr(value, "ndim", None) == 1 and dtype_kind is not None and dtype_kind in kinds


def _items_match(value: object, origin: type, options: tuple[Any, ...]) -> bool:
    """Return True if the items of a collection may be what its annotation says; iterators are not consumed."""
    if isinstance(value, str | bytes) or hasattr(value, "__array__"):  # letters or rows are not items
        return False
    if isinstance(value, tuple) and origin is tuple and Ellipsis not in options:
        items = cast("tuple[object, ...]", value)
        return len(items) == len(options) and all(map(matches, items, options))
    if isinstance(value, Mapping) and len(options) == 2:
        table = cast("Mapping[object, object]", value)
        return all(matches(key, options[0]) and matches(item, options[1]) for key, item in table.items())
    if isinstance(value, list | tuple) and options:
        return all(matches(item, options[0]) for item in cast("list[object]", value))
    return True


def _is_plain_class(annotation: object) -> bool:
    """Return True for a class that isinstance can check, and that is not a protocol."""
    is_class = isinstance(annotation, type) and annotation not in {object, Any}
    return is_class and not getattr(annotation, "_is_protocol", False)


@cache
def _evaluate(function: Callable[..., object], name: str) -> object:
    """Return the annotation of a parameter, `object` if it can be evaluated by type checkers only."""
    annotation = function.__annotations__.get(name, object)
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, inspect.unwrap(function).__globals__)  # an annotation of our own code
    except (NameError, TypeError):
        return object


def _check(function_name: str, parameter: str, value: object, annotation: object) -> None:
    if matches(value, annotation):
        return
    expected = _describe(annotation)
    advice = next((text for name, text in ADVICE.items() if name in expected.split()), f"give {expected}")
    raise BadArgument(f"{function_name}: {parameter} is {describe_value(value)}, not {expected}: {advice}")


def _describe(annotation: object) -> str:
    """Describe what an annotation allows, as "a text, a path or None"."""
    words = list(dict.fromkeys(_words(annotation)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(annotation: object) -> Iterable[str]:
    origin, options = get_origin(annotation), get_args(annotation)
    if origin in {Union, types.UnionType}:
        return (word for option in options for word in _words(option))
    if origin is Literal:
        return map(repr, options)
    kind = NO_WORD if annotation is None else origin or annotation
    if kind in TYPE_WORDS:
        return (TYPE_WORDS[kind],)
    if kind is tuple and Ellipsis not in options:
        return (f"a pair ({'; '.join(map(_describe, options))})",)
    if isinstance(kind, type) and issubclass(kind, Iterable) and origin:
        return (_describe_list(options),)
    name: str = getattr(cast("object", kind), "__name__", "")
    return (f"an {name}" if name[:1] in set("AEIOU") else f"a {name}",)


def _describe_list(item_types: tuple[Any, ...]) -> str:
    item = _describe(item_types[0]).removeprefix("a ") if item_types else "value"
    if item.startswith("pair "):
        return f"a list of pairs {item.removeprefix('pair ')}"
    return "a list" if " " in item else f"a list of {item}s"
