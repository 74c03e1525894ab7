"""Pickles read as data: a machine that imports nothing, calls nothing and sets no attribute, whatever a file says.

It knows the opcodes of protocols 2 to 5 that torch writes; what a name in a pickle may mean is in named.py. All that is
wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, Protocol, cast

from velatura.tensors.named import Name, Storage, built, called, module_of, named, plain_key, storage_of

MOST_STEPS = 2**20  # a checkpoint with its optimizer takes less than half of that; a step costs a hundred bytes at most
LONGEST_NAME = 256
MARK = object()


class Bytes(Protocol):
    """What bytes and a mapped file have in common."""

    def __getitem__(self, span: slice, /) -> bytes: ...

    def find(self, sought: bytes, start: int, end: int, /) -> int:
        """Where the sought bytes begin between start and end, or -1."""
        ...


class Machine:
    """A machine that reads pickles from some bytes, one after the other, each from position to what follows it.

    storages are those that the pickles read so far speak of, by their keys; names all names in them.
    """

    def __init__(self, data: Bytes, position: int = 0) -> None:
        self.storages: dict[str, Storage] = {}
        self.names: set[str] = set()
        self.position = position
        self._data = data
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._copied = 0

    def load(self) -> object:
        """Read the pickle at the position, and leave the position behind it."""
        self._stack, self._memo = [], {}
        for _ in range(MOST_STEPS):
            code = self._take(1)
            if code == b".":
                return self._result()
            if code not in self._OPCODES:
                raise ValueError(f"has the opcode {code!r} in its pickle, which torch never writes")
            self._OPCODES[code](self)
        raise ValueError(f"takes more than {MOST_STEPS:,} steps to say what it holds")

    def _result(self) -> object:
        value = self._pop()
        if self._stack:
            raise ValueError("leaves something over at the end of its pickle")
        return value

    def _take(self, count: int) -> bytes:
        found = self._data[self.position : self.position + max(count, 0)]
        if len(found) != count:
            raise ValueError("ends in the middle of its pickle")
        self.position += count
        return found

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _text(self, layout: str, errors: str = "strict") -> str:
        return self._take(self._number(layout)).decode(errors=errors)

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + LONGEST_NAME)
        if end < 0:
            raise ValueError("has a name without end in its pickle")
        return self._take(end + 1 - self.position)[:-1].decode()

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        if not self._stack or self._stack[-1] is MARK:
            raise ValueError("takes more from the stack of its pickle than there is")
        return self._stack.pop()

    def _since_mark(self) -> list[object]:
        place = len(self._stack) - 1
        while place >= 0 and self._stack[place] is not MARK:
            place -= 1
        if place < 0:
            raise ValueError("lacks a mark in its pickle")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _last(self, count: int) -> tuple[object, ...]:
        return tuple([self._pop() for _ in range(count)][::-1])

    def _remember(self, place: int) -> None:
        value = self._pop()
        self._memo[place] = value
        self._push(value)

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError("refers to what its pickle does not hold")
        self._push(self._memo[place])

    def _start(self) -> None:
        if (protocol := self._number("B")) not in range(2, 6):
            raise ValueError(f"is a pickle of protocol {protocol}, torch's are 2 to 5")

    def _skip_frame(self) -> None:
        self._take(8)  # its length, which nothing here depends on

    def _append(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            raise ValueError(f"appends to a {type(target).__name__}")
        items = cast("list[object]", target)
        items.extend(values)
        self._push(items)

    def _set(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError(f"sets items of a {type(cast('object', target)).__name__}")
        items = cast("dict[object, object]", target)
        items.update(zip(map(plain_key, values[::2]), values[1::2], strict=True))
        self._push(items)

    def _add(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, set):
            raise ValueError(f"adds to a {type(target).__name__}")
        items = cast("set[object]", target)
        items.update(map(plain_key, values))
        self._push(items)

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("has a name in its pickle that is no text")
        self._push(named(module, name))
        self.names.add(f"{module}.{name}")

    def _persistent(self) -> None:
        identifier = self._pop()
        if module := module_of(identifier):
            self._push(module)
            return
        storage = storage_of(identifier)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"describes its storage {storage.key[:20]!r} in two ways")
        self._push(storage)

    def _call(self) -> None:
        name, arguments = self._last(2)
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise ValueError(f"calls a {type(name).__name__}, which no weights need")
        given = cast("tuple[object, ...]", arguments)
        self._copied += sum(len(cast("list[object]", each)) for each in given if isinstance(each, list | tuple | dict))
        if self._copied > MOST_STEPS:  # one list may be copied at every step
            raise ValueError(f"copies more than {MOST_STEPS:,} things to say what it holds")
        self._push(called(name, given))

    _OPCODES: ClassVar[dict[bytes, Callable[[Machine], None]]] = {
        b"\x80": _start,
        b"\x95": _skip_frame,
        b"(": lambda self: self._push(MARK),
        b"N": lambda self: self._push(None),
        b"\x88": lambda self: self._push(True),
        b"\x89": lambda self: self._push(False),
        b"K": lambda self: self._push(self._number("<B")),
        b"M": lambda self: self._push(self._number("<H")),
        b"J": lambda self: self._push(self._number("<i")),
        b"\x8a": lambda self: self._push(int.from_bytes(self._take(self._number("B")), "little", signed=True)),
        b"G": lambda self: self._push(struct.unpack(">d", self._take(8))[0]),
        b"X": lambda self: self._push(self._text("<I")),
        b"\x8c": lambda self: self._push(self._text("B")),
        b"T": lambda self: self._push(self._text("<i", "replace")),  # Python 2's texts, of no known encoding
        b"U": lambda self: self._push(self._text("B", "replace")),
        b"C": lambda self: self._push(self._take(self._number("B"))),
        b"B": lambda self: self._push(self._take(self._number("<I"))),
        b"}": lambda self: self._push(dict[object, object]()),
        b"]": lambda self: self._push(list[object]()),
        b"\x8f": lambda self: self._push(set[object]()),
        b")": lambda self: self._push(()),
        b"\x85": lambda self: self._push(self._last(1)),
        b"\x86": lambda self: self._push(self._last(2)),
        b"\x87": lambda self: self._push(self._last(3)),
        b"t": lambda self: self._push(tuple(self._since_mark())),
        b"q": lambda self: self._remember(self._number("B")),
        b"r": lambda self: self._remember(self._number("<I")),
        b"\x94": lambda self: self._remember(len(self._memo)),
        b"h": lambda self: self._recall(self._number("B")),
        b"j": lambda self: self._recall(self._number("<I")),
        b"a": lambda self: self._append([self._pop()]),
        b"e": lambda self: self._append(self._since_mark()),
        b"s": lambda self: self._set(list(self._last(2))),
        b"u": lambda self: self._set(self._since_mark()),
        b"\x90": lambda self: self._add(self._since_mark()),
        b"c": lambda self: self._name(self._line(), self._line()),
        b"\x93": lambda self: self._name(*self._last(2)),
        b"Q": _persistent,
        b"R": _call,
        b"\x81": _call,  # a new object of a class: of those that are known, the same as a call
        b"b": lambda self: self._push(built(*self._last(2))),
    }
