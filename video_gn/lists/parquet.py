"""Parquet files as columns of text, and back; pyarrow is imported here alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.errors import ManifestError
from video_gn.files import whole_path

if TYPE_CHECKING:
    from types import ModuleType


def require_pyarrow(path: Path, *, otherwise: str = ", or use a csv") -> tuple[ModuleType, ModuleType]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        ManifestError: if they are not installed, with the command that installs them.
    """
    try:
        modules = tuple(importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet", "pyarrow.compute"))
    except ImportError as error:
        raise ManifestError(
            f"{path}: a parquet file needs pyarrow. Install it (pip install 'video-gn[parquet]'){otherwise}."
        ) from error
    return modules[0], modules[1]


def read_parquet(path: Path, *, skip: Callable[[Sequence[str]], Iterable[str]]) -> dict[str, list[str]]:
    """Columns by name in lower case, as text, "" for no value; `skip` picks names of columns that are left out.

    Raises:
        ManifestError: for a file or column that cannot be read, or without pyarrow.
    """
    pa, parquet = require_pyarrow(path)
    if not path.is_file():
        raise ManifestError(f"{path}: a parquet file must be a file, got a pipe, a device or nothing.")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: the file cannot be read as parquet: {_first_line(error)}") from error
    with file:
        names: list[str] = file.schema_arrow.names
        lower = [name.strip().lower() for name in names]
        for place, name in enumerate(lower):
            if not name or name in lower[:place]:
                raise ManifestError(
                    f"{path}: names of columns must be there and differ, got {lower}. Correct the file."
                )
        left_out = set(skip(lower))
        return {name: _texts(pa, path, file, real) for name, real in zip(lower, names, strict=True)
                if name not in left_out}  # fmt: skip


def _texts(pa: ModuleType, path: Path, file: Any, name: str) -> list[str]:
    """A column of an open file as text."""
    types, kind = pa.types, file.schema_arrow.field(name).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_known = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean,
                types.is_null)  # fmt: skip
    if not any(is_one(kind) for is_one in is_known):
        raise ManifestError(f"{path}: column {name!r} must be of text or numbers, got {kind}. Convert it.")
    try:
        column = file.read(columns=[name]).column(0)
        if types.is_floating(kind):
            column = column.cast(kind)
            column = pa.compute.if_else(pa.compute.is_nan(column), None, column)
        texts: list[str] = column.cast(pa.large_string()).fill_null("").to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: column {name!r} cannot be read: {_first_line(error)}") from error
    return texts


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_parquet(
    path: Path,
    kinds: Mapping[str, type | int],
    batches: Iterable[Sequence[Any]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write columns, whole or not at all: str, int or float each, and batches of their values, None for unknown.

    A number N in place of a type is a column of lists of N float32 each; its batches are arrays (rows, N).
    """
    pa, parquet = require_pyarrow(path)
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    fields = [(name, pa.list_(pa.float32(), k) if isinstance(k, int) else types[k]) for name, k in kinds.items()]
    schema = pa.schema(fields, metadata=metadata)

    def to_array(values: Any, kind: Any) -> Any:
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), kind.list_size)
        return pa.array(values, kind)

    settings = {
        "compression": "zstd",
        "use_dictionary": [name for name, kind in kinds.items() if kind is str],  # features do not repeat
        "write_page_checksum": True,
    }
    with whole_path(path) as part, parquet.ParquetWriter(part, schema, **settings) as writer:
        for columns in batches:
            arrays = [to_array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
