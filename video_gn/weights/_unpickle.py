"""Unpickler that executes nothing: it returns weights, makes foreign objects inert and refuses programs.

A pickle is a list of instructions that may import and call anything. Here a name is looked up in a fixed table of
recipes and never imported. A name that the table lacks becomes a `Foreign`, which can be called, filled and stored
without effect; a name of the standard library that is no plain data class makes the whole file refused.
"""

from __future__ import annotations

import pickle
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from video_gn.errors import CheckpointError
from video_gn.weights._recipes import (
    BULK_BYTES,
    Allowance,
    Array,
    Dtype,
    Foreign,
    Known,
    Misfit,
    Raw,
    check_counts,
    checked_key,
    mapping_of,
    plain_table,
)
from video_gn.weights._torch_recipes import torch_table

# Standard library, data only. Everything else of it is refused, whatever it would do.
PLAIN_MODULES = {"collections", "copyreg", "datetime", "decimal", "enum", "fractions", "ipaddress", "pathlib"}
PLAIN_MODULES |= {"typing", "uuid", "zoneinfo"}
PLAIN_NAMES = {"argparse.Namespace", "types.SimpleNamespace", "functools.partial", "re._compile", "random.Random"}
PLAIN_NAMES |= {f"builtins.{kind.__name__}" for kind in (object, type, int, float, complex, str, bool, slice, range)}
PLAIN_NAMES |= {f"builtins.{name}" for name in ("Ellipsis", "NoneType", "NotImplemented")}
# Aliases of standard modules in Python 2 that are not in today's list of modules.
LIBRARY = sys.stdlib_module_names | set(IMPORT_MAPPING) | {"__builtin__", "posix", "nt", "commands", "popen2", "os2"}


class Reading(Allowance):
    """What one reading of a file has met so far, and how much it may still allocate.

    `strict` refuses every name that the table lacks, as a Caffe2 file has none; `records` has the size in bytes of each
    storage of a zip, by key.
    """

    def __init__(self, path: str, size: int, *, strict: bool, records: Mapping[str, int] | None = None) -> None:
        super().__init__(size, strict=strict)
        self.path = path
        self.size = size
        self.records = records
        self.table: Mapping[str, Any] = plain_table() if strict else torch_table()
        self.storages: set[str] = set()
        self.last: Any = None  # what `load` returned last: in a file from before torch 1.6 the storages' list

    def refuse(self, reason: str) -> CheckpointError:
        """The error to raise, with the path before the reason."""
        return CheckpointError(f"{self.path}: {reason}")

    def admit_storage(self, pid: Any) -> None:
        """Check a persistent id before torch allocates or maps its storage; UnpicklingError if it is none."""
        if self.strict or type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something outside the file")
        kind, key, location, numel = pid[1:5]
        dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(location) is not str:
            raise pickle.UnpicklingError("a storage of no known kind")
        check_counts((numel,), "a storage's size")
        num_bytes = numel * dtype.itemsize
        if self.records is not None and num_bytes > self.records.get(key, -1):
            raise Misfit(f"storage {key} has {self.records.get(key, 0)} bytes, {num_bytes} are declared")
        if num_bytes > self.size:
            raise Misfit(f"storage {key} of {num_bytes} bytes in a file of {self.size}")
        if len(pid) == 6 and pid[5] is not None:
            _, offset, length = pid[5]
            check_counts((offset, length), "a view of a storage")
        if key not in self.storages:
            self.storages.add(key)
            self.spend(num_bytes)


