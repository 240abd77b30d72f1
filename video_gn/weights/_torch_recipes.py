"""Recipes for torch's files: tensors, which must lie inside their storages, and what a checkpoint holds beside them."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch

from video_gn.weights._recipes import (
    MAX_REPEATED_BYTES,
    Allowance,
    Foreign,
    Known,
    Misfit,
    Sparse,
    check_counts,
    container_of,
    entries_of,
    plain_table,
)


def _check_inside(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> None:
    """Raise `Misfit` unless the view lies inside its storage: `Tensor.set_` makes a storage larger where it can."""
    if not isinstance(storage, torch.storage.TypedStorage) or not isinstance(size, tuple | list):
        raise Misfit("a tensor without storage or shape")
    if not isinstance(stride, tuple | list) or len(stride) != len(size):
        raise Misfit("a tensor with a stride for some dimensions alone")
    check_counts([offset, *size, *stride], "a tensor's shape, strides and offset")
    itemsize = (dtype or storage.dtype).itemsize
    have = storage._untyped_storage.nbytes()  # the public name warns that typed storages will go
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numel = math.prod(size)
    if numel and end * itemsize > have:
        raise Misfit(f"a tensor of shape {tuple(size)} needs {end * itemsize} bytes, its storage has {have}")
    if numel * itemsize > max(have, MAX_REPEATED_BYTES):
        raise Misfit(f"a tensor of shape {tuple(size)} that repeats {have} bytes")


def _tensor(reading: Allowance, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    # rest: requires_grad, backward_hooks, metadata; hooks are never called.
    return _view(storage, offset, size, stride, None, *rest[2:3])


def _tensor_of_dtype(reading: Allowance, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    # rest: requires_grad, backward_hooks, dtype, metadata; for dtypes younger than typed storages.
    if not isinstance(rest[2], torch.dtype):
        raise Misfit("a tensor of no dtype")
    return _view(storage, offset, size, stride, rest[2], *rest[3:4])


def _view(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None, metadata: Any = None
) -> torch.Tensor:
    _check_inside(storage, offset, size, stride, dtype)
    tensor = torch.empty(0, dtype=dtype or storage.dtype, device=storage._untyped_storage.device)
    tensor.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))
    if isinstance(metadata, dict):
        bits = {name: True for name in ("conj", "neg") if metadata.get(name) is True}
        if bits:  # the values are stored unconjugated
            torch._utils.set_tensor_metadata(tensor, bits)
    return tensor


def _parameter(reading: Allowance, data: Any, *_: Any) -> Any:
    return data if isinstance(data, torch.Tensor | Sparse) else Foreign("torch.nn.parameter.Parameter")


def _sparse(reading: Allowance, layout: Any, data: Any) -> Sparse:
    if not isinstance(layout, torch.layout) or type(data) is not tuple or len(data) not in (3, 4):
        raise Misfit("a sparse tensor without its parts")
    return Sparse(layout, data)


def _quantized(reading: Allowance, storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, *_: Any) -> Any:
    _check_inside(storage, offset, size, stride)
    if type(scheme) is not tuple or not isinstance(scheme[0], torch.qscheme):
        raise Misfit("a quantized tensor without its scale")
    if scheme[0] is not torch.per_tensor_affine:
        axis = scheme[3]
        # torch before 2.15 trusts these.
        if type(axis) is not int or not 0 <= axis < len(size) or {len(part) for part in scheme[1:3]} != {size[axis]}:
            raise Misfit("a quantized tensor whose scales do not fit its channels")
    reading.spend(math.prod(size) * storage.dtype.itemsize)
    return torch._utils._rebuild_qtensor(storage, offset, tuple(size), tuple(stride), scheme, False, {})


def _meta(reading: Allowance, dtype: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    check_counts([*size, *stride], "a tensor's shape and strides")
    return torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device="meta")


def _from_device(reading: Allowance, data: Any, dtype: Any, *_: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise Misfit("a tensor of another device without its values")
    reading.spend(data.numel() * dtype.itemsize)
    return data.to(dtype)


def _subclass(reading: Allowance, function: Any, kind: Any, args: Any, *_: Any) -> Any:
    # A tensor with attributes, or of a subclass: the tensor alone.
    if not isinstance(function, Known) or type(args) is not tuple:
        return Foreign("torch._tensor._rebuild_from_type_v2")
    return function.make(reading, *args)


def _getattr(reading: Allowance, owner: Any, name: Any, *_: Any) -> Foreign:
    # How methods are pickled up to protocol 3, and members of an enum from Python 3.11 on.
    if not isinstance(owner, Foreign) or type(name) is not str:
        raise pickle.UnpicklingError("it takes an attribute of what has none")
    return Foreign(f"{owner.name}.{name}"[:300])


def _reconstructor(reading: Allowance, kind: Any, *_: Any) -> Foreign:
    if not isinstance(kind, Foreign):
        raise pickle.UnpicklingError("it builds what is no object")
    return Foreign(kind.name)


def _defaultdict(reading: Allowance, factory: Any = None, *_: Any) -> dict[Any, Any]:
    return {}  # its items follow


def _layout(reading: Allowance, name: Any) -> torch.layout:
    return {str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)}[name]


@functools.cache
def torch_table() -> Mapping[str, Any]:
    """Recipes by dotted name: torch's beside those of `plain_table`."""
    recipes: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.nn.parameter.Parameter": _parameter,
        "torch._utils._rebuild_sparse_tensor": _sparse,
        "torch._utils._rebuild_qtensor": _quantized,
        "torch._utils._rebuild_meta_tensor_no_storage": _meta,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_device,
        "torch._tensor._rebuild_from_type": _subclass,
        "torch._tensor._rebuild_from_type_v2": _subclass,
        "torch.serialization._get_layout": _layout,
        "torch.Size": container_of(tuple),
        "torch.device": lambda reading, *args: torch.device(*args),
        "builtins.complex": lambda reading, *args: complex(*args),
        "builtins.getattr": _getattr,
        "collections.defaultdict": _defaultdict,
        "collections.Counter": entries_of,
        "collections.deque": container_of(list),
        "copyreg._reconstructor": _reconstructor,
        "copyreg.__newobj__": _reconstructor,
    }
    table: dict[str, Any] = {name: Known(name, make) for name, make in recipes.items()}
    # Values, not calls: a `Known` alone can be called.
    table |= {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    table |= {str(value): value for value in vars(torch).values() if isinstance(value, torch.qscheme)}
    table |= {"torch.storage.UntypedStorage": torch.UntypedStorage, "torch.UntypedStorage": torch.UntypedStorage}
    return {**plain_table(), **table}
