"""Reading pickles as data: a small machine for their instructions, that knows containers, numbers, text and arrays.

A pickle is a program. Python's own unpickler runs it with real classes, and classes of NumPy reach any memory when the
program sets their state. Here nothing real is built: what a file says of dtypes and arrays is kept as it is said and
checked afterwards, and arrays are made of bytes that the file holds.
"""

from __future__ import annotations

import codecs
import math
import os
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mask2former.checkpoint.errors import CheckpointError

# Some ten times what the largest published file has; they take a few seconds.
MAX_INSTRUCTIONS = 1_000_000

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_NUMBER = re.compile(r"([<>|=]?)(b1|[iu][1248]|f[248]|c8|c16|\?)")


class _Global(NamedTuple):
    """What a pickle names: something that is called with a tuple of arguments."""

    name: str
    call: Callable[[tuple[Any, ...]], Any]


@dataclass(eq=False)
class _DType:
    name: Any
    state: tuple[Any, ...] = ()

    def dtype(self) -> np.dtype[Any]:
        match = _NUMBER.fullmatch(self.name) if isinstance(self.name, str) else None
        order = self.state[1:2]
        # The state has more to say of other types: fields, sub-arrays, alignment.
        plain = self.state in ((), (3, *order, None, None, None, -1, -1, 0))
        if match is None or not plain or (order and order[0] not in ("<", ">", "|", "=")):
            raise ValueError(f"an array of dtype {_brief(self.name)}, which is no plain number")
        return np.dtype((order[0] if order else match[1]) + match[2])


@dataclass(eq=False)
class _Array:
    """An array, or a number of NumPy, whose shape is ()."""

    dtype: Any = None
    shape: Any = ()
    order: str = "C"
    data: Any = None
    made: np.ndarray[Any, Any] | None = None

    def array(self) -> np.ndarray[Any, Any]:
        """Check what was said, and make the array; all places that hold this stand-in share it."""
        if self.made is not None:
            return self.made
        shape, data = self.shape, self.data
        if not isinstance(self.dtype, _DType) or not isinstance(shape, tuple):
            raise ValueError("an array without dtype or shape")
        if len(shape) > 32 or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
            raise ValueError("an array whose shape is no tuple of sizes")
        if isinstance(data, str):  # Python 2
            data = data.encode("latin1")
        dtype = self.dtype.dtype()
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of {dtype} and shape {shape} whose bytes are too few or too many")
        view = np.frombuffer(data, dtype).reshape(shape, order="F" if self.order == "F" else "C")
        self.data = None
        self.made = view.astype(dtype.newbyteorder("="))  # a copy, which may be written to
        return self.made


def _make_dtype(arguments: tuple[Any, ...]) -> _DType:
    name, *_ = arguments  # the others are whether to align and to copy
    return _DType(name)


def _make_array(arguments: tuple[Any, ...]) -> _Array:
    return _Array()  # its state follows


def _make_scalar(arguments: tuple[Any, ...]) -> _Array:
    dtype, data = arguments
    return _Array(dtype, (), "C", data)


def _make_array_of_buffer(arguments: tuple[Any, ...]) -> _Array:
    data, dtype, shape, order = arguments
    return _Array(dtype, shape, order, data)


def _make_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pairs in arguments:  # one or none
        if type(pairs) is not list:
            raise ValueError("a dict made of something else than a list of pairs")
        for key, value in pairs:
            _set_item(result, key, value)
    return result