class Unpickler(pickle._Unpickler):  # C's own cannot guard BUILD
    """Python's unpickler with every instruction replaced that could import, call or set anything.

    torch subclasses it and sets `persistent_load`, so the guards sit in the instructions. `bind` makes a class that has
    a `reading`. torch passes an encoding for Python 2's strings; latin1 is used instead, which decodes any bytes.
    """

    reading: Reading
    # Set by the base class's `load`.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, *, encoding: str = "latin1") -> None:
        super().__init__(file, fix_imports=False, encoding="latin1")
        self._file = file
        # pickle's own read takes a string cut short for whole, and makes room for any declared length.
        self._file_read = self._read_exactly

    def _read_exactly(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes) if num_bytes <= self.reading.size else b""
        if len(data) < num_bytes:
            raise EOFError("it ends too early")
        return data

    def _place(self) -> str:
        """Where the value on top of the stack belongs: its key, if that lies below it."""
        below = self.stack[-2] if len(self.stack) > 1 else None
        return f"key {below!r}" if type(below) is str and len(below) < 200 else f"near byte {self._file.tell()}"

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the table; CheckpointError for a program, or if strict for any name that it lacks."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in self.reading.table:
            return self.reading.table[full]
        parts = full.replace("<locals>", "x").replace("<lambda>", "x").split(".")
        if len(full) > 300 or not all(part.isidentifier() for part in parts):
            raise pickle.UnpicklingError("it names something that cannot be a name")
        if _is_program(module, name):
            raise self.reading.refuse(
                f"holds a call of {full}: that is a program, not weights; nothing was executed. Do not use this file"
            )
        if self.reading.strict:
            raise self.reading.refuse(
                f"holds {full}, but a Caffe2 file of weights has arrays, numbers, strings and plain containers alone; "
                "nothing was executed. Save its weights as a dict of numpy arrays, or with torch.save"
            )
        self.reading.foreign.add(full)
        return Foreign(full)

    def _call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        if isinstance(function, Foreign):
            return Foreign(function.name)
        if not isinstance(function, Known) or type(args) is not tuple or kwargs:
            raise pickle.UnpicklingError(f"it calls what cannot be called, {type(function).__name__}")
        return function.make(self.reading, *args)

    def _guard(self, action: Callable[..., Any], *args: Any) -> Any:
        try:
            return action(*args)
        except Misfit as error:
            raise self.reading.refuse(f"{self._place()}: {error}. Download or copy the file again") from error

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._guard(self._call, self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._guard(self._call, self.stack[-1], args, kwargs)

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(self._call(klass, tuple(args)))

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Array | Dtype):
            self._guard(target.build, self.reading, state)
        elif isinstance(target, torch.Tensor) and not isinstance(state, dict):
            raise pickle.UnpicklingError("a tensor of a torch before 0.4")
        elif not isinstance(target, Foreign | dict | torch.Tensor):
            raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")
        # The state of a placeholder, or a dict's or tensor's own attributes (`_metadata`): dropped.

    def _fill(self, kind: type, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            return
        if kind is list and type(target) is list:
            target.extend(items)
        elif kind is set and type(target) is set:
            target.update(map(checked_key, items))
        elif kind is dict and type(target) is dict:
            target.update(mapping_of(items))
        else:
            raise pickle.UnpicklingError(f"it adds to a {type(target).__name__}")

    def load_append(self) -> None:
        item = self.stack.pop()
        self._fill(list, [item])

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._fill(list, items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(dict, [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(dict, items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._fill(set, items)

    def load_dict(self) -> None:
        items = self.pop_mark()  # changes what `append` appends to
        self.append(mapping_of(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(checked_key, items)))

    def load_binpersid(self) -> None:
        pid = self.stack.pop()
        self.stack.append(None)
        self._guard(self.reading.admit_storage, pid)
        self.stack[-1] = self.persistent_load(pid)

    def _bulk(self, layout: str, *, text: bool = False, mutable: bool = False) -> None:
        (length,) = struct.unpack(layout, self.read(struct.calcsize(layout)))
        if length < 0:
            raise pickle.UnpicklingError("a string of negative length")
        data = self.read(length)
        if length >= BULK_BYTES:
            self.append(Raw(bytearray(data), text=text))
        elif text:
            self.append(data.decode("latin1"))
        else:
            self.append(bytearray(data) if mutable else data)

    def load_binstring(self) -> None:
        self._bulk("<i", text=True)

    def load_binbytes(self) -> None:
        self._bulk("<I")

    def load_binbytes8(self) -> None:
        self._bulk("<Q")

    def load_bytearray8(self) -> None:
        self._bulk("<Q", mutable=True)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it refers to something outside the file")

    load_newobj = load_reduce
    load_persid = load_ext1 = load_ext2 = load_ext4 = load_next_buffer = load_readonly_buffer = _refuse
    # Each method under the byte of its instruction: `load_build` replaces BUILD.
    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        getattr(pickle, name.removeprefix("load_").upper())[0]: method
        for name, method in list(vars().items())
        if name.startswith("load_")
    }


def bind(reading: Reading) -> SimpleNamespace:
    """What `torch.load` takes as `pickle_module`: an `Unpickler` and `load` of one reading."""

    class Bound(Unpickler):
        pass

    Bound.reading = reading

    def load(file: Any, *, encoding: str = "latin1") -> Any:
        reading.last = Bound(file, encoding=encoding).load()
        return reading.last

    # torch asks for the name to tell dill from pickle.
    return SimpleNamespace(__name__=__name__, Unpickler=Bound, load=load)


def _is_program(module: str, name: str) -> bool:
    # "pathlib" with "os.system" is a way round: protocol 4 follows dots through whatever a module imports.
    *outer, _ = name.split(".")
    if any(part in LIBRARY or part.startswith("__") for part in outer):
        return True
    top = module.split(".")[0]
    return top in LIBRARY and top not in PLAIN_MODULES and f"{module}.{name}" not in PLAIN_NAMES
