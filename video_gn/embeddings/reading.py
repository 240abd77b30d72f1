"""Reads the parquet files of `infer --embeddings`, a few rows at a time.

Shape letters: N rows, C features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from video_gn.errors import ManifestError
from video_gn.lists.parquet import require_pyarrow
from video_gn.parts import find_parts, missing_parts

Rows = Literal["videos", "clips"]
METADATA = "video_gn"  # key of the entry that says what made the file
BLOCK_ROWS = 2048  # read at a time, 16 MiB at 2048 features
# Pages are read one after the other: a file from elsewhere may have all rows in one group.
_READING = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
TIMES = ("start_seconds", "end_seconds")
_WRITE = "Write one with video-gn infer --embeddings."


class Block(NamedTuple):
    """Rows that follow each other: the first one's number, paths, and embeddings, float32 (N, C)."""

    first: int
    paths: np.ndarray
    x_NC: np.ndarray

    def rows(self, start: int, stop: int) -> Block:
        """A part of them."""
        return Block(self.first + start, self.paths[start:stop], self.x_NC[start:stop])


class EmbeddingsFile:
    """Embeddings in a parquet file, or in the parts X.part-I-of-N.parquet of X.parquet, one after the other.

    Attributes:
        about: What made the file, {} if it does not say: "rows", "checkpoint", "settings".
        num_rows: Rows of all parts.
        width: C.
        rows: "clips" if rows have times.

    Raises:
        ManifestError: there is no such file, a part is missing, it is no parquet file of embeddings, or it is empty.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        pa, self._parquet = require_pyarrow(self.path, otherwise="")
        self._types = pa.types
        self._errors = (OSError, pa.ArrowException)
        parts = [] if self.path.exists() else find_parts(self.path)
        if missing := missing_parts(str(path), [part for part, _ in parts]) if parts else []:
            raise ManifestError(f"{path}: all its parts must be there, missing {', '.join(map(str, missing))}.")
        self._files: list[tuple[Path, Any]] = []
        try:
            for place in [place for _, place in parts] or [self.path]:
                self._files.append((place, self._open(place)))
            first = self._files[0][1].schema_arrow
            self.about = self._about_of(*self._files[0])
            self.rows: Rows = "clips" if set(TIMES) <= set(first.names) else "videos"
            for place, file in self._files[1:]:
                if self._about_of(place, file) != self.about or not file.schema_arrow.equals(first):
                    raise ManifestError(
                        f"{place}: all parts must be made with the same checkpoint and settings, got others than in "
                        f"{self._files[0][0].name}. Make the parts anew."
                    )
            self.num_rows = sum(file.metadata.num_rows for _, file in self._files)
            if not self.num_rows:
                raise ManifestError(f"{path}: must have at least one row, got none. Did all videos fail?")
            self.width = 0
            for block in self.blocks(1):
                self.width = block.x_NC.shape[1]
                break
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            raise ManifestError(f"{path}: must be a parquet file of embeddings, got no file. {_WRITE}")
        try:
            file = self._parquet.ParquetFile(path, **_READING)
        except self._errors as error:
            raise ManifestError(f"{path}: must be a parquet file of embeddings, got another file. {_WRITE}") from error
        schema, types = file.schema_arrow, self._types

        def is_text(kind: Any) -> bool:
            return types.is_string(kind) or types.is_large_string(kind)

        for name in ("path", "embedding", "label", *TIMES):
            found = [field.type for field in schema if field.name == name]
            if not found and name in ("path", "embedding"):
                what = f"got {', '.join(schema.names)}"
            elif len(found) > 1:
                what = f"got {len(found)}"
            elif found and name in ("path", "label") and not is_text(found[0]):
                what = f"of text, got {found[0]}"
            elif found and name in TIMES and not types.is_floating(found[0]):
                what = f"of numbers, got {found[0]}"
            else:
                continue
            file.close()
            raise ManifestError(f"{path}: must have one column {name!r}, {what}. {_WRITE}")
        return file

    @staticmethod
    def _about_of(path: Path, file: Any) -> dict[str, Any]:
        text = (file.schema_arrow.metadata or {}).get(METADATA.encode(), b"{}")
        try:
            about = json.loads(text)
            if not isinstance(about, dict) or not isinstance(about.get("settings", {}), dict):
                raise ValueError("no dictionary")
            if not isinstance(about.get("settings", {}).get("checkpoint", ""), str):
                raise ValueError("no hash")
        except ValueError as error:
            raise ManifestError(f"{path}: its metadata {METADATA!r} are damaged. {_WRITE}") from error
        return about

    @property
    def checkpoint(self) -> str | None:
        """The hash of the checkpoint, "SHA-256 ..."; None if the file does not say."""
        return self.about.get("settings", {}).get("checkpoint")

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        """All rows, at most so many at a time.

        Raises:
            ManifestError: for an embedding that has no direction (zero, NaN), or another length than the first.
        """
        first = 0
        for path, (names, column) in self._batches(["path", "embedding"], rows):
            paths = np.array(names.to_pylist(), dtype=object)
            x_NC = self._vectors(path, column)
            to_unit(x_NC, [f"{path}: the embedding of {name!r}" for name in paths])
            yield Block(first, paths, x_NC)
            first += len(paths)

    def _batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[Path, list[Any]]]:
        for path, file in self._files:
            try:
                for batch in file.iter_batches(rows, columns=list(names)):
                    yield path, [batch.column(name) for name in names]
            except self._errors as error:
                raise ManifestError(f"{path}: its rows cannot be read. Is the copy whole?") from error

    def _vectors(self, path: Path, column: Any) -> np.ndarray:
        try:
            width = len(column[0]) if not self.width else self.width
            x_NC = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), width)
            if column.null_count or not width or column.value_lengths().unique().to_pylist() != [width]:
                raise ValueError("lengths that differ")
        except (AttributeError, ValueError, TypeError, *self._errors) as error:
            raise ManifestError(
                f"{path}: column 'embedding' must be lists of {self.width or 'some'} numbers each, got "
                f"{column.type}. {_WRITE}"
            ) from error
        return x_NC

    def texts(self, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What the columns beside the embedding say of rows by number, {} for columns that are not there."""
        there = self._files[0][1].schema_arrow.names
        names = [name for name in ("path", "label", *TIMES) if name in there]
        numbers = np.unique(np.asarray(wanted, dtype=np.int64))
        found: dict[int, dict[str, Any]] = {}
        first = 0
        for _, columns in self._batches(names, BLOCK_ROWS):
            inside = numbers[(numbers >= first) & (numbers < first + len(columns[0]))]
            for number in inside.tolist():
                found[number] = {n: c[number - first].as_py() for n, c in zip(names, columns, strict=True)}
            first += len(columns[0])
        return found

    def close(self) -> None:
        """Close the files."""
        for _, file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def path_text(path: str) -> str:
    """A path as it stands in a row: bytes that are no text cannot stand in a column of text."""
    return path.encode("utf-8", "backslashreplace").decode()


def to_unit(x_NC: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """Vectors of length 1 and the same direction, float64.

    Raises:
        ManifestError: for a vector that is zero or not finite; `names` name them.
    """
    x_NC = np.asarray(x_NC, dtype=np.float64)
    lengths_N = np.sqrt(np.einsum("nc,nc->n", x_NC, x_NC))
    wrong = np.flatnonzero(~(np.isfinite(lengths_N) & (lengths_N > 0)))
    if len(wrong):
        what = "zeros" if lengths_N[wrong[0]] == 0 else "a value that is not finite"
        raise ManifestError(
            f"{names[wrong[0]]} must be finite and not zero, got {what}. Leave the video out, or take another "
            "checkpoint."
        )
    unit_NC: np.ndarray = x_NC / lengths_N[:, None]
    return unit_NC
