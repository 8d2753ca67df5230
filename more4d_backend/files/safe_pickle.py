"""Read a pickle that holds tensors, arrays and plain values, and run none of its code.

A pickle is a small program. `pickletools.genops` only splits it into instructions; the machine
below carries out those that build plain values, and for the calls that torch and numpy put into
their pickles it has functions of its own. So nothing that a file names is ever imported.
"""

import io
import math
import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import FileFormatError


class UnsafePickleError(FileFormatError):
    """A pickle that asks for something other than tensors, arrays and plain values."""


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read the tensors (on the CPU), arrays, dicts, lists, tuples and scalars of a pickle file.

    Raises:
        UnsafePickleError: the file names any other class or function; the message says which.
        FileFormatError: the file is empty, truncated or not a pickle.
    """
    return loads_pickle(Path(path).read_bytes(), str(path))


def loads_pickle(data: bytes, source: str) -> Any:
    """Read a pickle from memory. `source` is what errors call it. See `load_pickle`."""
    if not data:
        raise FileFormatError(f"{source} is empty; expected a pickle.")
    if data.startswith(b"PK\x03\x04"):
        raise FileFormatError(
            f"{source} is a zip archive, as torch.save writes; expected a plain pickle. "
            "Read it with torch.load(..., weights_only=True)."
        )
    try:
        value = _Machine().run(data)
        _refuse_leftovers(value)
    except UnsafePickleError as e:
        raise UnsafePickleError(
            f"{source} is refused: {e} Only tensors, numpy arrays and plain values are read. "
            "Nothing of the file was run."
        ) from e
    except Exception as e:  # torch, numpy and pickletools differ in what they raise for damage
        raise FileFormatError(f"{source} is not a readable pickle: {e}") from e
    return value


@dataclass(slots=True)
class _Dtype:
    """A numpy dtype under construction; its byte order arrives in a later instruction."""

    code: str
    order: str = "="

    def resolved(self) -> np.dtype:
        dtype = np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]
        if dtype.kind not in "?biufcSU" or dtype.fields is not None:
            raise UnsafePickleError(f"It holds a numpy array of dtype {self.code!r}.")
        return dtype


class _Name(str):
    """`module.name` of a class or function that the pickle mentions; only `_CALLS` use it."""

    __slots__ = ()


def _load_storage(data: bytes) -> Tensor:
    # torch's own `_load_from_bytes` unpickles these bytes without any restriction.
    storage = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    if not isinstance(storage, torch.TypedStorage):
        raise ValueError(f"a storage was expected; {type(storage).__name__} came")
    return torch.empty(0, dtype=storage.dtype).set_(storage)  # type: ignore[arg-type]


def _tensor(elements: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    numbers = [offset, *size, *stride]
    if not isinstance(elements, Tensor) or len(size) != len(stride):
        raise ValueError("a tensor has no storage, or a size and a stride of other lengths")
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    if math.prod(size) == 0:
        return elements.new_empty(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= elements.numel():
        raise ValueError(f"a tensor of size {size} needs more than {elements.numel()} elements")
    return elements.as_strided(size, stride, offset)


def _empty_array(kind: object, shape: object, _: object) -> np.ndarray:
    if kind != "numpy.ndarray" or shape != (0,):
        raise UnsafePickleError(f"It holds an array of the class {kind}.")
    return np.empty(0, np.uint8)


def _array(data: bytes | bytearray, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.resolved()).reshape(shape, order=order).copy(order)  # type: ignore[arg-type]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"It encodes text as {encoding!r}.")
    return text.encode("latin-1")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _load_storage,
    "torch.Size": tuple,
    "collections.OrderedDict": lambda items=(): dict(items),
    "numpy.dtype": lambda code, *_: _Dtype(str(code)),
    "_codecs.encode": _encode,  # bytes in protocols 0 to 2; empty ones in the next line's way
    "__builtin__.bytes": lambda: b"",
} | {
    f"numpy.{core}.{name}": call
    for core in ("core", "_core")
    for name, call in {
        "multiarray._reconstruct": _empty_array,
        "multiarray.scalar": lambda dtype, data: np.frombuffer(data, dtype.resolved(), 1)[0],
        "numeric._frombuffer": _array,
    }.items()
}
_MENTIONED = {*_CALLS, "numpy.ndarray"}

_PUSH_ARGUMENT = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE "
    "BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_FROM_MARK: dict[str, Callable[[list], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The pickle stack machine, without calls to anything outside `_CALLS`."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[Any, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _FROM_MARK:
                self.stack.append(_FROM_MARK[name](self._since_mark()))
            elif name in _TUPLES:
                count = _TUPLES[name]
                self.stack[-count:] = [tuple(self.stack[-count:])]
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[argument])
            elif name == "STOP":
                (value,) = self.stack
                return value
            elif name not in ("PROTO", "FRAME"):
                self._change(name, argument)
        raise ValueError("it ends before its STOP instruction")

    def _change(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "APPEND":
                item = stack.pop()
                _checked(stack[-1], list).append(item)
            case "APPENDS":
                items = self._since_mark()
                _checked(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _checked(stack[-1], dict)[key] = value
            case "SETITEMS":
                items = self._since_mark()
                _checked(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_mentioned(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_mentioned(module, attribute))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _Name) or function not in _CALLS:
                    raise UnsafePickleError(f"It calls {function}.")
                stack.append(_CALLS[function](*arguments))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case _:
                raise UnsafePickleError(f"It uses the pickle instruction {name}.")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} was expected; {type(value).__name__} came")
    return value


def _mentioned(module: object, attribute: object) -> _Name:
    name = f"{module}.{attribute}"
    if name not in _MENTIONED:
        raise UnsafePickleError(f"It names {name}.")
    return _Name(name)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _Dtype):
        _, target.order, *_ = state
        if target.order not in ("<", ">", "|", "="):
            raise ValueError(f"a dtype has byte order {target.order!r}")
    elif isinstance(target, np.ndarray):
        version, shape, dtype, is_fortran, data = state
        if not isinstance(data, bytes | bytearray):
            raise UnsafePickleError("It holds a numpy array of objects.")
        target.__setstate__((version, shape, dtype.resolved(), is_fortran, bytes(data)))
    else:
        raise UnsafePickleError(f"It sets the state of a {type(target).__name__}.")


def _refuse_leftovers(value: Any) -> None:
    """A class mentioned but never called, is no value either."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Name):
            raise UnsafePickleError(f"It holds {item} itself.")
        if isinstance(item, _Dtype):
            raise UnsafePickleError("It holds a numpy dtype itself.")
        if isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend([*item.keys(), *item.values()] if isinstance(item, dict) else item)
