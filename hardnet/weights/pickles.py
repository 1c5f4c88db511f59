"""What a pickle would do, followed instruction by instruction without doing it.

torch's restricted reader (``weights_only=True``) keeps code out. What it lets pass and is refused here would take the
process's memory, its time or its life: calls that make arrays of any size, and tuples that take for ever to hash or
that no stack has room for.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from typing import BinaryIO

MAX_NESTING = 100
"""Tuples within tuples; checkpoints have three or four."""
MAX_VALUES = 1_000_000
"""In a tuple, those of the tuples in it included, each as often as it is there."""
MAX_HASHED = 1_000
"""As ``MAX_VALUES``, in a key of a dict, an entry of a set and what a function is called with."""

_STORAGE_BYTES = {
    "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2,
    "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "QInt32Storage": 4,
}  # fmt: skip
"""Of an element; the others have 1."""

# Of torch's own functions and classes that its reader calls, those that make no more than the file holds.
_TORCH_CALLS = frozenset({
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_qtensor",
    "_rebuild_parameter_with_state", "_rebuild_from_type_v2", "_rebuild_sparse_tensor", "_get_layout",
    "_rebuild_meta_tensor_no_storage", "Parameter", "Size", "device",
})  # fmt: skip
_HASHING = frozenset({"OrderedDict", "Counter", "set"})

_VALUES = frozenset({
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING",
})  # fmt: skip


class _Name(str):
    """Of a function or class: module and name, with a blank between."""

    __slots__ = ()


class _Object:
    """A list, a dict or whatever else may change; nothing more is known of it."""

    __slots__ = ()


class _Tuple:
    __slots__ = ("depth", "items", "size")

    def __init__(self, items: Iterable[object]) -> None:
        self.items = tuple(items)
        within = [item for item in self.items if isinstance(item, _Tuple)]
        self.depth: int = 1 + max((item.depth for item in within), default=0)
        self.size: int = 1 + len(self.items) + sum(item.size for item in within)
        if self.depth > MAX_NESTING:
            raise ValueError(f"tuples nested more than {MAX_NESTING} deep")
        if self.size > MAX_VALUES:
            raise ValueError(f"a tuple of more than {MAX_VALUES} values")


_OBJECT = _Object()


def find_storages(stream: BinaryIO) -> dict[str, int]:
    """Follow the next pickle of a stream; return its storages by their keys, in bytes.

    Raises:
        ValueError: it is damaged, or does what checkpoints do not.
        IndexError, KeyError: it takes what is not there.
    """
    return _Follower().follow(stream)


class _Follower:
    """The stack of torch's reader, with what is known of each value in place of the value."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: dict[object, object] = {}
        self.storages: dict[str, int] = {}
        self.largest = 0  # of the tuples in lists
        self.hashes = False

    def follow(self, stream: BinaryIO) -> dict[str, int]:
        for code, argument, _ in pickletools.genops(stream):
            if code.name in _VALUES:
                self.stack.append(argument)
            else:
                self._step(code.name, argument)
        if self.hashes and self.largest > MAX_HASHED:
            raise ValueError(f"a call that may hash a tuple of {self.largest} values in a list")
        return self.storages

    def _step(self, code: str, argument: object) -> None:
        stack = self.stack
        match code:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "GLOBAL":
                stack.append(_Name(argument))
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_OBJECT)
            case "EMPTY_TUPLE":
                stack.append(_Tuple([]))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(_Tuple([stack.pop() for _ in range(int(code[-1]))][::-1]))
            case "TUPLE":
                items = self._pop_to_mark()
                self.stack.append(_Tuple(items))
            case "BINPERSID":
                self._note_storage(stack.pop())
                stack.append(_OBJECT)
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                self._check_call(called, arguments)
                stack.append(_OBJECT)
            case "BUILD":
                del stack[-1]
            case "APPEND":
                self._note_listed([stack.pop()])
            case "SETITEM":
                _check_keys([stack[-2]])
                del stack[-2:]
            case "APPENDS":
                self._note_listed(self._pop_to_mark())
            case "SETITEMS":
                _check_keys(self._pop_to_mark()[::2])
            case "PROTO" | "STOP":
                pass
            case _:
                raise ValueError(f"the instruction {code}, which is not read")

    def _note_listed(self, items: list[object]) -> None:
        self.largest = max([self.largest, *(item.size for item in items if isinstance(item, _Tuple))])

    def _pop_to_mark(self) -> list[object]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _check_call(self, called: object, arguments: object) -> None:
        if not isinstance(called, _Name) or not isinstance(arguments, _Tuple):
            raise ValueError("a call of what has no name, or with what is no tuple")
        module, _, name = called.partition(" ")
        if name == "bytearray" or (module.split(".")[0] == "torch" and name not in _TORCH_CALLS):
            raise ValueError(f"a call of {module}.{name}")
        _check_keys([arguments])
        if name == "_rebuild_from_type_v2":  # calls its first argument with its third
            self._check_call(arguments.items[0], arguments.items[2])
        self.hashes = self.hashes or (name in _HASHING and bool(arguments.items))

    def _note_storage(self, told: object) -> None:
        """Take down ("storage", type, key, device, number of elements), or refuse what is none."""
        items = told.items if isinstance(told, _Tuple) and told.size <= 20 else ()
        if len(items) < 5 or _OBJECT in items:
            raise ValueError("a storage that is described in another way than torch's")
        _, kind, key, _, elements = items[:5]
        if not isinstance(kind, _Name) or not isinstance(key, str) or not isinstance(elements, int):
            raise ValueError("a storage that is described in another way than torch's")
        size = elements * _STORAGE_BYTES.get(kind.partition(" ")[2], 1)
        self.storages[key] = max(size, self.storages.get(key, 0))


def _check_keys(keys: Iterable[object]) -> None:
    for key in keys:
        if isinstance(key, _Tuple) and key.size > MAX_HASHED:
            raise ValueError(f"a tuple of {key.size} values where no more than {MAX_HASHED} can be")
