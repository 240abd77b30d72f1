"""Keeps the features of labelled videos beside their lines, until all are done and become a parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

import video_gn
from video_gn.embeddings.reading import METADATA, EmbeddingsFile, Rows, path_text
from video_gn.errors import ConfigError
from video_gn.evaluation.prediction import Embedding
from video_gn.files import naming_unwritable
from video_gn.journal import write_all
from video_gn.lists.parquet import write_parquet

_ROWS = 2048  # of a row group, 16 MiB at 2048 features


@dataclass(frozen=True)
class Target:
    """The parquet file to write: a row for each video, or for each of its clips."""

    path: Path
    rows: Rows
    num_clips: int
    num_features: int

    @property
    def rows_of_video(self) -> int:
        """Number of rows of a video."""
        return self.num_clips if self.rows == "clips" else 1


class KeptFeatures:
    """Features of the videos that have labels, float32, in the order of their lines.

    For lines X.jsonl they lie in .X.jsonl.features. A video's features are appended before its line: what a kill leaves
    is never too short, and what it has too much is cut off.

    Args:
        lines: File of lines.
        target: What to write of them.
        settings: What they are made with, for the parquet file's metadata.
        checkpoint: Path of the checkpoint.
    """

    def __init__(self, lines: Path, target: Target, *, settings: Mapping[str, Any], checkpoint: str) -> None:
        self.target = target
        self._path = lines.with_name(f".{lines.name}.features")
        self._bytes_of_video = 4 * target.rows_of_video * target.num_features
        self._about = {"rows": target.rows, "checkpoint": checkpoint, "settings": dict(settings)}
        self._file: IO[bytes] | None = None

    def resume(self, num_videos: int, *, all_done: bool) -> None:
        """Be ready for features after those of the `num_videos` that have labels; `all_done` if there are no more.

        Raises:
            ConfigError: features of those are missing.
        """
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < num_videos * self._bytes_of_video:
            if all_done and self._is_written(num_videos):
                return
            raise ConfigError(
                f"{self.target.path}: {num_videos} videos have labels, and features of "
                f"{size // self._bytes_of_video} of them are there. Label all anew with --overwrite, or choose another "
                "--output."
            )
        with naming_unwritable(self._path):
            self._file = self._path.open("ab", buffering=0)
            self._file.truncate(num_videos * self._bytes_of_video)

    def _is_written(self, num_videos: int) -> bool:
        """Whether an earlier run has finished the file: it removes the features then."""
        if not self.target.path.exists():
            return False
        with EmbeddingsFile(self.target.path) as file:
            return (
                file.about.get("settings") == self._about["settings"]
                and file.num_rows == num_videos * self.target.rows_of_video
            )

    def add(self, embedding: Embedding) -> None:
        """Append a video's features; errors as `video_gn.journal.write_all`."""
        assert self._file is not None, "resume() first"
        features = embedding.clips if self.target.rows == "clips" else embedding.video
        assert features.nbytes == self._bytes_of_video, f"{features.shape} of {self.target}"
        write_all(self._file, features.tobytes())

    def write(self, entries: Iterator[Mapping[str, Any]]) -> None:
        """Write the parquet file from the entries with labels; the features stay until `remove`.

        Errors as `video_gn.files.whole_path`.
        """
        if self._file is None:
            return
        kinds: dict[str, type | int] = {"path": str, "label": str, "score": float, "num_frames": int, "fps": float}
        if self.target.rows == "clips":
            kinds |= {"start_seconds": float, "end_seconds": float}
        about = json.dumps({"version": video_gn.__version__, **self._about})
        kinds["embedding"] = self.target.num_features
        write_parquet(self.target.path, kinds, self._batches(entries, list(kinds)[:-1]), metadata={METADATA: about})

    def _batches(self, entries: Iterator[Mapping[str, Any]], names: list[str]) -> Iterator[list[Any]]:
        rows_of_video, width = self.target.rows_of_video, self.target.num_features
        with self._path.open("rb") as file:
            while videos := list(islice(entries, max(1, _ROWS // rows_of_video))):
                data = file.read(len(videos) * self._bytes_of_video)
                rows = [row for entry in videos for row in self._rows(entry)]
                yield [*([row[name] for row in rows] for name in names),
                       np.frombuffer(data, np.float32).reshape(-1, width)]  # fmt: skip

    def _rows(self, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        path = path_text(entry["path"])
        for part in entry["clips"] if self.target.rows == "clips" else [entry]:
            yield {**entry, **part, **part["top"][0], "path": path}

    def remove(self) -> None:
        """Remove the features: they are in the parquet file."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()
