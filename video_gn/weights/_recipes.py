"""What the unpickler may build: arrays, tensors and plain containers, each checked before it is allocated.

Every recipe is a function of this package: numpy's and torch's own unpickling functions trust the sizes and strides in
a file, so they never get a file's arguments unchecked.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MAX_DEPTH = 100  # checkpoints nest ten deep; later code may recurse, and Python's limit is 1000
BULK_BYTES = 1 << 16  # from this size on bytes are held once: read into the memory that the tensor then uses
MOST_KEY_PARTS = 16  # of a tuple: three levels that share their parts would take 16 ** 3 steps to hash
MAX_REPEATED_BYTES = 1 << 26  # an expanded tensor may be larger than its storage, but not endlessly
ITEM_BYTES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}  # what torch has, by numpy's kinds


class Allowance:
    """How much the reading of a file may still allocate, and the foreign names that it has met."""

    def __init__(self, size: int, *, strict: bool) -> None:
        self.strict = strict
        self.foreign: set[str] = set()
        # References to one object are short, copies of it are not: what is copied must come from the file's
        # own bytes. A byte is copied at most three times (decoded, encoded, turned to native order).
        self._budget = 3 * size + (1 << 20)

    def spend(self, num_bytes: int) -> None:
        """Count what is about to be allocated; UnpicklingError if the file cannot be the source of so much."""
        self._budget -= num_bytes
        if self._budget < 0:
            raise pickle.UnpicklingError("it asks for more memory than its size explains")


class Misfit(pickle.UnpicklingError):
    """A file contradicts itself; the unpickler adds the key or the place."""


@dataclass(slots=True, eq=False, repr=False)
class Foreign:
    """Stands for an object of a class that is not weights: keeps the dotted name and drops the state."""

    name: str

    def __repr__(self) -> str:
        return f"<foreign {self.name}>"


@dataclass(slots=True, eq=False)
class Known:
    """A name with a recipe, which only the unpickler can call: `make` takes the `Reading` and the file's arguments."""

    name: str
    make: Callable[..., Any]


class Raw:
    """A large run of bytes, held once and handed over to the array that is made of it.

    `text` says that Python 2 wrote them as its `str`, which also holds names.
    """

    __slots__ = ("data", "text")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: bytearray, *, text: bool) -> None:
        self.data: bytearray | None = data
        self.text = text

    def take(self) -> bytearray:
        """The bytes, once: the unpickler's memo would otherwise keep a second copy of all weights."""
        if self.data is None:
            raise Misfit("uses one run of bytes for two arrays")
        data, self.data = self.data, None
        return data


