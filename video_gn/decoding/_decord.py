"""The decord back end (the package `decord2`), compared with PyAV's reading.

decord takes the largest of several video streams, does not know edit lists, packed B-frames or open GOPs,
and patches damaged pictures silently. Files where that matters are refused here before decord opens them, so that its
frames are PyAV's frames.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import numpy as np
import torch

from video_gn.decoding._held import HeldReader
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding.libraries import import_decord
from video_gn.decoding.tar_members import is_member, read_member


class DecordReader(HeldReader):
    """Reads frames of a video with decord. See `video_gn.decoding.VideoReader` and `open_video`.

    Raises:
        DecodeError: for a file that cannot be opened, or that decord would read wrongly.
        ImportError: if decord is not installed.
    """

    NAME = "decord"
    # Equal to the bit (all of FFmpeg's fast path).
    SAME_PIXELS = frozenset({"yuv420p"})

    def __init__(self, path: str, *, num_threads: int = 1) -> None:
        super().__init__(path, import_decord(), num_threads=num_threads)
        self._errors: tuple[type[Exception], ...] = (
            self._library.DECORDError,
            importlib.import_module("decord._ffi.base").DECORDLimitReachedError,
            RuntimeError,
            AssertionError,  # decord asserts that a video has frames
        )
        self._library.logging.set_level(self._library.logging.QUIET)
        try:
            # The tolerance is as near to "no invented frame" as decord accepts.
            # An absolute path keeps FFmpeg from taking "a:b.mp4" for a protocol.
            source = io.BytesIO(read_member(path)) if is_member(path) else str(Path(path).absolute())
            self._reader = self._library.VideoReader(source, num_threads=num_threads, fault_tol=1e-9)
        except self._errors as error:
            self._refuse(f"it cannot open the file ({_last_line(error)})", error)
        self._refuse_count(len(self._reader))

    def _get(self, wanted: np.ndarray) -> torch.Tensor:
        try:
            batch = self._reader.get_batch(wanted.tolist())
        except self._errors as error:
            self._refuse(f"it fails ({_last_line(error)})", error)
        # With decord.bridge.set_bridge elsewhere in the program, this is a tensor of another library.
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        self._refuse_shape(frames, len(wanted))
        return torch.from_numpy(frames)

    def _refuse_what_is_wrong(self, reader: PyAVReader) -> None:
        super()._refuse_what_is_wrong(reader)
        if self._table.num_video_streams > 1:
            self._refuse(f"the file has {self._table.num_video_streams} video streams, and it takes the largest")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
