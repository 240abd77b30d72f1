"""Parquet files as columns of text, and back; pyarrow is imported here alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.errors import ManifestError
from video_gn.files import whole_path

if TYPE_CHECKING:
    from types import ModuleType

_INSTALL = "needs pyarrow. Install it (pip install 'video-gn[parquet]'), or use a csv."


def require_pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        ManifestError: if they are not installed, with the command that installs them.
    """
    try:
        modules = tuple(importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet", "pyarrow.compute"))
    except ImportError as error:
        raise ManifestError(f"{path}: a parquet file {_INSTALL}") from error
    return modules[0], modules[1]


def read_parquet(path: Path, *, skip: Callable[[Sequence[str]], Iterable[str]]) -> dict[str, list[str]]:
    """Columns by name in lower case, as text; "" for no value.

    Args:
        path: the file.
        skip: names -> names of columns that are left out.

    Raises:
        ManifestError: for a file or column that cannot be read, or without pyarrow.
    """
    with _Parquet(path) as file:
        lower = [name.strip().lower() for name in file.names]
        for place, name in enumerate(lower):
            if not name or name in lower[:place]:
                raise ManifestError(
                    f"{path}: names of columns must be there and differ, got {lower}. Correct the file."
                )
        left_out = set(skip(lower))
        return {name: file.texts(real) for name, real in zip(lower, file.names, strict=True) if name not in left_out}


class _Parquet:
    """An open file; Arrow's errors become ManifestError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pa, parquet = require_pyarrow(path)
        try:
            self.file: Any = parquet.ParquetFile(path)
        except (OSError, self.pa.ArrowException) as error:
            raise ManifestError(f"{path}: the file cannot be read as parquet: {_first_line(error)}") from error
        self.names: list[str] = self.file.schema_arrow.names

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def texts(self, name: str) -> list[str]:
        types, kind = self.pa.types, self.file.schema_arrow.field(name).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        is_text = types.is_string(kind) or types.is_large_string(kind)
        if not (is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
                or types.is_null(kind)):  # fmt: skip
            raise ManifestError(f"{self.path}: column {name!r} must be of text or numbers, got {kind}. Convert it.")
        try:
            column = self.file.read(columns=[name]).column(0)
            if types.is_floating(kind):
                compute = self.pa.compute
                column = compute.if_else(compute.is_nan(column.cast(kind)), None, column.cast(kind))
            texts: list[str] = column.cast(self.pa.large_string()).fill_null("").to_pylist()
        except (OSError, self.pa.ArrowException, UnicodeDecodeError) as error:
            raise ManifestError(f"{self.path}: column {name!r} cannot be read: {_first_line(error)}") from error
        return texts


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_parquet(path: Path, kinds: Mapping[str, type], batches: Iterator[Sequence[list[Any]]]) -> None:
    """Write columns, whole or not at all.

    Args:
        path: the file to write.
        kinds: str, int or float for each column.
        batches: values of each column, None for unknown.
    """
    pa, parquet = require_pyarrow(path)
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    with whole_path(path) as part, parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        for columns in batches:
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
