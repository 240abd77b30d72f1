"""The decord back end (the package `decord2`), held to what PyAV reads.

decord takes the largest of several video streams, does not know edit lists, packed B-frames or open GOPs,
and patches damaged pictures without a word. What could go wrong that way is refused here before decord sees
it, so that its frames are PyAV's frames.
"""

from __future__ import annotations

import ctypes
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from video_gn.clips import VideoInfo
from video_gn.decoding._base import ReaderBase, check_indices, group_repeats
from video_gn.decoding._decoder import PacketDecoder
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding._shards import is_member, read_member
from video_gn.errors import DecodeError

# Formats whose conversion to RGB is the same in both, bit for bit (all of FFmpeg's fast path).
_SAME_PIXELS = frozenset({"yuv420p"})


def import_decord() -> Any:
    """The module `decord`, with its FFmpeg kept to itself.

    Its loader makes the symbols of its libraries visible to all that are loaded later: torchcodec then calls
    decord's FFmpeg in place of the system's, and crashes.

    Raises:
        ImportError: where it is not installed, or cannot be loaded.
    """
    visible = ctypes.RTLD_GLOBAL
    vars(ctypes)["RTLD_GLOBAL"] = ctypes.RTLD_LOCAL
    try:
        return importlib.import_module("decord")
    finally:
        vars(ctypes)["RTLD_GLOBAL"] = visible


class DecordReader(ReaderBase):
    """Reads frames of a video with decord. See `video_gn.decoding.VideoReader`.

    Args:
        path: a local file.
        num_threads: decord's decoding threads.

    Raises:
        DecodeError: for what cannot be opened, or what decord would read wrongly.
        ImportError: where decord is not installed.
    """

    def __init__(self, path: str, *, num_threads: int = 1) -> None:
        super().__init__(path)
        self._decord = import_decord()
        self._errors: tuple[type[Exception], ...] = (
            self._decord.DECORDError,
            importlib.import_module("decord._ffi.base").DECORDLimitReachedError,
            RuntimeError,
            AssertionError,  # decord asserts that a video has frames
        )
        with PyAVReader(path) as reader:
            self._info, self._seconds = reader.info, reader.frame_seconds
            self._refuse_what_is_wrong(reader)
        self._decord.logging.set_level(self._decord.logging.QUIET)
        try:
            # The tolerance is as near to "no frame made up" as decord takes.
            # An absolute path keeps FFmpeg from taking "a:b.mp4" for a protocol.
            source = io.BytesIO(read_member(path)) if is_member(path) else str(Path(path).absolute())
            self._reader: Any = self._decord.VideoReader(source, num_threads=num_threads, fault_tol=1e-9)
        except self._errors as error:
            self._refuse(f"it cannot open the file ({_last_line(error)})", error)
        if len(self._reader) != self._info.num_frames:
            self._refuse(f"it counts {len(self._reader)} frames where there are {self._info.num_frames}")
        self._is_undamaged = False

    @property
    def info(self) -> VideoInfo:
        """Facts of the video."""
        return self._info

    @property
    def frame_seconds(self) -> np.ndarray:
        """float64 (num_frames,), read-only; see `VideoReader.frame_seconds`."""
        return self._seconds

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        super().close()
        self._reader = None

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Decode frames; see `VideoReader.frames_at`.

        The first call decodes the file once with PyAV too, to know that it is not damaged.
        """
        self._check_usable()
        checked = check_indices(indices, num_frames=self._info.num_frames, path=self.path)
        self._check_undamaged()
        wanted, places = group_repeats(checked)
        try:
            batch = self._reader.get_batch(wanted.tolist())
        except self._errors as error:
            self._refuse(f"it fails ({_last_line(error)})", error)
        # With decord.bridge.set_bridge elsewhere in the program, this is a tensor of another library.
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        shape = (len(wanted), self._info.height, self._info.width, 3)
        if frames.shape != shape:
            self._refuse(f"it gives frames of shape {frames.shape} where {shape} is right")
        order = np.empty(len(checked), dtype=np.int64)
        for row, where in enumerate(places):
            order[where] = row
        out = torch.from_numpy(frames)
        return out if np.array_equal(order, np.arange(len(out))) else out[torch.from_numpy(order)]

    def _refuse_what_is_wrong(self, reader: PyAVReader) -> None:
        table = reader.table
        if table.doubt:
            self._refuse(table.doubt)
        if table.num_video_streams > 1:
            self._refuse(f"the file has {table.num_video_streams} video streams, and it takes the largest")
        if not table.is_shown.all():
            self._refuse("packets of it show no frame")
        if not table.is_closed[table.is_key].all():
            self._refuse("it starts at key frames that do not stand alone")
        if reader.pix_fmt not in _SAME_PIXELS:
            self._refuse(f"it may convert {reader.pix_fmt} to other colours")

    def _check_undamaged(self) -> None:
        """Decode the whole file with PyAV, once: damage shows in nothing less, and decord keeps quiet about it."""
        if self._is_undamaged:
            return
        decoder = PacketDecoder(self.path)
        try:
            decoder.reopen()
            size: set[tuple[int, int]] = set()
            while not decoder.is_at_end:
                size.update((frame.width, frame.height) for frame in decoder.feed())
                if decoder.is_damaged:
                    self._refuse("packets of it are damaged")
            if decoder.num_decoded != self._info.num_frames:
                self._refuse(f"only {decoder.num_decoded} of {self._info.num_frames} frames decode")
            if len(size) > 1:
                self._refuse("its frames change their size")
        finally:
            decoder.close()
        self._is_undamaged = True

    def _refuse(self, reason: str, error: Exception | None = None) -> NoReturn:
        raise DecodeError(self.path, f"decord cannot be relied on here: {reason}. Use backend='pyav'.") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