def _make_bytes(arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise ValueError("bytes other than empty ones by their name")
    return b""


def _encode(arguments: tuple[Any, ...]) -> bytes:
    """Stand in for `codecs.encode`, by which Python 3 writes bytes in the older protocols."""
    text, encoding = arguments
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {_brief(encoding)}")
    return str.encode(text, "latin1")


def _refuse(arguments: tuple[Any, ...]) -> None:
    raise ValueError("a call of what is no function of pickles")


def _globals() -> dict[str, _Global]:
    calls = {
        "collections.OrderedDict": _make_dict,
        "_codecs.encode": _encode,
        "builtins.bytes": _make_bytes,
        "__builtin__.bytes": _make_bytes,
        "numpy.dtype": _make_dtype,
        "numpy.ndarray": _refuse,  # it is an argument alone
    }
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray._reconstruct"] = _make_array
        calls[f"{core}.multiarray.scalar"] = _make_scalar
        calls[f"{core}.numeric._frombuffer"] = _make_array_of_buffer
    return {name: _Global(name, call) for name, call in calls.items()}


_GLOBALS = _globals()


def read_pickle(file: Path) -> Any:
    """Read a pickle of dicts, lists, tuples, numbers, text, bytes and arrays of numbers.

    Time and memory are bounded by the size of the file.

    Raises:
        CheckpointError: if the file asks for anything else by name.
        Exception: of many types, if it is no such pickle.
    """
    with file.open("rb") as stream:
        return parse_pickle(stream, file.stat().st_size, name=os.fspath(file))


def parse_pickle(stream: BinaryIO, size: int, *, name: str) -> Any:
    """Read a pickle of `size` bytes from a stream, as `read_pickle`; `name` stands in errors."""
    return walk(_Machine(stream, size, name).run(), _finish, size)


def walk(value: Any, leaf: Callable[[Any], Any], size: int) -> Any:
    """Put `leaf(x)` in the place of each x in nested dicts, lists and tuples, and return the outermost.

    Raises:
        ValueError: for more places than the file has bytes, which is its `size`, or more than a hundred levels. So it
            is with containers that hold themselves, or one another over and over.
    """
    left = min(size, MAX_INSTRUCTIONS)

    def visit(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 100:
            raise ValueError("containers that hold themselves or one another over and over")
        if isinstance(value, dict):
            for key in value:
                value[key] = visit(value[key], depth + 1)
        elif isinstance(value, list):
            value[:] = [visit(item, depth + 1) for item in value]
        elif type(value) is tuple:
            return tuple(visit(item, depth + 1) for item in value)
        else:
            return leaf(value)
        return value

    return visit(value, 0)


def _finish(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array()[()]
    if isinstance(value, (_Global, _DType)):
        raise ValueError(f"{_brief(value.name)} in the place of data")
    return value


def _brief(value: Any) -> str:
    """Describe a value that may be of any size."""
    return repr(value[:50]) if isinstance(value, str) else f"a {type(value).__name__}"


class _Stream:
    """A file from which no more can be asked than it holds: lengths in it are not to be believed."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self.readline = stream.readline

    def read(self, count: int) -> bytes:
        if count > self._size - self._stream.tell():
            raise EOFError("the file ends too early")
        return self._stream.read(count)


def _set_item(target: Any, key: Any, value: Any) -> None:
    # Others can be chosen to have one hash, so that a dict takes hours.
    if type(target) is not dict or not (type(key) is str or (type(key) is int and abs(key) < 1 << 31)):
        raise ValueError(f"a key that is {_brief(key)}, neither text nor a small number, or one of no dict")
    target[key] = value


class _Machine:
    """The stack, marks and memo of one pickle."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self._stream, self._name = _Stream(stream, size), name
        self._left = 4 * size  # what calls may read: with one text for many of them, little files could fill memory
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            opcode = _OPCODES[self._stream.read(1)[0]]
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, self._argument(opcode))
        raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions; weights need far fewer")

    def _argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        if opcode.arg is None:
            return None
        if opcode.name == "STRING":  # whose bytes need not be ASCII, unlike what pickletools expects
            line = self._stream.readline()
            if not (len(line) > 2 and line[:1] == line[-2:-1] and line[:1] in (b"'", b'"')):
                raise ValueError("text without its quotes")
            return codecs.escape_decode(line[1:-2])[0].decode("latin1")  # type: ignore[attr-defined]
        return opcode.arg.reader(self._stream)  # type: ignore[arg-type]

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _MEMO:
            self._remember(name, argument)
        elif name in _CONTAINERS:
            self._build_container(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._stack.append(self._find(argument if name == "GLOBAL" else self._pop(2)))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            if not isinstance(function, _Global) or not isinstance(arguments, tuple):
                raise ValueError("a call of data")
            self._charge(arguments)
            self._stack.append(function.call(arguments))
        elif name == "BUILD":
            self._set_state(*self._pop(2))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the instruction {name}, which plain data does not need")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("an empty stack")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _remember(self, name: str, argument: Any) -> None:
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name.endswith("GET"):
            self._stack.append(self._memo[argument])
        elif 0 <= argument < MAX_INSTRUCTIONS:
            self._memo[argument] = self._stack[-1]
        else:
            raise ValueError("a place beyond the end of its table")

    def _build_container(self, name: str) -> None:
        stack = self._stack
        if name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name in ("LIST", "TUPLE", "DICT"):
            items = self._pop_mark()
            self._stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else {})
            if name == "DICT":
                self._set_items(items)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_mark()
            if type(self._stack[-1]) is not list:
                raise ValueError("items of what is no list")
            self._stack[-1].extend(items)
        else:  # SETITEM, SETITEMS
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(self._stack[-1], key, value)

    def _charge(self, arguments: tuple[Any, ...]) -> None:
        self._left -= sum(len(x) for x in arguments if isinstance(x, (str, bytes, bytearray, list)))
        if self._left < 0:
            raise ValueError("the same bytes used over and over")

    def _find(self, name: Any) -> _Global:
        name = name.replace(" ", ".", 1) if isinstance(name, str) else ".".join(name)
        if name not in _GLOBALS:
            raise CheckpointError(f"{self._name} asks for {name:.100}, which is no plain data, so it is not read")
        return _GLOBALS[name]

    def _set_state(self, target: Any, state: Any) -> None:
        if not isinstance(state, tuple):
            raise ValueError("a state that is no tuple")
        self._charge(state)
        if isinstance(target, _DType):
            target.state = state
        elif isinstance(target, _Array):
            version, target.shape, target.dtype, fortran, target.data = state
            if version != 1:
                raise ValueError("an array of another version")
            target.order = "F" if fortran else "C"
        else:
            raise ValueError("a state of what is neither dtype nor array")
        self._stack.append(target)


# fmt: off
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"}
_CONTAINERS = {
    "MARK", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
}
# fmt: on