class Dtype:
    """numpy's dtype as a file describes it, such as "f4"; the array refuses those that are no plain numbers."""

    __slots__ = ("order", "plain", "spec")

    def __init__(self, spec: Any) -> None:
        self.spec = spec if type(spec) is str else type(spec).__name__
        self.order = "="
        kind, size = self.spec[:1], self.spec[1:]
        self.plain = size.isdecimal() and int(size[:4]) in ITEM_BYTES.get(kind, ())

    def build(self, reading: Allowance, state: Any) -> None:
        """Take the byte order from (version, order, subarray, names, fields, ...); with fields it is no number."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise Misfit("a damaged dtype")
        self.order = state[1]
        self.plain = self.plain and state[2:5] == (None, None, None)

    def tensor(self, reading: Allowance, raw: Any, shape: Any, *, fortran: bool) -> torch.Tensor:
        """The tensor of these bytes, shared if they are a `Raw`; Misfit unless shape, dtype and bytes agree."""
        if not self.plain:
            raise Misfit(f"an array of {self.spec[:40]}, which is no number that torch has")
        if type(shape) is not tuple or len(shape) > 32:
            raise Misfit("an array without a shape")
        check_counts(shape, "an array's shape")
        num_bytes = math.prod(shape) * int(self.spec[1:])
        data = raw.data if isinstance(raw, Raw) else raw
        if not isinstance(data, bytes | bytearray | str):
            raise Misfit("an array without data, or made of another's")
        if len(data) != num_bytes:
            raise Misfit(f"an array of shape {shape} and {self.spec} needs {num_bytes} bytes, it has {len(data)}")
        if isinstance(raw, Raw):
            data = raw.take()
        else:
            reading.spend(num_bytes)
            data = bytearray(data, "latin1") if isinstance(data, str) else bytearray(data)
        if not data:
            data = bytearray(8)  # numpy makes no array over nothing
        order = "<" if self.order == "|" else self.order
        array = np.frombuffer(data, np.dtype(order + self.spec), count=math.prod(shape))
        if not array.dtype.isnative:
            reading.spend(num_bytes)
            array = array.astype(array.dtype.newbyteorder("="))
        if self.spec == "b1":
            array = array.view(np.uint8) != 0  # a bool of 2 is neither to torch
        if fortran and len(shape) > 1:
            reading.spend(num_bytes)
            return torch.from_numpy(array.reshape(shape, order="F").copy(order="C"))
        return torch.from_numpy(array.reshape(shape))


@dataclass(slots=True)
class Array:
    """A numpy array between its making and its state."""

    tensor: torch.Tensor | Foreign | None = None

    def build(self, reading: Allowance, state: Any) -> None:
        """Take (version, shape, dtype, is Fortran, bytes), without the version in the oldest files."""
        if type(state) is not tuple or len(state) not in (4, 5) or not isinstance(state[-3], Dtype):
            raise Misfit("a damaged array")
        shape, dtype, fortran, raw = state[-4:]
        if not dtype.plain and not reading.strict:
            reading.foreign.add("numpy.ndarray")
            self.tensor = Foreign("numpy.ndarray")  # of strings or objects, in a log or a setting
            return
        self.tensor = dtype.tensor(reading, raw, shape, fortran=bool(fortran))


@dataclass(slots=True, eq=False)
class Sparse:
    """A sparse tensor until its indices are read and can be checked: torch reads storages last in old files."""

    layout: Any
    data: Any

    def tensor(self) -> torch.Tensor:
        """The tensor, its indices checked by torch."""
        if self.layout is torch.sparse_coo:
            indices, values, size, *_ = self.data
            return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
        compressed, plain, values, size = self.data
        return torch.sparse_compressed_tensor(
            compressed, plain, values, size, layout=self.layout, check_invariants=True
        )


def check_counts(numbers: Iterable[Any], what: str) -> None:
    """Raise `Misfit` unless all are integers from 0 on that torch can hold."""
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise Misfit(f"{what} must be of integers from 0 on")


def checked_key(key: Any, depth: int = 3) -> Any:
    """The key of a dict or set, if it is a plain one.

    A tuple nested a million deep hashes by recursion in C and ends the process; so do other traps of hashing.
    """
    if type(key) in (str, float, bool, bytes, complex, type(None), Foreign):
        return key
    if type(key) is int and -(1 << 64) < key < 1 << 64:
        return key
    if type(key) is tuple and depth and len(key) <= MOST_KEY_PARTS:
        return tuple(checked_key(part, depth - 1) for part in key)
    if isinstance(key, Known | torch.dtype | torch.device):
        return key
    raise pickle.UnpicklingError(f"a key of type {type(key).__name__}")


def mapping_of(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values in turn."""
    if len(items) % 2:
        raise pickle.UnpicklingError("a dict with a key and no value")
    return {checked_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def plain(root: Any, foreign: set[str]) -> Any:
    """Reduce what an unpickler returned to plain containers, numbers, strings, tensors and `Foreign`.

    `foreign` gets the names of other leaves. A tree that contains itself or is deeper than `MAX_DEPTH` raises
    UnpicklingError.
    """
    done: dict[int, Any] = {}

    def leaf(node: Any) -> Any:
        if isinstance(node, Array):
            if node.tensor is None:
                raise pickle.UnpicklingError("an array without data")
            return node.tensor
        if isinstance(node, Sparse):
            return node.tensor()
        if isinstance(node, torch.Tensor):
            return node.detach()
        if isinstance(node, Raw):
            data = bytes(node.data or b"")
            return data.decode("latin1") if node.text else data
        if isinstance(node, bytearray):
            return bytes(node)
        if isinstance(node, Known):
            foreign.add(node.name)
            return Foreign(node.name)
        if node is None or isinstance(
            node, str | bytes | int | float | complex | Foreign | torch.dtype | torch.device | torch.layout
        ):
            return node
        name = f"{type(node).__module__}.{type(node).__qualname__}"
        foreign.add(name)
        return Foreign(name)

    def walk(node: Any, depth: int) -> Any:
        if id(node) in done:  # the tree keeps every node alive, so no id is used twice
            if done[id(node)] is walk:
                raise pickle.UnpicklingError("it contains itself")
            return done[id(node)]
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"it is nested deeper than {MAX_DEPTH}")
        done[id(node)] = walk
        result: Any
        if isinstance(node, dict):
            result = {key: walk(value, depth + 1) for key, value in dict.items(node)}
        elif isinstance(node, list):
            result = [walk(value, depth + 1) for value in list.__iter__(node)]
        elif isinstance(node, tuple):
            result = tuple(walk(value, depth + 1) for value in tuple.__iter__(node))
        elif isinstance(node, set | frozenset):
            result = set(node)
        else:
            result = leaf(node)
        done[id(node)] = result
        return result

    return walk(root, 0)


