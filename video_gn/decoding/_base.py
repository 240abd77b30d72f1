"""The reader, and what all back ends share: checked indices, closing, no pickling."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from video_gn.clips import VideoInfo
from video_gn.errors import DecodeError

if TYPE_CHECKING:
    import torch


# Pixels of a picture; 16K video has 15360 x 8640. Files of a few kB can ask for more than a machine holds.
MAX_PIXELS = 2**27
# Frames below this size are not held against the free memory, which takes a look at files of the system.
_ALWAYS_BYTES = 500_000_000


class VideoReader:
    """One video, opened for reading frames by index. Indices count the frames that really decode, as shown.

    A reader belongs to the process that opened it: open it in the worker that uses it.
    """

    _info: VideoInfo
    _seconds: np.ndarray

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid = os.getpid()
        self._is_closed = False

    @property
    def info(self) -> VideoInfo:
        """Facts of the video; `num_frames` comes from a pass over the packets, not from the header."""
        return self._info

    @property
    def frame_seconds(self) -> np.ndarray:
        """float64 (num_frames,), read-only: when each frame is shown, counted from the first one; strictly ascending.

        If the file has no usable times (AVI with B-frames, raw streams), frames are 1 / fps apart. The last frame ends
        at `info.duration_seconds`.
        """
        return self._seconds

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Decode frames.

        Args:
            indices: (n,), n >= 1, each in [0, num_frames); any order, repeats allowed. Each frame is decoded
                at most once in a call. Calls with growing indices continue from the last one's end.

        Returns:
            uint8 (n, H, W, 3), RGB, contiguous, rotated as the file's metadata asks.

        Raises:
            IndexError: for an index outside the video.
            ValueError: for no indices, or indices that are not a row of integers.
            FrameCountError: if fewer frames decode than the packets promised. `info.num_frames` and `frame_seconds`
                are corrected: draw the indices again from them, once.
            DecodeError: if the video cannot be decoded, or gives no data for a minute (with PyAV; the environment
                variable VIDEO_GN_DECODE_TIMEOUT_SECONDS sets another time).
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._is_closed = True

    def __del__(self) -> None:
        # PyAV's containers and streams refer to each other: without this, the files of readers that were never closed
        # stay open until the garbage collector runs.
        if not getattr(self, "_is_closed", True) and self._pid == os.getpid():
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"a video reader cannot be pickled or sent to another process ({self.path}). "
            "Send the path and open the video in the process that reads it."
        )

    def _describe_frames(self, num_frames: int, fps: float, height: int, width: int) -> None:
        """Set the facts of frames that come without a file of video: each is shown for 1 / fps."""
        self._seconds = np.arange(num_frames) / fps
        self._seconds.flags.writeable = False
        self._info = VideoInfo(
            path=self.path,
            num_frames=num_frames,
            fps=fps,
            width=width,
            height=height,
            rotation_degrees=0,
            codec="frames",
            duration_seconds=num_frames / fps,
        )

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ValueError(f"the reader of {self.path} is closed. Call open_video again.")
        if self._pid != os.getpid():
            raise RuntimeError(
                f"the reader of {self.path} must be used in the process that opened it. Call open_video in the worker."
            )


def check_indices(indices: Sequence[int] | np.ndarray, *, num_frames: int, path: str) -> np.ndarray:
    """The argument of `frames_at` as int64 (n,), n >= 1."""
    array = np.asarray(indices)
    if array.ndim != 1:
        raise ValueError(
            f"indices must be one row of frame numbers, got an array of shape {array.shape} for {path}. "
            "Flatten it, and reshape the result."
        )
    if array.size == 0:
        raise ValueError(f"indices must be at least one frame number, got none for {path}. Ask for a frame.")
    if array.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {array.dtype} for {path}. Round them first.")
    wrong = array[(array < 0) | (array >= num_frames)]
    if wrong.size:
        raise IndexError(
            f"indices must be in [0, {num_frames}), the frames of {path}, got {int(wrong[0])!r}. "
            "Draw them from info.num_frames."
        )
    return array.astype(np.int64)


def check_picture(path: str, width: int, height: int, *, name: str = "its pictures") -> None:
    """Raise DecodeError for pictures of more than `MAX_PIXELS`; `name` begins the message."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            path,
            f"{name} must have at most {MAX_PIXELS / 1e6:.0f} million pixels, got {width} x {height}. Make a smaller "
            "copy, as by `ffmpeg -i VIDEO -vf scale=-2:2160 COPY.mp4`",
        )


def empty_frames(path: str, num_frames: int, height: int, width: int) -> np.ndarray:
    """Uninitialized uint8 (num_frames, height, width, 3), in huge pages.

    Raises:
        DecodeError: for more than the free memory.
    """
    num_bytes = 3 * num_frames * height * width
    try:
        if num_bytes < _ALWAYS_BYTES or num_bytes < _free_bytes():
            return np.empty((num_frames, height, width, 3), dtype=np.uint8)
    except MemoryError:  # the shell's limit
        pass
    raise DecodeError(
        path,
        f"its frames of {width} x {height} pixels take more memory than is free: {num_frames} of them "
        f"{num_bytes / 1e9:.1f} GB. Read fewer at a time, or make a smaller copy with `video-gn data prepare`",
    )


def _free_bytes() -> float:
    """Memory that the system, or the container around this process, has for new allocations."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = 1024 * int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0])
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2 and 1; "max" is none
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int((Path("/sys/fs/cgroup") / name).read_text()))
    return free


def scaled_size(height: int, width: int, short_side_px: int | None) -> tuple[int, int]:
    """(height, width) of frames after scaling down their short side to `short_side_px`; never up.

    The long side is floored to an even number: FFmpeg converts pictures of odd width in another way, slower and a
    level brighter.
    """
    if short_side_px is None or min(height, width) <= short_side_px:
        return height, width
    if height <= width:
        return short_side_px, width * short_side_px // height // 2 * 2
    return height * short_side_px // width // 2 * 2, short_side_px


def group_repeats(indices: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The different indices, ascending, and for each of them its places in `indices`."""
    wanted, counts = np.unique(indices, return_counts=True)
    places = np.split(np.argsort(indices, kind="stable"), np.cumsum(counts)[:-1])
    return wanted, places
