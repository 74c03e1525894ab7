"""A pickle reader that imports nothing, calls nothing from the file, and sets no attributes, whatever the file says.

It knows the opcodes of protocols 2 to 5 that torch writes. pickle_globals.py lists the names that a pickle may refer
to. Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, Protocol, cast

from velatura.tensors.inert_names import InertName
from velatura.tensors.pickle_globals import (
    PickleGlobal,
    call_global,
    check_key,
    module_of,
    resolve_global,
    set_state,
    storage_of,
)
from velatura.tensors.tensor_descriptions import Storage

# A checkpoint with its optimizer takes less than half of that. One opcode takes about a hundred bytes of memory beside
# bytes and texts, of which the file holds as many, and what calls copy of them
MAX_OPCODES = 2**20
MAX_TEXT_COPIES = 4  # of all bytes so far that are texts to encode; Python 3 writes bytes of protocol 2 as such texts
MAX_NAME_LENGTH = 256
MARK = object()


class ByteSource(Protocol):
    """Bytes or a mapped file."""

    def __getitem__(self, span: slice, /) -> bytes: ...

    def find(self, sought: bytes, start: int, end: int, /) -> int:
        """Return the position of some bytes between start and end, or -1."""
        ...


class SafeUnpickler:
    """Reads consecutive pickles from bytes.

    Args:
        data: Bytes that contain the pickles.
        position: Offset of the first pickle.

    Attributes:
        position: Offset after the last pickle that was read.
        storages: Storages by key that the pickles so far refer to.
        global_names: Names that the pickles so far refer to.
    """

    def __init__(self, data: ByteSource, position: int = 0) -> None:
        self.storages: dict[str, Storage] = {}
        self.global_names: set[str] = set()
        self.position = position
        self._data = data
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._copied_count = 0
        self._copied_letters = 0

    def load(self) -> object:
        """Read the pickle at the position, and move the position to its end.

        Returns:
            Plain values, with TensorDescription in place of tensors.

        Raises:
            ValueError: for anything that torch would not write.
        """
        self._stack, self._memo = [], {}
        for _ in range(MAX_OPCODES):
            opcode = self._read_bytes(1)
            if opcode == b".":
                return self._result()
            if opcode not in self._OPCODES:
                raise ValueError(f"has the opcode {opcode!r} in its pickle, which torch never writes")
            self._OPCODES[opcode](self)
        raise ValueError(f"has more than {MAX_OPCODES:,} opcodes in its pickle")

    def _result(self) -> object:
        value = self._pop()
        if self._stack:
            raise ValueError("leaves values on the stack at the end of its pickle")
        return value

    def _read_bytes(self, count: int) -> bytes:
        data = self._data[self.position : self.position + max(count, 0)]
        if len(data) != count:
            raise ValueError("ends in the middle of its pickle")
        self.position += count
        return data

    def _read_number(self, layout: str) -> int:
        return struct.unpack(layout, self._read_bytes(struct.calcsize(layout)))[0]

    def _read_text(self, layout: str, errors: str = "strict") -> str:
        return self._read_bytes(self._read_number(layout)).decode(errors=errors)

    def _read_line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + MAX_NAME_LENGTH)
        if end < 0:
            raise ValueError(f"has a name of more than {MAX_NAME_LENGTH} bytes in its pickle")
        return self._read_bytes(end + 1 - self.position)[:-1].decode()

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        if not self._stack or self._stack[-1] is MARK:
            raise ValueError("takes a value from the empty stack of its pickle")
        return self._stack.pop()

    def _pop_mark(self) -> list[object]:
        index = len(self._stack) - 1
        while index >= 0 and self._stack[index] is not MARK:
            index -= 1
        if index < 0:
            raise ValueError("does not have a mark where its pickle needs one")
        values = self._stack[index + 1 :]
        del self._stack[index:]
        return values

    def _pop_many(self, count: int) -> tuple[object, ...]:
        return tuple([self._pop() for _ in range(count)][::-1])

    def _memoize(self, index: int) -> None:
        value = self._pop()
        self._memo[index] = value
        self._push(value)

    def _get_memo(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError("refers to a value that its pickle does not contain")
        self._push(self._memo[index])

    def _check_protocol(self) -> None:
        protocol = self._read_number("B")
        if protocol not in range(2, 6):
            raise ValueError(f"has a pickle of protocol {protocol}, where torch writes 2 to 5")

    def _skip_frame(self) -> None:
        self._read_bytes(8)  # its length, which is not needed

    def _append_items(self, values: list[object]) -> None:
        target = self._pop()
        if isinstance(target, list):
            cast("list[object]", target).extend(values)
        elif not isinstance(target, InertName):
            raise ValueError(f"appends to a {type(target).__name__}")
        self._push(cast("object", target))

    def _set_items(self, values: list[object]) -> None:
        target = self._pop()
        if isinstance(target, dict) and len(values) % 2 == 0:
            items = cast("dict[object, object]", target)
            items.update(zip(map(check_key, values[::2]), values[1::2], strict=True))
        elif not isinstance(target, InertName):
            raise ValueError(f"sets items of a {type(cast('object', target)).__name__}")
        self._push(cast("object", target))

    def _add_items(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, set):
            raise ValueError(f"adds to a {type(target).__name__}")
        items = cast("set[object]", target)
        items.update(map(check_key, values))
        self._push(items)

    def _push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("has a name in its pickle that is not a text")
        self._push(resolve_global(module, name))
        self.global_names.add(f"{module}.{name}")

    def _push_persistent(self) -> None:
        persistent_id = self._pop()
        if module := module_of(persistent_id):
            self._push(module)
            return
        storage = storage_of(persistent_id)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"describes its storage {storage.key[:20]!r} in two ways")
        self._push(storage)

    def _reduce(self) -> None:
        name, arguments = self._pop_many(2)
        if isinstance(name, InertName):
            self._push(name)
            return
        if not isinstance(name, PickleGlobal) or not isinstance(arguments, tuple):
            raise ValueError(f"calls a {type(name).__name__}, which weights do not need")
        values = cast("tuple[object, ...]", arguments)
        self._copied_count += sum(
            len(cast("list[object]", value)) for value in values if isinstance(value, list | tuple | dict)
        )
        if self._copied_count > MAX_OPCODES:  # every call may copy the same list
            raise ValueError(f"copies more than {MAX_OPCODES:,} items in its pickle")
        self._copied_letters += sum(len(value) for value in values if isinstance(value, str))
        if self._copied_letters > MAX_OPCODES + MAX_TEXT_COPIES * self.position:
            raise ValueError(f"copies the texts in its pickle more than {MAX_TEXT_COPIES} times")
        self._push(call_global(name, values))

    _OPCODES: ClassVar[dict[bytes, Callable[[SafeUnpickler], None]]] = {
        b"\x80": _check_protocol,
        b"\x95": _skip_frame,
        b"(": lambda self: self._push(MARK),
        b"N": lambda self: self._push(None),
        b"\x88": lambda self: self._push(True),
        b"\x89": lambda self: self._push(False),
        b"K": lambda self: self._push(self._read_number("<B")),
        b"M": lambda self: self._push(self._read_number("<H")),
        b"J": lambda self: self._push(self._read_number("<i")),
        b"\x8a": lambda self: self._push(
            int.from_bytes(self._read_bytes(self._read_number("B")), "little", signed=True)
        ),
        b"G": lambda self: self._push(struct.unpack(">d", self._read_bytes(8))[0]),
        b"X": lambda self: self._push(self._read_text("<I")),
        b"\x8c": lambda self: self._push(self._read_text("B")),
        b"T": lambda self: self._push(self._read_text("<i", "replace")),  # Python 2's str, whose encoding is unknown
        b"U": lambda self: self._push(self._read_text("B", "replace")),
        b"C": lambda self: self._push(self._read_bytes(self._read_number("B"))),
        b"B": lambda self: self._push(self._read_bytes(self._read_number("<I"))),
        b"\x8e": lambda self: self._push(self._read_bytes(self._read_number("<Q"))),
        b"\x96": lambda self: self._push(self._read_bytes(self._read_number("<Q"))),  # a bytearray
        b"}": lambda self: self._push(dict[object, object]()),
        b"]": lambda self: self._push(list[object]()),
        b"\x8f": lambda self: self._push(set[object]()),
        b")": lambda self: self._push(()),
        b"\x85": lambda self: self._push(self._pop_many(1)),
        b"\x86": lambda self: self._push(self._pop_many(2)),
        b"\x87": lambda self: self._push(self._pop_many(3)),
        b"t": lambda self: self._push(tuple(self._pop_mark())),
        b"q": lambda self: self._memoize(self._read_number("B")),
        b"r": lambda self: self._memoize(self._read_number("<I")),
        b"\x94": lambda self: self._memoize(len(self._memo)),
        b"h": lambda self: self._get_memo(self._read_number("B")),
        b"j": lambda self: self._get_memo(self._read_number("<I")),
        b"a": lambda self: self._append_items([self._pop()]),
        b"e": lambda self: self._append_items(self._pop_mark()),
        b"s": lambda self: self._set_items(list(self._pop_many(2))),
        b"u": lambda self: self._set_items(self._pop_mark()),
        b"\x90": lambda self: self._add_items(self._pop_mark()),
        b"\x91": lambda self: self._push(set(map(check_key, self._pop_mark()))),  # a frozenset
        b"c": lambda self: self._push_global(self._read_line(), self._read_line()),
        b"\x93": lambda self: self._push_global(*self._pop_many(2)),
        b"Q": _push_persistent,
        b"R": _reduce,
        b"\x81": _reduce,  # NEWOBJ: for the allowed names the same as a call
        b"b": lambda self: self._push(set_state(*self._pop_many(2))),
    }