def entries_of(reading: Allowance, pairs: Any = ()) -> dict[Any, Any]:
    pairs = list(pairs.items()) if type(pairs) is dict else pairs
    if type(pairs) not in (list, tuple):
        raise pickle.UnpicklingError("a dict of no pairs")
    reading.spend(8 * len(pairs))
    return {checked_key(key): value for key, value in pairs}


def container_of(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def make(reading: Allowance, items: Any = (), *_: Any) -> Any:
        if type(items) not in (list, tuple, set, frozenset, dict):
            raise pickle.UnpicklingError("a container of no items")  # list(range(10**12)) among others
        reading.spend(8 * len(items))
        return kind(map(checked_key, items)) if kind in (set, frozenset) else kind(items)

    return make


def _bytes(reading: Allowance, data: Any = b"", encoding: str = "latin1") -> Any:
    if isinstance(data, Raw):
        return data
    if not isinstance(data, bytes | bytearray | str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes of no bytes")  # bytearray(10**12) among others
    reading.spend(len(data))
    # How Python 3 writes bytes in protocols up to 2; a large run is that of an array.
    made = bytearray(data, "latin1") if isinstance(data, str) else bytearray(data)
    return Raw(made, text=False) if len(made) >= BULK_BYTES else bytes(made)


def _array(reading: Allowance, kind: Any, *_: Any) -> Any:
    if isinstance(kind, Foreign):
        return Foreign(kind.name)  # a subclass of arrays
    if not isinstance(kind, Known) or kind.name != "numpy.ndarray":
        raise Misfit("an array of no array's class")
    return Array()


def _not_made(*_: Any) -> None:
    raise Misfit("a numpy.ndarray made in another way than by numpy")


def _scalar(reading: Allowance, dtype: Any, raw: Any = b"") -> Any:
    if not isinstance(dtype, Dtype):
        raise Misfit("a number of no dtype")
    if not dtype.plain and not reading.strict:
        reading.foreign.add("numpy.generic")
        return Foreign("numpy.generic")
    return dtype.tensor(reading, raw, (), fortran=False).item()


def _from_buffer(reading: Allowance, raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    array = Array()
    array.build(reading, (1, shape, dtype, order == "F", raw))
    return array


@functools.cache
def plain_table() -> Mapping[str, Any]:
    """Recipes by dotted name: numpy's and plain containers."""
    recipes: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": entries_of,
        "builtins.dict": entries_of,
        "_codecs.encode": _bytes,
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytes,
        "numpy.dtype": lambda reading, spec, *_: Dtype(spec),
        "numpy.ndarray": _not_made,
    }
    recipes |= {f"builtins.{kind.__name__}": container_of(kind) for kind in (list, tuple, set, frozenset)}
    for core in ("numpy.core", "numpy._core"):
        recipes[f"{core}.multiarray._reconstruct"] = _array
        recipes[f"{core}.multiarray.scalar"] = _scalar
        recipes[f"{core}.numeric._frombuffer"] = _from_buffer
    return {name: Known(name, make) for name, make in recipes.items()}
