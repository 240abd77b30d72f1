"""Reads a scores.npz piece by piece: the scores of a large test do not fit in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

# Read at a time; the sums over it take several times as much, in float64.
_CHUNK_BYTES = 4 * 2**20


class ScoresFile:
    """The arrays of a test/scores.npz; the scores are streamed from the archive, compressed or not.

    Args:
        path: of the file.

    Raises:
        ValueError: where it is no zip archive or its arrays are not those that a test writes.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"it must be a whole npz archive ({error})") from error
        self._file: IO[bytes] | None = None
        try:
            self.video_ids = self._small("video_ids")
            self.labels = self._small("labels")
            self._file = self._archive.open("scores.npy")
            self.shape, self._dtype = self._read_header(self._file)
            if not len(self.video_ids) == len(self.labels) == self.shape[0]:
                raise ValueError(
                    f"video_ids, labels and scores must be of one length, got {len(self.video_ids)}, "
                    f"{len(self.labels)} and {self.shape[0]}"
                )
        except KeyError as error:
            self.close()
            raise ValueError(f"it must hold video_ids, labels and scores ({error})") from error
        except zipfile.BadZipFile as error:
            self.close()
            raise ValueError(f"it is damaged ({error})") from error
        except BaseException:
            self.close()
            raise

    def _small(self, name: str) -> np.ndarray:
        with self._archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        if array.ndim != 1 or array.dtype.kind != "i":
            raise ValueError(f"{name} must be integers of shape (V,), got {array.dtype} {array.shape}")
        return array

    @staticmethod
    def _read_header(file: IO[bytes]) -> tuple[tuple[int, int, int], np.dtype]:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"scores must be in npy format 1.0 or 2.0, got {version}")
        shape, fortran, dtype = readers[version](file)
        if len(shape) != 3 or fortran or dtype.kind != "f":
            raise ValueError(f"scores must be floats of shape (V, K, Y) in C order, got {dtype} {shape}")
        if min(shape[1:]) < 1:
            raise ValueError(f"scores must have at least one view and one class, got shape {shape}")
        return shape, dtype

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Scores of a few videos at a time, once.

        Yields:
            The first video's place, and (n, K, Y) of their scores.

        Raises:
            ValueError: where the data end too soon or their checksum is wrong.
        """
        assert self._file is not None
        num_videos, num_views, num_classes = self.shape
        row_bytes = num_views * num_classes * self._dtype.itemsize
        rows = max(1, _CHUNK_BYTES // row_bytes)
        for first in range(0, num_videos, rows):
            count = min(rows, num_videos - first)
            try:
                data = self._file.read(count * row_bytes)
            except (zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"it is damaged ({error})") from error
            if len(data) != count * row_bytes:
                raise ValueError(f"its scores end after {first + len(data) // row_bytes} of {num_videos} videos")
            yield first, np.frombuffer(data, self._dtype).reshape(count, num_views, num_classes)

    def close(self) -> None:
        """Close the archive."""
        if self._file is not None:
            self._file.close()
        self._archive.close()

    def __enter__(self) -> ScoresFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
